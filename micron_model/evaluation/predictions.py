"""Predictions: what every score is computed from, in one csv that can be read again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.databases.expressions import canonical_subject
from ..limits import read_csv
from ..plain_text import from_csv, in_csv, to_csv
from ..whole_file import write_whole

LEAKY = "LEAKY: best epoch on the test subjects"
"""How published scores are mostly made. Predictions so selected are a diagnostic; every output made of them says so."""

SELECTIONS = ("last", "inner", LEAKY)
"""How the epoch was chosen: the last one; the best on an inner split of the training subjects; the diagnostic."""

ADAPTED = "ADAPTED"
"""Begins the selection of predictions by another protocol (``adaptation``), after the last epoch."""
ANOTHER_PROTOCOL = (
    "Another protocol: labelled clips of each tested subject adapt the recognizer; such scores do not compare with "
    "those of subjects that are left out altogether"
)
_ADAPTED = re.compile(rf"{ADAPTED} on (\d+) labelled clips of the tested subject, (\d+) steps")

_BEFORE_LOGITS = ("dataset", "subject", "clip", "truth", "prediction")
_AFTER_LOGITS = ("fold", "seed", "selection")


@dataclass(frozen=True)
class Prediction:
    """What one run said of one clip that it was not trained on.

    Attributes:
        dataset: key of the dataset.
        subject: canonical, ``<dataset>/<number>``.
        clip: name, unique in the dataset.
        truth, prediction: names of classes.
        logits: one a class, in the order of ``Predictions.classes``.
        fold: name of the fold whose test side holds the clip.
        seed: of the run.
        selection: one of ``SELECTIONS``, or what :func:`adapted_on` gives.
    """

    dataset: str
    subject: str
    clip: str
    truth: str
    prediction: str
    logits: tuple[float, ...]
    fold: str
    seed: int
    selection: str


@dataclass(frozen=True)
class Predictions:
    """Predictions over all folds and seeds of one protocol, checked.

    Attributes:
        classes: names; their order is that of the logits and of every table.
        rows: counted from 1 in messages.

    Raises:
        ValueError: a class is a number or is named twice; there is no row; a row names an unknown class or selection,
            has logits that are not finite or whose highest is not the prediction, or a subject that is not canonical;
            a clip is predicted twice under one seed, or has two truths or two subjects; a subject is in two folds of
            one seed, so it was trained on while it was tested.
    """

    classes: tuple[str, ...]
    rows: tuple[Prediction, ...]

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        if not self.rows:
            raise ValueError("there is no prediction")
        first_rows: dict[tuple[str, str, int], int] = {}
        constants: dict[tuple[Any, ...], tuple[int, str]] = {}
        for number, row in enumerate(self.rows, 1):
            where = f"row {number} ({row.dataset} {row.clip}, seed {row.seed})"
            _check_row(row, self.classes, where)
            first = first_rows.setdefault((row.dataset, row.clip, row.seed), number)
            if first != number:
                raise ValueError(f"{where}: row {first} predicts the same clip under the same seed")
            for name, key, value in _constants(row):
                first, before = constants.setdefault((name, *key), (number, value))
                if value != before:
                    raise ValueError(f"{where}: {name} {value!r}, but {before!r} in row {first}")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({row.seed for row in self.rows}))

    @property
    def truths(self) -> dict[tuple[str, str], str]:
        """The true class of each (dataset, clip)."""
        return {(row.dataset, row.clip): row.truth for row in self.rows}


def _constants(row: Prediction) -> Iterator[tuple[str, tuple[Any, ...], str]]:
    """(what, of what, value): each may have one value only."""
    clip = (row.dataset, row.clip)
    yield "truth of this clip", clip, row.truth
    yield "subject of this clip", clip, row.subject
    yield f"fold of subject {row.subject}", (row.subject, row.seed), row.fold


def _check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes {', '.join(classes) or '(none)'}: at least two, each once, are needed")
    for name in classes:
        if not name or name.lstrip("-").isdigit():
            raise ValueError(f"class {name!r} is no name: numbers mean other classes in other databases")


def _check_row(row: Prediction, classes: Sequence[str], where: str) -> None:
    for name in ("dataset", "clip", "fold"):
        if not getattr(row, name):
            raise ValueError(f"{where}: {name} is empty")
    try:
        canonical = canonical_subject(row.dataset, row.subject)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if row.subject != canonical:
        raise ValueError(f"{where}: subject {row.subject!r} is not canonical; write {canonical!r}")
    for name in ("truth", "prediction"):
        if getattr(row, name) not in classes:
            raise ValueError(f"{where}: {name} {getattr(row, name)!r} is none of {', '.join(classes)}")
    if len(row.logits) != len(classes):
        raise ValueError(f"{where}: {len(row.logits)} logits for {len(classes)} classes")
    for name, value in zip(classes, row.logits, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{where}: logit_{name} is {value}; logits are finite numbers")
    if row.logits[classes.index(row.prediction)] < max(row.logits):
        best = classes[row.logits.index(max(row.logits))]
        raise ValueError(f"{where}: prediction {row.prediction!r}, but the highest logit is that of {best!r}")
    if row.selection not in SELECTIONS and not _ADAPTED.fullmatch(row.selection):
        raise ValueError(
            f"{where}: selection {row.selection!r} is none of {', '.join(map(repr, SELECTIONS))}"
        )


def adapted_on(clips: int, steps: int) -> str:
    """The selection of predictions of a recognizer that so many clips of the tested subject adapted."""
    return f"{ADAPTED} on {clips} labelled clips of the tested subject, {steps} steps"


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a csv with the columns dataset, subject, clip, truth, prediction, logit_<class>..., fold, seed, selection.

    Text that begins as a formula does has an apostrophe before it. Logits are written so that reading gives the same
    numbers. The file is there whole or not at all.

    Raises:
        RuntimeError: it cannot be written.
    """
    write_rows(path, predictions.classes, predictions.rows)


