"""Trees that look like those of the databases: folders, sheets and their quirks; warped photographs as frames."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..clips.frames import write_image
from ..clips.synthetic import SyntheticClip
from . import casme2, casme3, lookalike_macro, samm, smic
from .classes import SCHEMES
from .difficulties import DIFFICULTIES
from .expressions import Official
from .folders import Layout
from .lookalike_clips import LookalikeConfig as LookalikeConfig
from .lookalike_clips import Planned, write_frames
from .megc2019 import LABELS, PARTS

#: Emotions whose movement has another name.
_MOVES_LIKE = {
    "negative": "disgust",
    "positive": "happiness",
    "other": "others",
    "sad": "sadness",
    "happy": "happiness",
}
_STEP = 2  # frames of a synthetic clip from one frame of a look-alike to the next


def _deal(emotions: Sequence[str], config: LookalikeConfig) -> list[tuple[int, str]]:
    """Subject and emotion of each clip."""
    if config.counts is None:
        clips = range(config.subjects * config.clips)
        return [(1 + i // config.clips, emotions[i % len(emotions)]) for i in clips]
    unknown = sorted(set(config.counts) - set(emotions))
    if unknown:
        raise ValueError(f"counts has {', '.join(unknown)}; the emotions are {', '.join(emotions)}")
    listed = [emotion for emotion, count in config.counts.items() for _ in range(count)]
    return [(1 + i % config.subjects, emotion) for i, emotion in enumerate(listed)]


def _plan_clip(clip: SyntheticClip, subject: int, order: int, emotion: str, onset: int, step: int) -> Planned:
    rise, fall = (clip.apex - clip.onset) // step, (clip.offset - clip.apex) // step
    indices = [
        *np.linspace(clip.onset, clip.apex, rise + 1).round().astype(int).tolist(),
        *np.linspace(clip.apex, clip.offset, fall + 1).round().astype(int).tolist()[1:],
    ]
    interval = onset, onset + rise, onset + rise + fall
    return Planned(subject, order, emotion, *interval, tuple(indices), clip, interval)


def _with_quirks(dataset: str, plan: list[Planned]) -> list[Planned]:
    """The faults that can be told by the numbers of a clip."""
    first, second, third, fourth, *others = plan
    onset, apex, offset = second.cells
    cells = {"casme2": (onset, "/", offset), "samm": (onset, offset + 40, offset), "casme3": (onset, apex, 0)}
    second = replace(second, cells=cells.get(dataset, second.cells))
    third = replace(third, without=(third.apex + 1,))
    if dataset == "casme3":
        fourth = replace(fourth, cells=(fourth.onset, fourth.apex, fourth.apex - 1))
    return [first, second, third, fourth, *others[:-1], replace(others[-1], has_frames=False)]


def _write_clutter(folder: Path) -> None:
    """What operating systems leave among the frames, and names in upper case."""
    for path in sorted(folder.iterdir())[::2]:
        path.rename(path.with_suffix(path.suffix.upper()))
    for name in ("Thumbs.db", "._img8.jpg", "Desktop - Shortcut.lnk"):
        (folder / name).write_bytes(b"no image")


def _write_sheet(path: Path, worksheet: str, rows: Iterable[Sequence[Any]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.title = worksheet
    for row in rows:
        sheet.append(row)
    book.save(path)


def _casme2_filename(planned: Planned) -> str:
    return f"EP{planned.order + 1:02d}_{planned.subject:02d}f"


def _write_casme2(root: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    """Two columns of the sheet have no name."""
    layout = config.layout or "cropped"
    tree = root / {"cropped": "Cropped", "selected": "CASME2_RAW_selected", "raw": "CASME2-RAW"}[layout]
    name = "reg_img{}.jpg" if layout == "cropped" else "img{}.jpg"
    header = ("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None)
    rows: list[Sequence[Any]] = [(*header, "Action Units", "Estimated Emotion")]
    for planned in plan:
        filename = _casme2_filename(planned)
        rows.append((planned.subject, filename, None, *planned.cells, None, "4", planned.emotion))
        folder = tree / f"sub{planned.subject:02d}" / filename
        write_frames(folder, planned, config, name, around=2 if layout == "raw" else 0)
    _write_sheet(root / "CASME2-coding-20140508.xlsx", "Sheet1", rows)
    if config.quirks:
        _write_clutter(tree / "sub01" / "EP01_01f")


def _samm_filename(planned: Planned) -> str:
    return f"{planned.subject + 5:03d}_{planned.order + 1}_1"


def _write_samm(root: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    """The sheet begins with notes, and some rows have ``Others`` for ``Other``."""
    tree = root / {"raw": "SAMM", "cropped": "SAMM_cropped"}[config.layout or "raw"]
    rows: list[Sequence[Any]] = [(f"Note {i}: Subject and Filename name a folder",) for i in range(1, 14)]
    header = (
        "Subject",
        "Filename",
        "Inducement Code",
        "Onset Frame",
        "Apex Frame",
        "Offset Frame",
        "Duration",
    )
    rows.append((*header, "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"))
    for planned in plan:
        filename, emotion = _samm_filename(planned), planned.emotion.capitalize()
        if config.quirks and emotion == "Other" and planned.order > 1:
            emotion = "Others"
        length = planned.offset - planned.onset + 1
        rows.append(
            (filename[:3], filename, 1, *planned.cells, length, "Micro - 1/2", "4+7", emotion, 3, None)
        )
        digits = 4 if planned.subject % 2 else 5
        name = f"{filename[:3]}_{{:0{digits}d}}.jpg"
        write_frames(tree / filename[:3] / filename, planned, config, name, grey=True)
    _write_sheet(root / "SAMM_Micro_FACS_Codes_v2.xlsx", "MICRO_ONLY", rows)


def _smic_filename(planned: Planned) -> str:
    code = next(code for code, emotion in smic.EMOTIONS.items() if emotion == planned.emotion)
    return f"s{planned.subject}_{code}_{planned.order + 1:02d}"


def _write_smic(root: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    """The last folder is empty; clips of another camera and of no expression lie beside. Those of the extended layout
    are longer than the expression, which its sheet states."""
    layout = config.layout or "cropped"
    tree = root / {"cropped": "SMIC_all_cropped/HS", "raw": "SMIC/HS", "extended": "SMIC_HS_E"}[layout]
    name = {"cropped": "reg_image{:06d}.bmp", "raw": "image{:06d}.jpg", "extended": "image{:08d}.jpg"}[layout]
    for planned in plan:
        subject, filename = tree / f"s{planned.subject}", _smic_filename(planned)
        folder = (
            subject / filename if layout == "extended" else subject / "micro" / planned.emotion / filename
        )
        folder.mkdir(parents=True)
        write_frames(folder, planned, config, name, around=2 if layout == "extended" else 0)
    if layout == "extended":
        rows: list[Sequence[Any]] = [("Subject", "Filename", "OnsetF", "OffsetF", "TotalMF1", "Emotion")]
        for planned in plan:
            onset, _, offset = planned.cells
            rows.append(
                (planned.subject, _smic_filename(planned), onset, offset, offset - onset + 1, planned.emotion)
            )
        _write_sheet(root / "SMIC-HS-E_annotation.xlsx", "Sheet1", rows)
    if config.quirks and layout != "extended":
        for beside in (tree / "s1/non_micro/s1_01", tree.parent / "NIR/s1/micro/negative/s1_ne_01"):
            write_frames(beside, plan[0], config, name)


def _write_casme3(root: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    """Two expressions in each recording, ``spNO`` in the sheet and ``spNo`` in folders, depth beside colour."""
    layout = config.layout or "clips"
    tree = root / {"clips": "Part_A_ME_clip/frame", "recordings": "part_A"}[layout]
    rows: list[Sequence[Any]] = [
        ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
    ]
    for planned in plan:
        recording = "abcdefghijklmnopqrstuvwxyz"[planned.order // 2 % 26] * (planned.order // 52 + 1)
        emotion = planned.emotion
        if config.quirks and emotion == "others" and planned.order > 1:
            emotion = "Others"
        rows.append((f"spNO.{planned.subject}", recording, *planned.cells, "5", "II", emotion))
        if layout == "clips":
            name = f"spNo.{planned.subject}_{recording}_{planned.onset}"
            folder, depth = tree / name, tree.parent / "depth" / name
        else:
            both = tree / f"spNo.{planned.subject}" / recording
            folder, depth = both / "color", both / "depth"
        write_frames(folder, planned, config, "{}.jpg", around=0 if layout == "clips" else 2)
        if planned.has_frames:
            depth.mkdir(parents=True, exist_ok=True)
            write_image(depth / f"{planned.onset}.png", np.full((8, 8), 700, np.uint16))
    _write_sheet(root / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", "label", rows)


class _Writer(NamedTuple):
    official: Official
    layouts: Sequence[Layout]
    write: Callable[[Path, Sequence[Planned], LookalikeConfig], None]


_WRITERS = {
    "casme2": _Writer(casme2.OFFICIAL, casme2.LAYOUTS, _write_casme2),
    "samm": _Writer(samm.OFFICIAL, samm.LAYOUTS, _write_samm),
    "smic": _Writer(smic.OFFICIAL, smic.LAYOUTS, _write_smic),
    "casme3": _Writer(casme3.OFFICIAL, casme3.LAYOUTS, _write_casme3),
    "macro": _Writer(
        Official(0, dict.fromkeys(lookalike_macro.EMOTIONS, 0)),
        lookalike_macro.LAYOUTS,
        lookalike_macro.write,
    ),
}


def _plan(dataset: str, config: LookalikeConfig) -> list[Planned]:
    """Raises ValueError for a layout or an emotion that the dataset does not have."""
    official, layouts, _ = _WRITERS[dataset]
    names = [layout.name for layout in layouts]
    if config.layout not in (None, *names):
        raise ValueError(f"layout={config.layout!r} is none of {', '.join(names)} of {dataset}")
    number, manner = list(_WRITERS).index(dataset), DIFFICULTIES[config.difficulty].manner
    emotions, step = list(official.counts), _STEP
    if dataset == "macro":
        emotions, manner, step = lookalike_macro.emotions(config.layout), lookalike_macro.widened(manner), 1
    rng = np.random.default_rng((config.seed, number))
    orders: Counter[int] = Counter()
    repeats: Counter[tuple[int, str]] = Counter()
    plan: list[Planned] = []
    for subject, emotion in _deal(emotions, config):
        moves, order = _MOVES_LIKE.get(emotion, emotion), orders[subject]
        identity = 1000 * (number + 1) + subject  # the parts of a composite show different faces
        clip = SyntheticClip(identity, moves, config.seed, repeat=repeats[subject, moves], manner=manner)
        # From 7 on, frames pass 10, where the order of names leaves that of numbers; two clips share a recording.
        onset = 7 + (int(rng.integers(50)) if plan else 0) + 100 * (order % 2)
        plan.append(_plan_clip(clip, subject, order, emotion, onset, step))
        orders[subject] += 1
        repeats[subject, moves] += 1
    return _with_quirks(dataset, plan) if config.quirks else plan


def _composite_row(part: str, planned: Planned) -> tuple[str, str, str]:
    """Dataset, subject and filename as the composite's csv writes them."""
    if part == "casme2":
        return part, f"sub{planned.subject:02d}", _casme2_filename(planned)
    if part == "samm":
        return part, _samm_filename(planned)[:3], _samm_filename(planned)
    subject = f"s{planned.subject:02d}"
    return part, subject, subject + "_" + _smic_filename(planned).split("_", 1)[1]


