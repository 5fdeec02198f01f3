"""Scores of predictions: one pooled confusion matrix over all folds, never a mean over folds.

Rows of a confusion matrix are the truth, columns the prediction. With TP_c the diagonal, n_c the row sum and m_c the
column sum of class c:

    F1_c = 2 TP_c / (n_c + m_c)        UF1 = mean of F1_c
    recall_c = TP_c / n_c              UAR = mean of recall_c        accuracy = Σ TP_c / N

(See et al., MEGC 2019). The mean is over the classes that have true samples: one without is not counted, and named.
One that has some and is never predicted counts with F1 0.

F1 is the same for a matrix and its transpose, recall is not: with the axes swapped, UF1 is right and "UAR" is the mean
precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .predictions import ADAPTED, ANOTHER_PROTOCOL, LEAKY, Prediction, Predictions

MIN_SEEDS = 5
"""With fewer runs than this, mean and sd say little; every output then says so."""

LEVEL = 0.95
"""Of bootstrap intervals."""


def confusion_matrix(truth: Sequence[str], prediction: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Counts (C, C), int64: rows truth, columns prediction, in the order of ``classes``."""
    position = {name: i for i, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, ([position[name] for name in truth], [position[name] for name in prediction]), 1)
    return matrix


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class (..., C) of matrices (..., C, C); NaN where a class has no true sample."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    return np.where(true > 0, 2 * hits / np.maximum(true + predicted, 1), np.nan)


def recalls(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class (..., C) of matrices (..., C, C); NaN where a class has no true sample."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true = confusion.sum(-1)
    return np.where(true > 0, hits / np.maximum(true, 1), np.nan)


def _mean_over_present(values: np.ndarray) -> np.ndarray:
    """Over the last axis, NaN left out; NaN where there is nothing else."""
    present = np.isfinite(values)
    total, count = np.where(present, values, 0).sum(-1), present.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def uf1(confusion: np.ndarray) -> np.ndarray:
    """Unweighted F1 of matrices (..., C, C); NaN for one without samples."""
    return _mean_over_present(f1_scores(confusion))


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall of matrices (..., C, C); NaN for one without samples."""
    return _mean_over_present(recalls(confusion))


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of correct samples of matrices (..., C, C); NaN for one without samples."""
    hits, total = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1))
    return np.where(total > 0, hits / np.maximum(total, 1), np.nan)


