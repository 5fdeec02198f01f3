"""Folds trained and tested: on look-alikes, over processes, stopped and gone on with, against shuffled labels."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.cli import main
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.evaluation import folds
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate
from micron_model.evaluation.metrics import confusion_matrix, score, uf1
from micron_model.evaluation.predictions import LEAKY, read_predictions
from micron_model.evaluation.task import load_task, positions
from micron_model.recognizers.base import Examples
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

QUIET = Console(quiet=True)
FROZEN = MicronBERTRecipe(freeze="encoder", epochs=15)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A look-alike of CASME II: 10 subjects, 7 clips of each, a class a clip."""
    folder = tmp_path_factory.mktemp("lookalike") / "casme2"
    make_lookalike("casme2", folder, LookalikeConfig(subjects=10, clips=7, side=96))
    return folder


@pytest.fixture(scope="module")
def lookalike(root):
    """A task of three classes."""
    return load_task("casme2", root, OnsetApex(64), scheme="3", allow_differences=True, console=QUIET)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return start_from(MicronBERT(preset("tiny", tied_start=True)).eval(), Corpus(()))


@pytest.fixture(scope="module")
def evaluated(lookalike, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    config = EvaluateConfig(seeds=2, baselines=())
    return out, config, evaluate(lookalike, FROZEN, backbone, config, out, workers=1, console=QUIET)


def test_it_is_clearly_above_shuffled_labels_and_those_are_at_chance(evaluated):
    ours, shuffled = (
        score(predictions).full
        for predictions in (evaluated[2].predictions, evaluated[2].baselines["shuffled labels"])
    )
    assert ours.uf1.mean > 0.7
    assert ours.uf1.interval[0] > shuffled.uf1.interval[1]
    assert shuffled.uar.interval[0] < 1 / 3 < shuffled.uar.interval[1]
    assert ours.uar.mean > score(evaluated[2].baselines["majority class"]).full.uar.mean


def test_every_clip_is_tested_once_a_seed_in_the_fold_of_its_subject(evaluated, lookalike):
    rows = evaluated[2].predictions.rows
    assert len(rows) == 2 * len(lookalike.expressions)
    assert all(row.fold == row.subject for row in rows)
    assert {row.selection for row in rows} == {"last"}


@pytest.mark.parametrize("freeze", ["encoder", "none"])
def test_no_test_clip_changes_what_a_fold_learns(lookalike, backbone, freeze):
    weights = []

    class Recorded(MicronBERTRecipe):
        def fit(self, recognizer, train, **options):
            super().fit(recognizer, train, **options)
            weights.append(torch.cat([p.flatten() for p in recognizer.parameters()]))

    recipe = Recorded(freeze=freeze, epochs=1, batch_size=8)
    pairs = lookalike.values_of(OnsetApex(64))
    values = torch.randn(len(pairs), 4 * 4 * 128) if recipe.embeds_once else pairs[:, :, :, ::2, ::2]
    labels = positions(lookalike.labels, lookalike.classes)
    for noise in (False, True):
        values = values.clone()
        if noise:
            values[list(lookalike.folds[0].test)] = torch.zeros_like(values[:1])
        examples = Examples(values, labels, [e.subject for e in lookalike.expressions], recipe.embeds_once)
        trained = {"model": folds.Trained(recipe, backbone, examples)}
        folds.train_fold(folds.Work(trained, lookalike, EvaluateConfig(), "cpu"), folds.Job("model", 0, 0))
    assert torch.equal(weights[0], weights[1])


def test_processes_give_the_same_predictions(evaluated, lookalike, backbone, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    try:
        config = EvaluateConfig(seeds=1, shuffled=False, baselines=())
        one, two = (
            evaluate(lookalike, FROZEN, backbone, config, tmp_path / str(n), workers=n, console=QUIET)
            for n in (1, 2)
        )
    finally:
        torch.set_num_threads(before)
    assert one.predictions == two.predictions


def test_finished_folds_are_not_trained_again(evaluated, lookalike, backbone, monkeypatch):
    out, config, before = evaluated
    lost = sorted((out / "folds").rglob("*.csv"))[3]
    content = lost.read_bytes()
    lost.unlink()
    trained = []
    train = folds.train_fold
    monkeypatch.setattr(folds, "train_fold", lambda work, job: trained.append(job) or train(work, job))
    again = evaluate(lookalike, FROZEN, backbone, config, out, workers=1, console=QUIET)
    assert len(trained) == 1
    assert lost.read_bytes() == content
    assert again == before


def test_another_evaluation_is_not_mixed_in(evaluated, lookalike, backbone):
    out, _, _ = evaluated
    other = replace(FROZEN, epochs=3)
    with pytest.raises(ValueError, match=r"holds another evaluation: model was .*'epochs': 15"):
        evaluate(lookalike, other, backbone, evaluated[1], out, workers=1, console=QUIET)
    with pytest.raises(ValueError, match="holds another evaluation: evaluation was"):
        evaluate(
            lookalike, FROZEN, backbone, EvaluateConfig(seeds=3, baselines=()), out, workers=1, console=QUIET
        )
    flipped = lookalike._replace(values={key: values.flip(0) for key, values in lookalike.values.items()})
    with pytest.raises(ValueError, match=r"holds another evaluation: model was .*'values'"):
        evaluate(flipped, FROZEN, backbone, evaluated[1], out, workers=1, console=QUIET)


@pytest.mark.parametrize(
    ("settings", "stamp"), [({"selection": "inner"}, "inner"), ({"leaky_best_epoch": True}, LEAKY)]
)
def test_how_the_epoch_was_chosen_stands_in_every_prediction(lookalike, backbone, settings, stamp, tmp_path):
    config = EvaluateConfig(seeds=1, shuffled=False, baselines=(), **settings)
    found = evaluate(lookalike, FROZEN, backbone, config, tmp_path, workers=1, console=QUIET).predictions
    assert {row.selection for row in found.rows} == {stamp}
    assert (LEAKY in " ".join(score(found).stamps)) == (stamp == LEAKY)


def test_choosing_the_epoch_on_the_test_subjects_never_lowers_the_score_of_a_fold(
    lookalike, backbone, tmp_path
):
    results = [
        evaluate(
            lookalike, FROZEN, backbone, EvaluateConfig(seeds=1, shuffled=False, baselines=(), leaky_best_epoch=leaky),
            tmp_path / str(leaky), workers=1, console=QUIET,
        ).predictions.rows
        for leaky in (False, True)
    ]  # fmt: skip
    last, leaky = ({row.fold: [] for row in rows} for rows in results)
    for rows, by_fold in zip(results, (last, leaky), strict=True):
        for row in rows:
            by_fold[row.fold].append((row.truth, row.prediction))
    scores = [
        [
            float(uf1(confusion_matrix(*zip(*found, strict=True), lookalike.classes)))
            for found in folds.values()
        ]
        for folds in (last, leaky)
    ]
    assert all(a <= b for a, b in zip(*scores, strict=True))
    assert sum(scores[0]) < sum(scores[1])


# By the command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    MicronBERT(preset("tiny", tied_start=True)).save_pretrained(folder)
    Corpus(("synthetic/0000/happiness",)).write(folder)
    return folder


def arguments(root, model, out, *more):
    return [
        "evaluate", "casme2", str(root), "--model", str(model), "--out", str(out), "--cache", str(out.parent / "faces"),
        "--freeze", "encoder", "--epochs", "15", "--seeds", "1", "--workers", "1", *more,
    ]  # fmt: skip


def test_the_command_writes_predictions_scores_and_a_report(root, model_folder, tmp_path, capsys, documented):
    out = tmp_path / "out"
    command = arguments(root, model_folder, out, "--scheme", "3", "--allow-differences")
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "scheme 3: 40 clips of 10 subjects" in " ".join(printed.err.split())
    assert "The census of casme2 differs" in " ".join(printed.err.split())
    predictions = read_predictions(out / "predictions.csv")
    assert f"{score(predictions).full.uf1.mean:.3f}" in printed.out
    page = (out / "report.html").read_text()
    assert "The census of casme2 differs" in page
    assert "Best clips" in page
    assert "Worst clips" in page
    assert "0.890" not in page  # of another protocol
    assert (out / "megc" / "seed-0.txt").is_file()
    assert score(read_predictions(out / "baseline-flow.csv")).full.uf1.mean > 0.9
    assert main([*command, "--json"]) == 0  # nothing is trained again
    document = json.loads(capsys.readouterr().out)
    documented("evaluate", document)
    part = document["scores"]["parts"]["Full"]
    documented("score", document["scores"], part, part["uf1"])
    assert document["finished"] is True
    assert document["report"] == str(out / "report.html")
    assert document["scores"]["parts"]["Full"]["uf1"]["mean"] == score(predictions).full.uf1.mean
    assert document["scores"]["parts"]["Full"]["uf1"]["sd"] is None
    assert set(document["baselines"]) == {"majority class", "shuffled labels", "flow"}
    assert main(["score", str(out / "predictions.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document["scores"]
    assert main(["score", str(out / "predictions.csv")]) == 0
    assert f"{score(predictions).full.uf1.mean:.3f}" in capsys.readouterr().out


def test_a_census_that_differs_is_refused(root, model_folder, tmp_path, refused):
    message = refused(arguments(root, model_folder, tmp_path / "out"))
    assert "The census of casme2 differs: happiness: 10 clips, official 32" in message
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (
            ["/data/CASME2-RAW/sub03/EP01"],
            "pre-trained on frames of 1 of the subjects it is tested on: casme2/3",
        ),
        (None, "It is not known what the model was pre-trained on"),
    ],
)
def test_a_model_that_saw_the_test_subjects_is_refused_unless_allowed(
    root, model_folder, tmp_path, refused, capsys, clips, message
):
    model = tmp_path / "model"
    model.mkdir()
    for path in model_folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "corpus.json").write_text(json.dumps({"clips": clips}))
    command = arguments(
        root, model, tmp_path / "out", "--allow-differences", "--no-shuffled", "--epochs", "1"
    )
    said = refused(command)
    assert message in said
    assert "allow it with --allow-overlap" in said
    assert main([*command, "--allow-overlap"]) == 0
    assert message in (tmp_path / "out" / "report.html").read_text()
