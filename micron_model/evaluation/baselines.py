"""What a score has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..data.databases.expressions import Expression
from .predictions import Prediction
from .protocols import Fold


def majority_class(
    fold: Fold,
    expressions: Sequence[Expression],
    labels: Sequence[str],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """Predict, for each clip of the test side, the commonest class of the training side.

    The logits are the log of one more than the clips of each class; of equally common classes the first is taken.

    Args:
        fold: indices into ``expressions``.
        labels: the class of each expression.
        classes: their order is that of the logits.
        seed: what the rows say; the prediction does not depend on it.
    """
    counts = [sum(labels[i] == name for i in fold.train) for name in classes]
    commonest = classes[int(np.argmax(counts))]
    logits = tuple(math.log1p(count) for count in counts)
    return [
        Prediction(
            expressions[i].dataset,
            expressions[i].subject,
            expressions[i].name,
            labels[i],
            commonest,
            logits,
            fold.name,
            seed,
            "last",
        )
        for i in fold.test
    ]


def shuffled_labels(labels: Sequence[str], train: Sequence[int], seed: int) -> list[str]:
    """Labels permuted within the training side, to train a network that has nothing to learn.

    Those outside of ``train`` stay, so that it is tested against the truth. The same seed gives the same permutation.
    """
    shuffled = list(labels)
    order = np.random.default_rng(seed).permutation(len(train))
    for i, j in enumerate(order):
        shuffled[train[i]] = labels[train[j]]
    return shuffled
