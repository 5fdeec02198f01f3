"""What a model was pre-trained on, and whether that holds subjects it is tested on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...addresses import Address
from ...limits import read_json
from ...whole_file import write_whole
from .expressions import Expression, canonical_subject

if TYPE_CHECKING:
    from ..clips.frames import Clip

FILE = "corpus.json"
#: How the names of the datasets' folders are written.
_MARKS = {
    "casme2": re.compile(r"casme[\W_]*(2|ii)(?!\d|i)"),
    "samm": re.compile(r"samm"),
    "smic": re.compile(r"smic"),
    "casme3": re.compile(r"cas\W?me\W*(3|iii)|part_a\b|part_a_me"),
}
_SUBJECT = re.compile(r"(sub|subject|spno|s)?[\W_]*\d+(?=_|$)")


@dataclass(frozen=True)
class Corpus:
    """The clips of a pre-training, by their paths; None if they are not known."""

    clips: tuple[str, ...] | None

    @classmethod
    def of(cls, data: Sequence[Clip] | Sequence[str]) -> Corpus:
        """That of clips, or of shards: theirs stands in ``plan.json`` beside them, where they are local."""
        shards = [x for x in data if isinstance(x, str)]
        if any(isinstance(shard, Address) for shard in shards):
            return cls(None)
        names = {x.name for x in data if not isinstance(x, str)}
        for plan in {Path(shard).parent / "plan.json" for shard in shards}:
            try:
                names.update(_clips(plan))
            except (OSError, ValueError):
                return cls(None)
        return cls(tuple(sorted(names)))

    @classmethod
    def read(cls, model: str | Path) -> Corpus:
        """That of a model's folder; unknown where the folder does not say."""
        try:
            return cls(tuple(_clips(Path(model) / FILE)))
        except (OSError, ValueError):
            return cls(None)

    def write(self, folder: Path) -> None:
        write_whole(folder / FILE, json.dumps({"clips": self.clips}, indent=0))

    def overlap(self, expressions: Sequence[Expression]) -> list[str]:
        """Canonical subjects of ``expressions`` that the corpus may hold, ascending.

        A clip of the corpus is of a dataset if its path names it, and of the subject that the path names below; of
        all subjects if it names none. One that ends in the folders of an expression is that expression's.
        """
        subjects = {expression.subject for expression in expressions}
        tails = {_tail(str(expression.frames[0][1].parent)): expression.subject for expression in expressions}
        found: set[str] = set()
        for clip in self.clips or ():
            if _tail(clip) in tails:
                found.add(tails[_tail(clip)])
            for dataset in {subject.split("/")[0] for subject in subjects}:
                named = _subjects(clip, dataset)
                if named is not None:
                    found |= {
                        s for s in subjects if s in named or (not named and s.startswith(f"{dataset}/"))
                    }
        return sorted(found)


def numbered_subject(text: str) -> int | None:
    """The number of a subject that is written as databases write one: 1, "01", "sub01", "spNO.1"."""
    match = _SUBJECT.fullmatch(text.strip().lower())
    return int(re.findall(r"\d+", match[0])[-1]) if match else None


def _clips(path: Path) -> list[str]:
    """Raises OSError or ValueError where the file does not list names of clips."""
    found = read_json(path)
    clips = found.get("clips") if isinstance(found, dict) else None
    if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
        raise ValueError(f"{path}: lists no clips")
    return clips


def _tail(path: str) -> str:
    return "/".join(re.split(r"[\\/]", path)[-2:]).lower()


def _subjects(clip: str, dataset: str) -> set[str] | None:
    """What a path may name as the subject, below the folder that names the dataset; None if none names it."""
    parts = [part.lower() for part in re.split(r"[\\/]", clip)]
    marked = [i for i, part in enumerate(parts) if dataset in _MARKS and _MARKS[dataset].search(part)]
    if not marked:
        return None
    matches = [_SUBJECT.match(part) for part in parts[marked[0] + 1 :]]
    return {canonical_subject(dataset, match[0]) for match in matches if match}
