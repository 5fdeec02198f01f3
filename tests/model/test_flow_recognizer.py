"""The recognizer by plain means, and the seam: whatever is true of it is true of any recognizer."""

import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from made_up import CLASSES
from micron_model.cli import main
from micron_model.commands.recognition import Share
from micron_model.data.clips.flow import OnsetApexFlow
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.data.databases.prepared import FaceConfig
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate, inputs_of
from micron_model.evaluation.metrics import score
from micron_model.evaluation.predictions import read_predictions, write_predictions
from micron_model.evaluation.task import finetune, load_task
from micron_model.loading import load_recognizer
from micron_model.model_card import digest
from micron_model.recognizers import Examples, Start, name_of, recipe_class
from micron_model.recognizers.flow import FlowRecipe, FlowRecognizer, FlowRecognizerConfig

QUIET = Console(quiet=True)
WHOLE = FaceConfig(detect=False)
ONCE = EvaluateConfig(seeds=1, shuffled=False)


def moved(face, right, down):
    return np.roll(face, (down, right), (1, 2))


@pytest.fixture(scope="module")
def face():
    noise = np.random.default_rng(0).normal(size=(3, 64, 64))
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-80 * np.square(np.fft.fftfreq(64))[:, None]
                          - 80 * np.square(np.fft.fftfreq(64))[None]), axes=(1, 2)).real  # fmt: skip
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def test_a_movement_of_the_whole_face_is_no_expression(face):
    inside = OnsetApexFlow(64).encode(np.stack([face, moved(face, 3, -2)]))[:, 16:-16, 16:-16]
    assert np.abs(inside).mean() < 0.2


def test_it_is_balanced_logistic_regression_of_standardised_parts():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (40,), generator=generator)
    features = torch.randn(40, 8, generator=generator) + labels[:, None] * torch.linspace(-1, 1, 8)
    recipe = FlowRecipe(parts=2, penalty=0.5)
    recognizer = recipe.build(Start(), CLASSES, seed=0)
    recipe.fit(recognizer, Examples(features, labels, ["casme2/1"] * 40, embedded=True), seed=0)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    theirs = LogisticRegression(C=1 / 0.5, class_weight="balanced", tol=1e-10, max_iter=5000).fit(
        scaled, labels
    )
    ours = recognizer.classify(features).softmax(1).detach()
    torch.testing.assert_close(
        ours.double(), torch.from_numpy(theirs.predict_proba(scaled)), atol=1e-5, rtol=1e-4
    )


