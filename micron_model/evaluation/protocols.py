"""Which clips are trained on and which are tested on: folds that share no subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass

import numpy as np

from ..data.databases.expressions import Census, Expression, canonical_subject

_CANDIDATES = 200
"""Inner splits that are drawn, of which the best stratified is taken."""


@dataclass(frozen=True)
class Fold:
    """One division of a list of expressions; it cannot be made with a subject on both sides.

    Attributes:
        name: of what is left out: a subject or a dataset.
        train, test: indices into ``expressions``, ascending.

    Raises:
        ValueError: what :func:`check_fold` refuses.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    expressions: InitVar[Sequence[Expression]]

    def __post_init__(self, expressions: Sequence[Expression]) -> None:
        check_fold(self, expressions)


def check_fold(fold: Fold, expressions: Sequence[Expression]) -> None:
    """To be called again right before training, on the list that is trained on.

    Subjects are made canonical anew from the text of the database, so that "sub01" and "1" are one.

    Raises:
        ValueError: a subject is on both sides, a side is empty, or an index is there twice or out of range.
    """
    for side, indices in (("training", fold.train), ("test", fold.test)):
        if not indices:
            raise ValueError(f"fold {fold.name}: the {side} side is empty")
        if len(set(indices)) != len(indices):
            raise ValueError(f"fold {fold.name}: an index is twice on the {side} side")
        if min(indices) < 0 or max(indices) >= len(expressions):
            raise ValueError(
                f"fold {fold.name}: indices {min(indices)} to {max(indices)} on the {side} side, of a list of "
                f"{len(expressions)} expressions"
            )
    trained = {_subject(expressions[i]): expressions[i].subject_text for i in fold.train}
    for i in fold.test:
        subject = _subject(expressions[i])
        if subject in trained:
            raise ValueError(
                f"fold {fold.name}: subject {subject} is on both sides, as {trained[subject]!r} in training and as "
                f"{expressions[i].subject_text!r} in test; a subject belongs to one side"
            )


def _subject(expression: Expression) -> str:
    return canonical_subject(expression.dataset, expression.subject_text)


def _subject_order(subject: str) -> tuple[str, int]:
    dataset, number = subject.rsplit("/", 1)
    return dataset, int(number)


def _leave_out(name: str, left_out: Sequence[bool], expressions: Sequence[Expression]) -> Fold:
    test = tuple(i for i, out in enumerate(left_out) if out)
    train = tuple(i for i, out in enumerate(left_out) if not out)
    return Fold(name, train, test, expressions)


def loso(expressions: Sequence[Expression]) -> list[Fold]:
    """Leave one subject out: a fold a subject, named by it, by dataset and number.

    Raises:
        ValueError: there are fewer than two subjects.
    """
    subjects = [_subject(expression) for expression in expressions]
    distinct = sorted(set(subjects), key=_subject_order)
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} subjects; to leave one out, two or more are needed")
    return [_leave_out(name, [subject == name for subject in subjects], expressions) for name in distinct]


def cde(expressions: Sequence[Expression]) -> list[Fold]:
    """Composite database evaluation of MEGC 2019: leave one subject out over all datasets together (68 subjects).

    Raises:
        ValueError: there is one dataset only.
    """
    datasets = sorted({expression.dataset for expression in expressions})
    if len(datasets) < 2:
        raise ValueError(
            f"datasets {', '.join(datasets) or '(none)'}: a composite has two or more; loso takes one"
        )
    return loso(expressions)


def hde(expressions: Sequence[Expression]) -> list[Fold]:
    """Holdout-database evaluation: train on two datasets, test on the third; three folds, named by what is tested.

    Raises:
        ValueError: there are not three datasets.
    """
    datasets = sorted({expression.dataset for expression in expressions})
    if len(datasets) != 3:
        raise ValueError(f"datasets {', '.join(datasets) or '(none)'}: this protocol takes three")
    return [_leave_out(name, [e.dataset == name for e in expressions], expressions) for name in datasets]


def training_of_parts(folds: Sequence[Fold], expressions: Sequence[Expression]) -> str:
    """What the scores of single datasets come from, in words; two variants of them go by one name in papers.

    Empty where no fold is, or all are of one dataset.
    """
    datasets = {expression.dataset for expression in expressions}
    if len(datasets) < 2 or not folds:
        return ""
    trained = [{expressions[i].dataset for i in fold.train} for fold in folds]
    tested = [{expressions[i].dataset for i in fold.test} for fold in folds]
    if all(sides[0].isdisjoint(sides[1]) for sides in zip(trained, tested, strict=True)):
        return "Trained on the other datasets."
    if all(len(side) > 1 for side in trained):
        return (
            "Trained on the composite, the tested subject left out: not the scores of a network that is trained on "
            "that dataset alone, which papers print under the same name."
        )
    if trained == tested:
        return "Trained on that dataset alone, the tested subject left out."
    return "Trained on the composite in some folds, on one dataset in others."


def inner_split(
    expressions: Sequence[Expression],
    labels: Sequence[str],
    train: Sequence[int],
    *,
    share: float = 0.2,
    seed: int = 0,
) -> Fold:
    """Divide the training side of a fold again, to choose an epoch without the test subjects.

    Of the subjects of ``train``, ``share`` (two or more) are held out. Of 200 such draws, the one is taken whose
    clips of each class are nearest to ``share`` of that class.

    Args:
        expressions: the whole list.
        labels: the class of each.
        train: indices of the training side.
        share: of its subjects, in (0, 0.5].
        seed: the same seed gives the same split.

    Returns:
        A fold named ``"inner"`` with indices into ``expressions``; its test side is for choosing.

    Raises:
        ValueError: there are fewer than four subjects, or ``share`` is out of range.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share={share}; it must be in (0, 0.5]")
    subjects = sorted({_subject(expressions[i]) for i in train}, key=_subject_order)
    if len(subjects) < 4:
        raise ValueError(
            f"{len(subjects)} subjects to train on; an inner split needs 4, two a side: take the last epoch instead"
        )
    classes = sorted({labels[i] for i in train})
    counts = np.zeros((len(subjects), len(classes)))
    for i in train:
        counts[subjects.index(_subject(expressions[i])), classes.index(labels[i])] += 1
    rng = np.random.default_rng(seed)
    held = max(2, round(share * len(subjects)))
    draws = [rng.permutation(len(subjects))[:held] for _ in range(_CANDIDATES)]
    wanted = share * counts.sum(0)
    distances = [np.abs((counts[draw].sum(0) - wanted) / counts.sum(0)).sum() for draw in draws]
    chosen = {subjects[i] for i in draws[int(np.argmin(distances))]}
    return Fold(
        "inner",
        tuple(i for i in train if _subject(expressions[i]) not in chosen),
        tuple(i for i in train if _subject(expressions[i]) in chosen),
        expressions,
    )


def check_census(censuses: Sequence[Census], *, allow_differences: bool = False) -> list[str]:
    """Refuse datasets that are not what their authors state.

    Returns:
        What is to be shown with the scores: clips that are known to be missing, and, only if ``allow_differences``, a
        line a dataset that differs.

    Raises:
        ValueError: a census differs, and that was not allowed.
    """
    lines = [
        f"The census of {census.dataset} differs: {'; '.join(census.differences)}"
        for census in censuses
        if census.differences
    ]
    if lines and not allow_differences:
        raise ValueError(
            f"{'. '.join(lines)}. Scores would not compare with others; --allow-differences runs it anyway"
        )
    return [f"{census.dataset}: {gap}" for census in censuses for gap in census.gaps] + lines
