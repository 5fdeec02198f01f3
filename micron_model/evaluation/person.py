"""A recognizer adapted to a person of whom a few clips are labelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ..data.databases.expressions import same_emotion
from ..data.databases.macro import load_of_person
from ..data.databases.prepared import FaceConfig, prepare
from ..plain_text import say
from ..recognizers.base import Examples, Recipe, Recognizer, recipe_class
from ..training.problems import report_problems


def adapt_to_person(
    recognizer: Recognizer,
    path: Path,
    *,
    steps: int,
    recipe: type[Recipe] | None = None,
    face: FaceConfig | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> Recognizer:
    """A copy that has taken a few steps on labelled clips of one person; what it was trained on says so.

    Args:
        recognizer: a fitted one.
        path: as ``macro.load_of_person`` takes it; the emotions are classes of the recognizer. An apex that is not
            listed is spotted.
        steps: of the gradient, each on all clips.
        recipe: that of a recognizer outside this package.
        face: how faces are cut.
        seed: of all that is random.
        console: where is said which clips are left out; standard error by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an emotion is no class of the recognizer, no clip can be used, the recognizer cannot be adapted, or
            a step diverges.
    """
    if steps < 1:
        raise ValueError(f"adapt_steps={steps}; at least 1 step is needed")
    console = console or Console(stderr=True)
    expressions, census = load_of_person(path)
    report_problems(census.dropped, console, "clips are left out")
    class_of = {e.emotion: _class_of(e.emotion, recognizer, path) for e in expressions}
    prepared = prepare(expressions, recognizer.clip_input, replace(face or FaceConfig(), spot_apex=True))
    report_problems(prepared.problems, console, "clips are left out")
    labels = torch.tensor([class_of[e.emotion] for e in prepared.expressions])
    few = Examples(prepared.values, labels, [e.subject for e in prepared.expressions])
    settings = (recipe or recipe_class(recognizer.config.recognizer))()
    adapted = settings.adapt(recognizer, few, steps=steps, seed=seed)
    counts = ", ".join(
        f"{name} {n}" for i, name in enumerate(adapted.classes) if (n := int((labels == i).sum()))
    )
    said = (
        f"adapted to a person by {steps} step{'s' * (steps > 1)} on {len(labels)} labelled "
        f"clip{'s' * (len(labels) > 1)} ({counts})"
    )
    adapted.config = replace(
        adapted.config, trained_on=f"{adapted.config.trained_on or 'an unknown set of clips'}; {said}"
    )
    say(console, said)
    return adapted


def _class_of(emotion: str, recognizer: Recognizer, path: Path) -> int:
    for position, name in enumerate(recognizer.classes):
        if same_emotion(name, emotion):
            return position
    raise ValueError(
        f"{path}: {emotion!r} is no class of the recognizer, which knows {', '.join(recognizer.classes)}"
    )
