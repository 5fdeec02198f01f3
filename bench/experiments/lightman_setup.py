"""What the experiments with lightman share: look-alikes, the small μ-BERT that all arms start from, and the arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.data.databases.prepared import FaceConfig
from micron_model.evaluation.macro import with_macro
from micron_model.evaluation.task import Task, load_task
from micron_model.recognizers import Examples, Recipe, Start
from micron_model.recognizers.lightman import LightmanRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

OUT = Path(__file__).parents[2] / "out/experiments/lightman"
TRAINED = 12
MACRO_PEOPLE = 10
#: Each person shows each of the three classes so often, once or twice over.
_EACH = {"happiness": 2, "disgust": 1, "repression": 1, "surprise": 2}
CLIPS_EACH = sum(_EACH.values())
#: Half the side and the width of the preset tiny, and half its depth: hundreds of trainings on one CPU thread.
SIDE = 32
SIZE: dict[str, Any] = {
    "image_size": SIDE,
    "width": 64,
    "depth": 2,
    "decoder_width": 32,
    "decoder_depth": 1,
    "tied_start": True,
}
#: Passes over the 72 clips of the whole training side.
EPOCHS = 6
_PLAIN = MicronBERTRecipe(epochs=EPOCHS, batch_size=6, learning_rate=2e-3)


def _lightman(**settings: Any) -> LightmanRecipe:
    return LightmanRecipe(wrapped=_PLAIN, **settings)


PLAIN, BOTH = "fine-tuned", "both, first order"
ARMS: dict[str, Recipe] = {
    PLAIN: _PLAIN,
    "one level, contrastive": _lightman(inner_steps=0),
    "two levels, first order": _lightman(order="first"),
    "two levels, second order": _lightman(),
    BOTH: _lightman(order="first"),
    "both, second order": _lightman(),
}
_ALIGNED = ("one level, contrastive", BOTH, "both, second order")


class Side(NamedTuple):
    train: Examples
    test: Examples


def with_passes(recipe: Recipe, passes: int) -> Recipe:
    if isinstance(recipe, LightmanRecipe):
        return replace(recipe, wrapped=replace(recipe.wrapped, epochs=passes))
    assert isinstance(recipe, MicronBERTRecipe)
    return replace(recipe, epochs=passes)


def start() -> Start:
    torch.manual_seed(0)
    return start_from(MicronBERT(preset("tiny", **SIZE)).eval(), Start().corpus)


def task(name: str, people: int, times: int = 1) -> Task:
    """Look-alikes under light, head motion, compression and noise ("medium"), and macro-expressions beside them."""
    for dataset, folder, count, each in (
        ("casme2", name, people, times),
        ("macro", "macro", MACRO_PEOPLE, 1),
    ):
        if not (OUT / folder / "LOOKALIKE.txt").exists():
            counts = {emotion: clips * each * count for emotion, clips in _EACH.items()}
            config = LookalikeConfig(
                subjects=count, counts=counts, side=64, difficulty="medium", quirks=False
            )
            make_lookalike(dataset, OUT / folder, config)
    quiet, face, cache = Console(quiet=True), FaceConfig(detect=False), OUT / "cache"
    found = load_task(
        "casme2", OUT / name, OnsetApex(SIDE), scheme="3", face=face, cache=cache, allow_differences=True,
        console=quiet,
    )  # fmt: skip
    return with_macro(found, OUT / "macro", OnsetApex(SIDE), face=face, cache=cache, console=quiet)


def examples_of(data: Task) -> Examples:
    return data.examples(LightmanRecipe(macro=OUT / "macro"), start())


def people_of(examples: Examples, seed: int) -> list[str]:
    """All, in an order that is another for each seed."""
    return np.random.default_rng(seed).permutation(sorted(set(examples.subjects))).tolist()


def of_people(examples: Examples, people: list[str]) -> Examples:
    return examples.at([i for i, subject in enumerate(examples.subjects) if subject in people])


def seen_by(arm: str, train: Examples) -> Examples:
    """What it learns from: beside macro-expressions or not."""
    return train if arm in _ALIGNED else train._replace(macro=None)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_row(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print({name: value for name, value in row.items() if name != "confusions"}, flush=True)