def test_a_class_that_is_not_trained_on_and_a_part_that_never_moves_are_no_trouble():
    labels = torch.tensor([0, 1] * 10)
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    features[:, 3] = 0
    recipe = FlowRecipe(parts=2)
    recognizer = recipe.build(Start(), CLASSES, seed=0)
    recipe.fit(recognizer, Examples(features, labels, ["casme2/1"] * 20, embedded=True), seed=0)
    logits = recognizer.classify(features)
    assert logits.isfinite().all()
    assert not (logits.argmax(1) == 2).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 16}, "size=16; flow needs faces of at least 32 pixels"),
        ({"parts": 0}, r"parts=0; it must lie in \[1, 128\]"),
        ({"penalty": 0.0}, "penalty=0.0; it must be positive"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowRecipe(**settings)


# Through the seam


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lookalike") / "casme2"
    make_lookalike("casme2", folder, LookalikeConfig(subjects=5, clips=7, side=96))
    return folder


@pytest.fixture(scope="module")
def task(root):
    inputs = inputs_of(FlowRecipe(), Start(), ONCE)
    return load_task("casme2", root, inputs, scheme="3", face=WHOLE, allow_differences=True, console=QUIET)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    return evaluate(
        task, FlowRecipe(), Start(), ONCE, tmp_path_factory.mktemp("whole"), workers=1, console=QUIET
    )


def test_it_solves_the_easiest_look_alike(whole):
    assert score(whole.predictions).full.uf1.mean > 0.9
    assert list(whole.baselines) == ["majority class"]  # it is none of its own


def test_parts_meet_in_one_folder(task, whole, tmp_path):
    parts = [
        evaluate(task, FlowRecipe(), Start(), ONCE, tmp_path, workers=1, part=(i, 3), console=QUIET)
        for i in (2, 3, 1)
    ]
    assert parts[:2] == [None, None]
    assert parts[2] == whole
    with pytest.raises(ValueError, match="part=4/3; it must lie in 1/3 to 3/3"):
        evaluate(task, FlowRecipe(), Start(), ONCE, tmp_path, part=(4, 3), console=QUIET)
    with pytest.raises(ValueError, match="holds another evaluation"):
        evaluate(task, FlowRecipe(parts=4), Start(), ONCE, tmp_path, part=(1, 3), console=QUIET)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [(Corpus(("x/CASME2/sub03/y",)), "frames of 1 of the"), (Corpus(None), "It is not known")],
)
def test_a_start_that_has_seen_the_subjects_is_refused_here_too(task, tmp_path, corpus, message):
    with pytest.raises(ValueError, match=message):
        evaluate(task, FlowRecipe(), Start(corpus=corpus), ONCE, tmp_path, workers=1, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_the_task_lacks_is_named(task, tmp_path):
    with pytest.raises(ValueError, match="no values of the input 'flow from onset to apex, 64 pixels'"):
        evaluate(task, FlowRecipe(size=64), Start(), ONCE, tmp_path, console=QUIET)


def test_shares_of_torchrun_and_of_array_jobs(monkeypatch):
    assert Share.of("2/8", "cpu", 3) == ((2, 8), ["cpu"], 3)
    for bad in ("0/8", "9/8", "2", "a/b", "1/0"):
        with pytest.raises(ValueError, match=rf"part='{bad}'; it must be I/N"):
            Share.of(bad, "cpu", None)
    for name, value in {"WORLD_SIZE": 4, "RANK": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert Share.of(None, "cpu", None) == ((3, 4), ["cpu"], 3)
    with pytest.raises(ValueError, match="beside torchrun"):
        Share.of("1/2", "cpu", None)


def arguments(command, root, out, *more):
    return [
        command, "casme2", str(root), "--recognizer", "flow", "--scheme", "3", "--allow-differences", "--no-detect",
        "--out", str(out), "--cache", str(root.parent / "faces"), *more,
    ]  # fmt: skip


def test_the_command_evaluates_by_the_name_and_the_last_part_writes_the_report(root, whole, tmp_path, capsys):
    evaluation = arguments(
        "evaluate", root, tmp_path / "out", "--no-shuffled", "--seeds", "1", "--workers", "1"
    )
    assert main([*evaluation, "--part", "2/2"]) == 0
    assert "5 folds are still to come from other parts" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "report.html").exists()
    assert main([*evaluation, "--part", "1/2"]) == 0
    assert read_predictions(tmp_path / "out" / "predictions.csv") == whole.predictions
    page = (tmp_path / "out" / "report.html").read_text()
    assert "casme2, loso, flow" in page
    assert "Arrows: the mean flow" in page


def test_what_is_trained_is_saved_by_its_name_with_its_scores_and_predicts(root, task, whole, tmp_path):
    write_predictions(tmp_path / "predictions.csv", whole.predictions)
    scores = ["--scores", str(tmp_path / "predictions.csv")]
    assert main(arguments("finetune", root, tmp_path / "recognizer", *scores)) == 0
    card = (tmp_path / "recognizer" / "README.md").read_text()
    full = score(whole.predictions).full
    assert f'"UF1": "{full.uf1} {full.uf1.interval_text}"' in card
    assert f"`{digest([e.subject for e in task.expressions])}`" in card
    assert json.loads((tmp_path / "recognizer" / "config.json").read_text())["recognizer"] == "flow"
    loaded = load_recognizer(tmp_path / "recognizer")
    trained = finetune(task, FlowRecipe(), Start())
    values = task.values_of(loaded.clip_input)
    with torch.no_grad():
        torch.testing.assert_close(loaded(values), trained(values), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "there"), [("flow", "--penalty"), ("micron-bert", "--from-rest")])
def test_help_shows_the_settings_of_one_recognizer(name, there, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--recognizer", name, "--help"])
    shown = capsys.readouterr().out
    assert there in shown
    assert ("--penalty" in shown) != ("--from-rest" in shown)


# Recognizers outside the package

_OWN = """
from micron_model.recognizers.flow import FlowRecipe, FlowRecognizer, FlowRecognizerConfig
class Own(FlowRecipe):
    "Flow under another name."
    name = ""
class NoRecipe: ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_flow.py").write_text(_OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield recipe_class("own_flow:Own")
    sys.modules.pop("own_flow", None)


def test_a_recipe_outside_the_package_is_found_by_its_path(own):
    assert name_of(own()) == "own_flow:Own"
    for name, message in (
        ("nothing", "recognizer 'nothing' is none of micron-bert, flow"),
        ("own_flow:Missing", "has no attribute 'Missing'"),
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("own_flow:NoRecipe", "is no subclass of"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe_class(name)


def test_a_folder_does_not_decide_that_code_is_run(own, tmp_path, refused):
    config = FlowRecognizerConfig(CLASSES, recognizer="own_flow:Own", parts=2)
    FlowRecognizer(config).save_pretrained(tmp_path / "saved")
    sys.modules.pop("own_flow")
    with pytest.raises(ValueError, match="not run unasked: ask for it with --recognizer own_flow:Own"):
        load_recognizer(tmp_path / "saved")
    assert "own_flow" not in sys.modules
    assert load_recognizer(tmp_path / "saved", recipe_class("own_flow:Own")).config == config
    with pytest.raises(ValueError, match="holds a recognizer of 'own_flow:Own', not of 'flow'"):
        load_recognizer(tmp_path / "saved", FlowRecipe)
    assert "no_such:Recipe" in refused(["evaluate", "casme2", "x", "--recognizer", "no_such:Recipe"])


def test_baselines_are_named():
    with pytest.raises(ValueError, match="one is there twice"):
        EvaluateConfig(baselines=("flow", "flow"))
    with pytest.raises(ValueError, match="recognizer 'nothing' is none of"):
        inputs_of(FlowRecipe(), Start(), EvaluateConfig(baselines=("nothing",)))