def _write_composite(path: Path, plans: Mapping[str, Sequence[Planned]]) -> int:
    """The csv, without a header, of those clips that have a class of the composite; gives how many they are."""
    labels = {name: label for label, name in LABELS.items()}
    rows = [
        (*_composite_row(part, planned), labels[name])
        for part, plan in plans.items()
        for planned in plan
        if (name := SCHEMES["3"].class_of(part, planned.emotion)) is not None
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return len(rows)


def make_lookalike(dataset: str, root: str | Path, config: LookalikeConfig | None = None) -> int:
    """Write a small tree that looks like a database, to try out everything that reads one.

    Args:
        dataset: a key of ``DATASETS``, or "macro": macro-expressions of other people, the same movements wider and
            slower.
        root: a folder that is not there yet, or empty.
        config: what it holds.

    Returns:
        How many clips its sheet, or where there is none its folders, list.

    Raises:
        ValueError: there is no such dataset or layout, ``root`` holds something, or ``counts`` names an emotion that
            the dataset does not have.
    """
    root, config = Path(root), config or LookalikeConfig()
    if dataset not in (*_WRITERS, "megc2019"):
        raise ValueError(f"dataset={dataset!r} is none of {', '.join((*_WRITERS, 'megc2019'))}")
    plans = {part: _plan(part, config) for part in (PARTS if dataset == "megc2019" else (dataset,))}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"{root} is not an empty folder; give another, so that no data are mixed with a look-alike"
        )
    for part, plan in plans.items():
        folder = root / part if len(plans) > 1 else root
        folder.mkdir(parents=True, exist_ok=True)
        _WRITERS[part].write(folder, plan, config)
    of = "macro-expressions" if dataset == "macro" else dataset
    (root / "LOOKALIKE.txt").write_text(
        f"Warped photographs in the folders of {of}, written by `micron data make-lookalike`. Nothing here is "
        "of that database, and no score on it says anything of one.\n"
    )
    if len(plans) > 1:
        return _write_composite(root / "combined_3class_gt.csv", plans)
    return len(plans[dataset])
