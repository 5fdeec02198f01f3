"""The protocol in which labelled clips of a tested subject adapt a recognizer: what it draws, marks and leaves out."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from micron_model import MicronBERT
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.expressions import Expression
from micron_model.evaluation import adaptation
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate
from micron_model.evaluation.folds import MODEL, ORDINARY
from micron_model.evaluation.metrics import score
from micron_model.evaluation.outputs import write_outputs
from micron_model.evaluation.predictions import ANOTHER_PROTOCOL, read_predictions
from micron_model.evaluation.protocols import loso
from micron_model.evaluation.task import Task
from micron_model.recognizers.flow import FlowRecipe
from micron_model.recognizers.lightman import LightmanRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

QUIET = Console(quiet=True)
INPUT = OnsetApex(32)
CONFIG = EvaluateConfig(seeds=1, shuffled=False, baselines=(), adapt=2, adapt_steps=(1, 3))


@pytest.fixture(scope="module")
def task():
    """Subjects of 5, 4, 3 and 2 clips of random frames; the classes take turns."""
    import torch

    expressions = [
        Expression(
            "smic", f"s{subject}", f"s{subject}_{i}", "surprise", 100.0, ((1, Path("x.bmp")),), 1, 1, 1
        )
        for subject, clips in enumerate((5, 4, 3, 2), 1)
        for i in range(clips)
    ]
    labels = [("negative", "positive")[i % 2] for i in range(len(expressions))]
    torch.manual_seed(0)
    values = torch.randint(256, (len(expressions), 2, 3, 32, 32), dtype=torch.uint8)
    return Task(expressions, labels, ("negative", "positive"), loso(expressions), {INPUT.key: values})


@pytest.fixture
def start(small_config):
    return start_from(MicronBERT(small_config).eval(), Corpus(()))


def small(**settings):
    return LightmanRecipe(wrapped=MicronBERTRecipe(epochs=1, adapt_rate=0.02), inner_rate=0.02, **settings)


def test_the_same_clips_are_tested_whatever_number_adapts_and_classes_take_turns(task):
    drawn = [found for fold in task.folds for found in adaptation.draw(task, fold, 2, seed=3)]
    assert [len(d.few) for d in drawn] == [2, 2, 2]
    assert [len(d.tested) for d in drawn] == [3, 2, 1]
    for few, tested in drawn:
        assert not set(few) & set(tested)
        assert len({task.expressions[i].subject for i in (*few, *tested)}) == 1
        assert {task.labels[i] for i in few} == {"negative", "positive"}
    others = {adaptation.draw(task, task.folds[0], 2, seed=s)[0].few for s in range(8)}
    assert len(others) > 1


def test_curves_begin_at_no_clip_and_end_at_the_most():
    settings = adaptation.settings_of(replace(CONFIG, adapt=4))
    assert settings == [(0, 0), *((k, s) for k in (1, 2, 4) for s in (1, 3))]
    assert {k for k, _ in adaptation.settings_of(replace(CONFIG, adapt=3))} == {0, 1, 2, 3}


def test_subjects_of_too_few_clips_are_left_out_by_name_and_too_many_asked_for_is_an_error(task):
    assert adaptation.without_clips(task, small(), CONFIG) == [
        "1 of 4 subjects have no more than 2 clips and are left out: smic/4 (2)"
    ]
    assert adaptation.without_clips(task, small(), replace(CONFIG, adapt=1)) == []
    with pytest.raises(
        ValueError, match=r"adapt=5: of 4 tested subjects none has more .* the most is 5, give at most 4"
    ):
        adaptation.without_clips(task, small(), replace(CONFIG, adapt=5))
    with pytest.raises(ValueError, match="flow takes no gradient steps"):
        adaptation.without_clips(task, FlowRecipe(), CONFIG)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"adapt": -1}, "adapt=-1; it is a number of clips"),
        ({"adapt_steps": ()}, r"adapt_steps=\(\); different numbers"),
        ({"adapt_steps": (0,)}, "each at least 1"),
        ({"adapt": 1, "selection": "inner"}, "with the best epoch"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        replace(CONFIG, **wrong)


def test_an_evaluation_gives_curves_marked_as_another_protocol_and_goes_on_where_it_was(
    task, start, tmp_path
):
    recipe = small()
    found = evaluate(task, recipe, start, CONFIG, tmp_path, workers=1, console=QUIET)
    assert list(found.adapted) == [MODEL, ORDINARY]
    for of_setting in found.adapted.values():
        assert list(of_setting) == adaptation.settings_of(CONFIG)
        assert {len(p.rows) for p in of_setting.values()} == {6}
    as_it_is = {r.clip: r.logits for r in found.predictions.rows}
    ours = found.adapted[MODEL]
    assert all(as_it_is[r.clip] == pytest.approx(r.logits, abs=1e-5) for r in ours[0, 0].rows)
    moved = [r.logits for r in ours[2, 3].rows]
    assert moved != [r.logits for r in ours[2, 1].rows] != [r.logits for r in ours[0, 0].rows]

    report = write_outputs(tmp_path, task, recipe, start, found, CONFIG, about={})
    assert "Adapted to the person: another protocol" in report.read_text()
    assert "smic/4 (2)" in report.read_text()
    rows = list(csv.DictReader((tmp_path / "adapted.csv").read_text().splitlines()))
    assert len(rows) == 2 * len(adaptation.settings_of(CONFIG))
    assert all(ANOTHER_PROTOCOL in row["stamps"] for row in rows)
    one = read_predictions(tmp_path / "adapted-predictions" / "model-2-clips-3-steps.csv")
    assert ANOTHER_PROTOCOL in score(one).stamps
    assert ANOTHER_PROTOCOL not in score(found.predictions).stamps

    (tmp_path / "folds" / "model-0" / "smic-1.csv").unlink()
    (tmp_path / "adapted" / "model-0" / "smic-2.csv").unlink()
    again = evaluate(task, recipe, start, CONFIG, tmp_path, workers=1, console=QUIET)
    assert again.adapted == found.adapted
    kept = tmp_path / "adapted" / "model-0" / "smic-2.csv"
    kept.write_text("\n".join(kept.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="holds other clips than fold smic/2 adapts to"):
        evaluate(task, recipe, start, CONFIG, tmp_path, workers=1, console=QUIET)
