"""Macro-expressions beside a task: whose classes they have, that they show nobody tested, and who is given them."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from lookalikes import tiny_lookalike
from micron_model import MicronBERT
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.prepared import FaceConfig
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate
from micron_model.evaluation.macro import with_macro
from micron_model.evaluation.task import finetune, load_task
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

QUIET = Console(quiet=True)
INPUT = OnsetApex(32)
FACE = FaceConfig(detect=False)


@dataclass
class Asking(MicronBERTRecipe):
    """μ-BERT, which learns nothing, and keeps what it was given."""

    name = "asking"
    macro: Path | None = None

    def settings(self):
        return {}

    def learn(self, recognizer, train, seed, on_epoch):
        SEEN.append(train)


SEEN = []


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    return (
        tiny_lookalike("casme2", root / "micro", quirks=False, side=16),
        tiny_lookalike("macro", root / "wide", quirks=False, side=16, clips=9),
    )


@pytest.fixture(scope="module")
def task(trees):
    return load_task("casme2", trees[0], INPUT, face=FACE, allow_differences=True, console=QUIET)


def test_classes_are_those_of_the_task_and_what_one_side_alone_knows_is_named(task, trees):
    said = Console(file=io.StringIO(), width=10_000)
    found = with_macro(task, trees[1], INPUT, face=FACE, console=said)
    macro = found.macro[INPUT.key]
    assert macro.values.shape == (15, 2, 3, 32, 32)
    assert macro.labels.bincount().tolist() == [3] * 5
    assert set(macro.subjects) == {"macro/person01", "macro/person02", "macro/person03"}
    about = found.about["macro-expressions"]
    assert "left out: anger 3, fear 3, sadness 3, contempt 3; classes that they do not show: none" in about
    assert about in said.file.getvalue()
    assert "reading macro-expressions 27/27" in said.file.getvalue()
    of_three = task._replace(scheme="3", classes=("negative", "positive", "surprise"))
    three = with_macro(of_three, trees[1], INPUT, face=FACE, console=QUIET)
    assert three.macro[INPUT.key].labels.bincount().tolist() == [18, 3, 3]  # the rest are others


def test_emotions_of_no_class_and_tested_subjects_are_refused(task, trees, tmp_path):
    rows = list(csv.reader((trees[1] / "macro.csv").read_text().splitlines()))[1:]

    def listed(subject, emotion):
        path = tmp_path / "list.csv"
        path.write_text(f"clip,subject,emotion\n{trees[1] / rows[0][0]},{subject},{emotion}\n")
        return path

    with pytest.raises(
        ValueError, match=r"none of the 1 macro-expressions \(pride 1\) has a class of scheme 'casme2-5'"
    ):
        with_macro(task, listed("anna", "pride"), INPUT, face=FACE, console=QUIET)
    leak = listed("sub01", "fear"), listed("sub01", "disgust")
    with pytest.raises(
        ValueError, match=r"may show 1 of the subjects that are tested: casme2/1\. Leave them out"
    ):
        with_macro(task, leak[1], INPUT, face=FACE, console=QUIET)
    stamped = with_macro(task, leak[1], INPUT, face=FACE, allow_overlap=True, console=QUIET)
    assert "casme2/1" in stamped.stamps[-1]
    nobody_tested = with_macro(task._replace(folds=[]), leak[1], INPUT, face=FACE, console=QUIET)
    assert nobody_tested.stamps == task.stamps
    assert "repression, surprise, others" in nobody_tested.about["macro-expressions"]


def test_a_recipe_that_asks_is_given_them_in_every_fold_and_in_finetuning(
    task, trees, tmp_path, small_config
):
    recipe, start = Asking(macro=trees[1]), start_from(MicronBERT(small_config).eval(), Corpus(()))
    config = EvaluateConfig(seeds=1, shuffled=False, baselines=())
    with pytest.raises(
        ValueError, match="but the task has no macro-expressions of the input 'onset and apex, 32"
    ):
        evaluate(task, recipe, start, config, tmp_path, workers=1, console=QUIET)
    with_them = with_macro(task, trees[1], INPUT, face=FACE, console=QUIET)
    SEEN.clear()
    evaluate(with_them, recipe, start, config, tmp_path / "out", workers=1, console=QUIET)
    finetune(with_them, recipe, start)
    assert [len(t.labels) for t in SEEN] == [*(len(f.train) for f in task.folds), len(task.labels)]
    assert all(train.macro is with_them.macro[INPUT.key] for train in SEEN)
    relabelled = with_them.macro[INPUT.key]
    other = with_them._replace(macro={INPUT.key: relabelled._replace(labels=relabelled.labels.flip(0))})
    with pytest.raises(ValueError, match="holds another evaluation: model was"):
        evaluate(other, recipe, start, config, tmp_path / "out", workers=1, console=QUIET)