def write_rows(path: Path, classes: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """The same of rows that need not be of one protocol, and are not checked."""
    columns = [*_BEFORE_LOGITS, *(f"logit_{name}" for name in classes), *_AFTER_LOGITS]
    rows = [
        [
            *(in_csv(getattr(row, name)) for name in _BEFORE_LOGITS),
            *(repr(float(value)) for value in row.logits),
            *(in_csv(str(getattr(row, name))) for name in _AFTER_LOGITS),
        ]
        for row in predictions
    ]
    write_whole(path, to_csv([columns, *rows]))


def read_predictions(path: Path, classes: Sequence[str] | None = None) -> Predictions:
    """Read what :func:`write_predictions` wrote, or another program in that form.

    Args:
        path: a csv in UTF-8.
        classes: the classes it must have, in any order; those of its logit columns if not given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns are missing or unknown, a cell is not a number where one is needed, or what
            :class:`Predictions` refuses. The message names file, row and value; rows are counted without the header.
    """
    try:
        return Predictions(*read_rows(path, classes))
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def read_rows(
    path: Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[Prediction, ...]]:
    """Classes and rows of a csv as :func:`write_rows` writes it; raises as :func:`read_predictions`."""
    header, *lines = read_csv(path) or [[]]
    try:
        found = _classes_of(header)
        if classes is not None and set(found) != set(classes):
            raise ValueError(
                f"its classes are {', '.join(found)}; those of the task are {', '.join(classes)}"
            )
        return found, tuple(
            _parse(line, number, header, found) for number, line in enumerate(lines, 1) if line
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _classes_of(header: Sequence[str]) -> tuple[str, ...]:
    missing = [name for name in (*_BEFORE_LOGITS, *_AFTER_LOGITS) if name not in header]
    classes = tuple(name.removeprefix("logit_") for name in header if name.startswith("logit_"))
    if not classes:
        missing.append("logit_<class>")
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; the columns are {', '.join(header) or '(none)'}")
    known = {*_BEFORE_LOGITS, *_AFTER_LOGITS, *(f"logit_{name}" for name in classes)}
    unknown = [name for name in header if name not in known]
    if unknown or len(set(header)) != len(header):
        twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        raise ValueError(f"column {(unknown or twice)[0]!r} is {'not known' if unknown else 'there twice'}")
    return classes


def _parse(line: Sequence[str], number: int, header: Sequence[str], classes: Sequence[str]) -> Prediction:
    if len(line) != len(header):
        raise ValueError(f"row {number}: {len(line)} cells for {len(header)} columns")
    cells = dict(zip(header, line, strict=True))

    def read(name: str, kind: type[int] | type[float]) -> Any:
        try:
            return kind(cells[name])
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"row {number}: {name} {cells[name]!r} is not {what}") from None

    return Prediction(
        **{name: from_csv(cells[name]) for name in (*_BEFORE_LOGITS, "fold", "selection")},
        logits=tuple(read(f"logit_{name}", float) for name in classes),
        seed=read("seed", int),
    )
