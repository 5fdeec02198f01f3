"""The composite of MEGC 2019: 442 clips of 68 subjects from CASME II, SAMM and SMIC (See et al., FG 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .casme2 import clip_name as casme2_clip
from .casme2 import load as load_casme2
from .classes import SCHEMES
from .expressions import Census, Dataset, Expression, Official
from .folders import subfolders
from .listed import Unusable, collect
from .samm import clip_name as samm_clip
from .samm import load as load_samm
from .sheets import Row, find_sheet, read_tables
from .smic import clip_name as smic_clip
from .smic import load as load_smic

LABELS = {"0": "negative", "1": "positive", "2": "surprise"}
OFFICIAL = Official(68, {"negative": 250, "positive": 109, "surprise": 83})
PARTS = {
    "casme2": Official(24, {"negative": 88, "positive": 32, "surprise": 25}),
    "samm": Official(28, {"negative": 92, "positive": 26, "surprise": 15}),
    "smic": Official(16, {"negative": 70, "positive": 51, "surprise": 43}),
}
_FOLDERS = {"casme2": r"casme[ _-]?(2|ii)", "samm": "samm", "smic": r"smic([ _-]?hs)?"}
_CLIP_NAMES: dict[str, Callable[[str, str], str]] = {
    "casme2": casme2_clip,
    "samm": samm_clip,
    "smic": lambda _subject, filename: smic_clip(filename),
}


def _read_rows(path: Path) -> list[Row]:
    """Raises FileNotFoundError or ValueError if it cannot be read, or a row has not four cells."""
    rows = []
    for number, cells in enumerate(next(iter(read_tables(path).values())), 1):
        if not any(cells):
            continue
        if len(cells) != 4:
            raise ValueError(
                f"{path}, row {number} has {len(cells)} cells, not four: dataset, subject, filename, label"
            )
        rows.append(
            Row(path, number, dict(zip(("dataset", "subject", "filename", "label"), cells, strict=True)))
        )
    return rows


def _find_part(root: Path, part: str, given: str | Path | None) -> Path:
    """Raises FileNotFoundError if it is not there, ValueError if several folders have such a name."""
    if given is not None:
        return Path(given)
    found = subfolders(root, _FOLDERS[part])
    if not found:
        raise FileNotFoundError(
            f"{root}: no folder named like {part}; name the one of that dataset with {part}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{root} holds several folders of {part}: {', '.join(map(str, found))}; name one with {part}"
        )
    return found[0]


def _labelled(expression: Expression, emotion: str) -> Expression:
    """The expression with the composite's label, and a note where the dataset's own says otherwise."""
    own = SCHEMES["3"].class_of(expression.dataset, expression.emotion)
    if own == emotion:
        return replace(expression, emotion=emotion)
    note = f"labelled {emotion} in the composite, {expression.emotion} in {expression.dataset}"
    return replace(expression, emotion=emotion, notes=(*expression.notes, note))


def load(
    root: str | Path,
    *,
    layout: str | None = None,
    sheet: str | Path | None = None,
    apexes: str | Path | None = None,
    casme2: str | Path | None = None,
    samm: str | Path | None = None,
    smic: str | Path | None = None,
) -> Dataset:
    """The expressions of the composite: of each dataset those in its csv, with the csv's label as emotion.

    Args:
        root: the folder that holds ``combined_3class_gt.csv`` and the folders of the three datasets.
        layout: of all three: ``"cropped"`` or ``"raw"``; if not given, of each the first that is there.
        sheet: the csv, if it is elsewhere.
        apexes: as SMIC's loader takes it.
        casme2, samm, smic: the folder of that dataset, if it is not in ``root`` under its name.

    Raises:
        FileNotFoundError: the csv, a folder, or what a dataset's own loader needs is not there.
        ValueError: the csv or a sheet cannot be read, or there is a choice.
    """
    root = Path(root)
    path = find_sheet(root, ".*", "combined_3class", sheet)
    rows = _read_rows(path)
    folders = {
        part: _find_part(root, part, given) for part, given in zip(PARTS, (casme2, samm, smic), strict=True)
    }
    loaded = {
        "casme2": load_casme2(folders["casme2"], layout=layout),
        "samm": load_samm(folders["samm"], layout=layout),
        "smic": load_smic(folders["smic"], layout=layout, apexes=apexes),
    }
    clips = {(part, e.name.lower()): e for part, found in loaded.items() for e in found.expressions}

    def read(row: Row) -> Expression:
        part, label = row["dataset"].lower(), row["label"]
        if part not in PARTS or label not in LABELS:
            raise Unusable(
                f"{part!r} is none of {', '.join(PARTS)}, or {label!r} none of {', '.join(LABELS)}"
            )
        name = _CLIP_NAMES[part](row["subject"], row["filename"])
        if (part, name.lower()) not in clips:
            raise Unusable(f"{part} has no usable clip {name}")
        return _labelled(clips[part, name.lower()], LABELS[label])

    dataset = collect("megc2019", OFFICIAL, rows, read, f"rows of {path}")
    for part, found in loaded.items():
        census = Census.of(part, PARTS[part], [e for e in dataset.expressions if e.dataset == part])
        census.dropped = found.census.dropped
        dataset.census.parts.append(census)
        dataset.census.notes.append(f"{part}: {found.census.notes[0]}")
    return dataset