def resample_subjects(confusions: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap over subjects: sums (R, ...) of as many subjects as there are, drawn with replacement.

    Args:
        confusions: (S, ...), the matrices of each subject.
        resamples: R.
        seed: of the draws.
    """
    subjects = len(confusions)
    times_drawn = np.random.default_rng(seed).multinomial(
        subjects, np.full(subjects, 1 / subjects), size=resamples
    )
    return np.tensordot(times_drawn, confusions, axes=1)


@dataclass(frozen=True)
class Measure:
    """One measure over the seeds.

    Attributes:
        per_seed: its value for each seed.
        interval: from low to high; bootstrap over subjects of the mean over seeds. Of each resample, a class that has
            no true sample in it is not counted.
    """

    per_seed: tuple[float, ...]
    interval: tuple[float, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_seed))

    @property
    def sd(self) -> float:
        """Over the seeds, of a sample (n - 1); NaN for one seed."""
        return float(np.std(self.per_seed, ddof=1)) if len(self.per_seed) > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.sd:.3f}" if len(self.per_seed) > 1 else "")

    def as_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd, "per_seed": self.per_seed, "interval": self.interval}

    @property
    def interval_text(self) -> str:
        return f"[{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass(frozen=True)
class PartScore:
    """The scores of all rows, or of those of one dataset.

    Attributes:
        name: ``"Full"`` or the dataset.
        subjects: how many.
        counts: clips of each class.
        confusion: (K, C, C), one matrix a seed.
    """

    name: str
    subjects: int
    counts: dict[str, int]
    confusion: np.ndarray
    uf1: Measure
    uar: Measure
    accuracy: Measure

    @property
    def clips(self) -> int:
        return sum(self.counts.values())

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes without a true sample here: they are not counted."""
        return tuple(name for name, count in self.counts.items() if not count)

    @property
    def class_f1(self) -> dict[str, float]:
        """Mean over seeds; NaN for absent classes."""
        means = _mean_over_present(f1_scores(self.confusion).T)
        return dict(zip(self.counts, means.tolist(), strict=True))

    @property
    def class_recall(self) -> dict[str, float]:
        """Mean over seeds; NaN for absent classes."""
        means = _mean_over_present(recalls(self.confusion).T)
        return dict(zip(self.counts, means.tolist(), strict=True))

    def as_json(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "subjects": self.subjects,
            "uf1": self.uf1.as_json(),
            "uar": self.uar.as_json(),
            "accuracy": self.accuracy.as_json(),
            "counts": self.counts,
            "f1": self.class_f1,
            "recall": self.class_recall,
            "confusion": self.confusion,
        }

    @property
    def always_the_largest(self) -> tuple[str, np.ndarray]:
        """The largest class, and the confusion matrix (C, C) of always predicting it."""
        counts = np.array(list(self.counts.values()))
        largest = int(counts.argmax())
        matrix = np.zeros((len(counts), len(counts)), np.int64)
        matrix[:, largest] = counts
        return list(self.counts)[largest], matrix


@dataclass(frozen=True)
class Score:
    """What predictions are worth.

    Attributes:
        full: all rows, pooled over all folds.
        selections: how epochs were chosen.
        parts: of the same run, by dataset; one if there is one dataset.
        stamps: what must be said wherever these scores are shown.
    """

    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: int
    selections: tuple[str, ...]
    full: PartScore
    parts: dict[str, PartScore]
    stamps: tuple[str, ...]

    @property
    def shown(self) -> list[PartScore]:
        """Full, and the parts where they differ from it."""
        return [self.full, *(self.parts.values() if len(self.parts) > 1 else ())]

    def as_json(self) -> dict[str, Any]:
        return {
            "stamps": self.stamps,
            "classes": self.classes,
            "seeds": self.seeds,
            "folds": self.folds,
            "epochs": self.selections,
            "parts": {part.name: part.as_json() for part in self.shown},
        }


def score(predictions: Predictions, *, resamples: int = 1000, seed: int = 0) -> Score:
    """Full and each part: UF1, UAR and accuracy for each seed, mean ± sd, and an interval over subjects.

    Args:
        predictions: of all folds.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    rows, seeds = predictions.rows, predictions.seeds
    parts = {
        name: _part(
            name, [row for row in rows if row.dataset == name], predictions.classes, seeds, resamples, seed
        )
        for name in sorted({row.dataset for row in rows})
    }
    return Score(
        classes=predictions.classes,
        seeds=seeds,
        folds=len({row.fold for row in rows}),
        selections=tuple(sorted({row.selection for row in rows})),
        full=_part("Full", rows, predictions.classes, seeds, resamples, seed),
        parts=parts,
        stamps=tuple(stamps(predictions)),
    )


def stamps(predictions: Predictions) -> list[str]:
    """What must be said wherever scores of these predictions are shown."""
    rows, seeds = predictions.rows, predictions.seeds
    lines = []
    selections = sorted({row.selection for row in rows})
    if LEAKY in selections:
        lines.append(f"{LEAKY}. This is a diagnostic of what such a choice is worth, not a result")
    if any(selection.startswith(ADAPTED) for selection in selections):
        lines.append(ANOTHER_PROTOCOL)
    if len(selections) > 1:
        lines.append(f"Epochs were chosen in several ways: {', '.join(selections)}")
    if len(seeds) < MIN_SEEDS:
        lines.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)}: fewer than {MIN_SEEDS}")
    clips = len(predictions.truths)
    for seed in seeds:
        covered = sum(row.seed == seed for row in rows)
        if covered < clips:
            lines.append(f"Seed {seed} covers {covered} of {clips} clips")
    return lines


def _part(
    name: str,
    rows: Sequence[Prediction],
    classes: tuple[str, ...],
    seeds: tuple[int, ...],
    resamples: int,
    bootstrap_seed: int,
) -> PartScore:
    subjects = sorted({row.subject for row in rows})
    confusions = np.zeros((len(subjects), len(seeds), len(classes), len(classes)), np.int64)
    subject_at, seed_at, class_at = (
        {key: i for i, key in enumerate(keys)} for keys in (subjects, seeds, classes)
    )
    for row in rows:
        cell = (subject_at[row.subject], seed_at[row.seed], class_at[row.truth], class_at[row.prediction])
        confusions[cell] += 1
    # A run that was stopped may have no row of this part under some seed.
    confusions = confusions[:, confusions.sum((0, 2, 3)) > 0]
    confusion = confusions.sum(0)
    resampled = resample_subjects(confusions, resamples, bootstrap_seed)

    def measure(function: Callable[[np.ndarray], np.ndarray]) -> Measure:
        means = _mean_over_present(function(resampled))
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Measure(tuple(function(confusion).tolist()), (float(low), float(high)))

    truths = {(row.dataset, row.clip): row.truth for row in rows}
    counts = {name: sum(truth == name for truth in truths.values()) for name in classes}
    return PartScore(name, len(subjects), counts, confusion, measure(uf1), measure(uar), measure(accuracy))
