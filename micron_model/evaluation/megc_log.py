"""Predictions as a log of the MEGC 2019 challenge.

A line ``<dataset> <subject>`` for each subject left out, then a line ``<clip> <truth> <prediction>`` for each of its
clips; 0 negative, 1 positive, 2 surprise; nothing else. We have not read the challenge's own instructions, a PDF: the
form is that of two logs which participants publish, STSTNet (``STSTNet_logfile.txt`` in christy1206/STSTNet) and
CapsuleNet (``result_log.csv`` in davidnvq/me_recognition). They differ only in how subjects of SMIC and SAMM are
written; ours are written as in the first.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from ..plain_text import visible
from ..whole_file import write_whole
from .predictions import LEAKY, Prediction, Predictions

LABELS = {"negative": 0, "positive": 1, "surprise": 2}

_SUBJECT_FORMS = {"casme2": "sub{:02d}", "smic": "s{:02d}", "samm": "{:03d}"}
"""Of the three databases of the challenge, in its order."""


def megc_log(predictions: Predictions, seed: int) -> str:
    """The log of the run of one seed.

    Raises:
        ValueError: the classes are not negative, positive and surprise; there is no such seed; a database was not in
            the challenge; or the epoch was chosen on the test subjects, which the form has no room to say.
    """
    if set(predictions.classes) != set(LABELS):
        raise ValueError(
            f"classes {', '.join(predictions.classes)}: the challenge has negative, positive and surprise only"
        )
    rows = [row for row in predictions.rows if row.seed == seed]
    if not rows:
        raise ValueError(f"seed {seed}: there are predictions of {', '.join(map(str, predictions.seeds))}")
    if any(row.selection == LEAKY for row in rows):
        raise ValueError(f"{LEAKY}: the log has no room to say so, and is not written")
    foreign = sorted({row.dataset for row in rows} - set(_SUBJECT_FORMS))
    if foreign:
        raise ValueError(f"dataset {foreign[0]!r}: the challenge has {', '.join(_SUBJECT_FORMS)}")
    lines = []
    for (dataset, subject), clips in groupby(
        sorted(rows, key=_order), key=lambda row: (row.dataset, row.subject)
    ):
        lines.append(f"{dataset} {_SUBJECT_FORMS[dataset].format(_number(subject))}")
        lines += [f"{_clip(row)} {LABELS[row.truth]} {LABELS[row.prediction]}" for row in clips]
    return "\n".join(lines) + "\n"


def write_megc_log(path: Path, predictions: Predictions, seed: int) -> None:
    """Write :func:`megc_log` to ``path``."""
    write_whole(path, megc_log(predictions, seed))


def _number(subject: str) -> int:
    return int(subject.rsplit("/", 1)[1])


def _clip(row: Prediction) -> str:
    return re.sub(r"\s", "_", visible(row.clip.rsplit("/", 1)[-1]))


def _order(row: Prediction) -> tuple[int, int, str]:
    return list(_SUBJECT_FORMS).index(row.dataset), _number(row.subject), row.clip
