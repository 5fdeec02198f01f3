"""The card of a saved model: what it is, what it has learned from, its scores and its limits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from micron_kernels import __version__

from .plain_text import visible

#: In the first line after the metadata of a card of ours. Without it a card is a person's, and is left alone.
_OURS = (
    "<!-- Written with the model, and again whenever it is saved. Without this line it is left as it is. -->"
)

_LIMITS = """\
- It is no lie detector, and says nothing of what a person feels or means.
- It knows the faces, cameras and light of what it was trained on. On others it is as good as it proves to be there.
- A score is of the protocol under which it was made: `micron evaluate` tests on subjects that no training saw.
- What is said here of its training is the word of whoever trained it. A model that has seen the subjects that it is
  tested on gives a score that means nothing; `corpus.json` beside the weights lists the clips of a pre-training.
"""


@dataclass(frozen=True)
class Training:
    """What a card says of how a model came to be; what is not known is said not to be."""

    data: str = ""
    """What it was trained on, in words."""
    subjects: Sequence[str] | None = None
    """Everyone whom it was trained on, by name."""
    clips: Sequence[str] | None = None
    """Every clip of a pre-training."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the training."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What it, or networks that were trained as it was, reached in an evaluation."""


def digest(names: Sequence[str]) -> str:
    """SHA-256 of the names, each once, sorted, a line each: the same for everyone who has the same names."""
    return hashlib.sha256("\n".join(sorted(set(names))).encode(errors="surrogateescape")).hexdigest()


def is_ours(path: Path) -> bool:
    """Whether a card was written here, and by nobody changed into one of theirs; also where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _OURS in file.read(2000)
    except FileNotFoundError:
        return True


def _as_code(found: Mapping[str, Any]) -> str:
    """What others named, in a block of code: no line of JSON ends one, and nothing in it is markup."""
    text = json.dumps(found, indent=2, ensure_ascii=False, default=str)
    return f"```json\n{visible(text, 10**5, keep=chr(10))}\n```"


def _names(what: str, names: Sequence[str]) -> str:
    return f"{len(set(names))} {what}; SHA-256 of their names, sorted, a line each: `{digest(names)}`.\n"


def write_card(kind: str, config: Any, parameters: int, training: Training) -> str:
    """The text of a card.

    Args:
        kind: the class of the model.
        config: its settings, a dataclass.
        parameters: how many numbers it is made of.
        training: how it came to be.
    """
    sections = [
        "---\nlibrary_name: micron-kernels\nlicense: mit\ntags:\n- micro-expression\n---\n" + _OURS,
        f"# {kind}\n\n{parameters:,} parameters, saved by micron-kernels {__version__}.\n",
        "## What it has learned from\n\n" + _learned_from(training),
        "## Scores\n\n"
        + (_as_code(training.scores) if training.scores else "None is known of this model.\n"),
        "## Limits\n\n" + _LIMITS,
        "## Settings\n\n" + _as_code(asdict(config)),
    ]
    if training.settings:
        sections.append("Of its training:\n\n" + _as_code(training.settings))
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _learned_from(training: Training) -> str:
    said = []
    if training.data:
        said.append(_as_code({"data": training.data}) + "\n")
    if training.subjects is not None:
        said.append(_names("subjects", training.subjects))
    if training.clips:
        said.append(_names("clips of a pre-training", training.clips))
    return "\n".join(said) or "This is not known of it.\n"
