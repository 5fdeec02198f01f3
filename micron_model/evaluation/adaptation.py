"""Another protocol: a few labelled clips of a tested subject adapt a recognizer, and the subject's other clips test it.

For every subject the same clips are tested whatever number adapts, and under every recognizer, so that scores over the
number of clips and of steps compare. A subject that has no more clips than adapt at most is left out, and named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..recognizers.base import Examples, Recipe, Recognizer, name_of
from ..recognizers.fitting import logits_of
from .config import EvaluateConfig
from .predictions import Prediction, adapted_on
from .protocols import Fold
from .task import Task

#: Numbers of clips that adapt, of those that are fewer than the most.
CLIPS = (0, 1, 2, 4)


class Setting(NamedTuple):
    """How much adapts."""

    clips: int
    """Of the tested subject; 0 leaves the recognizer as it is."""
    steps: int

    @property
    def selection(self) -> str:
        """What a prediction says of it."""
        return adapted_on(self.clips, self.steps)


class Draw(NamedTuple):
    """Of one tested subject, as positions in the task."""

    few: tuple[int, ...]
    """In the order in which they are taken to adapt."""
    tested: tuple[int, ...]


def settings_of(config: EvaluateConfig) -> list[Setting]:
    """Those of a curve, from no clip on."""
    clips = [k for k in CLIPS if 0 < k < config.adapt] + [config.adapt]
    return [Setting(0, 0), *(Setting(k, steps) for k in clips for steps in config.adapt_steps)]


def draw(task: Task, fold: Fold, most: int, seed: int) -> list[Draw]:
    """Which clips of each tested subject adapt: at random, of a class that so far is the rarest among them.

    Subjects of no more than ``most`` clips give none.
    """
    of_subject: dict[str, list[int]] = {}
    for i in fold.test:
        of_subject.setdefault(task.expressions[i].subject, []).append(i)
    draws = []
    for subject, clips in of_subject.items():
        if len(clips) <= most:
            continue
        left = np.random.default_rng([seed, *subject.encode()]).permutation(clips).tolist()
        few: list[int] = []
        taken: Counter[str] = Counter()
        for _ in range(most):
            chosen = min(left, key=lambda i: taken[task.labels[i]])  # of equals the first
            left.remove(chosen)
            few.append(chosen)
            taken[task.labels[chosen]] += 1
        draws.append(Draw(tuple(few), tuple(sorted(left))))
    return draws


def without_clips(task: Task, recipe: Recipe, config: EvaluateConfig) -> list[str]:
    """Which subjects the protocol leaves out, in words.

    Raises:
        ValueError: the recipe cannot adapt, or no subject has more than ``config.adapt`` clips.
    """
    if type(recipe).adapt is Recipe.adapt:
        raise ValueError(
            f"adapt={config.adapt}: {name_of(recipe)} takes no gradient steps, so clips of a person cannot adapt it"
        )
    tested = {i for fold in task.folds for i in fold.test}
    counts = Counter(task.expressions[i].subject for i in tested)
    few = {subject: count for subject, count in counts.items() if count <= config.adapt}
    if len(few) == len(counts):
        raise ValueError(
            f"adapt={config.adapt}: of {len(counts)} tested subjects none has more clips than that, so none is left "
            f"to test; the most is {max(counts.values())}, give at most {max(counts.values()) - 1}"
        )
    if not few:
        return []
    named = ", ".join(f"{subject} ({count})" for subject, count in sorted(few.items()))
    return [
        f"{len(few)} of {len(counts)} subjects have no more than {config.adapt} clips and are left out: {named}"
    ]


def predict_adapted(
    recipe: Recipe,
    recognizer: Recognizer,
    examples: Examples,
    task: Task,
    fold: Fold,
    config: EvaluateConfig,
    *,
    seed: int,
    job_seed: int,
) -> list[Prediction]:
    """What a fitted recognizer says of the tested clips of each subject, adapted by every setting.

    Raises:
        ValueError: an adapted recognizer gives logits that are not finite.
    """
    rows = []
    for few, tested in draw(task, fold, config.adapt, job_seed):
        values = examples.at(tested).values
        for setting in settings_of(config):
            model = recognizer
            if setting.clips:
                model = recipe.adapt(
                    recognizer, examples.at(few[: setting.clips]), steps=setting.steps, seed=seed
                )
            logits = logits_of(
                model, values, embedded=examples.embedded, precision=recipe.inference_precision
            )
            for i, given, chosen in zip(tested, logits.tolist(), logits.argmax(1).tolist(), strict=True):
                e = task.expressions[i]
                if not all(map(math.isfinite, given)):
                    raise ValueError(
                        f"{e.subject}: {setting.steps} steps on {setting.clips} clips give logits that are not finite; "
                        "take fewer steps or a smaller rate"
                    )
                rows.append(
                    Prediction(
                        e.dataset, e.subject, e.name, task.labels[i], task.classes[chosen], tuple(given), fold.name,
                        job_seed, setting.selection,
                    )
                )  # fmt: skip
    return rows


def by_setting(rows: Sequence[Prediction], config: EvaluateConfig) -> dict[Setting, list[Prediction]]:
    """Predictions of each setting."""
    settings = settings_of(config)
    of_selection: dict[str, list[Prediction]] = {setting.selection: [] for setting in settings}
    for row in rows:
        of_selection[row.selection].append(row)
    return {setting: of_selection[setting.selection] for setting in settings}
