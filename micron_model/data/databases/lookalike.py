"""Trees that look like those of the databases: folders, sheets and their quirks; warped photographs as frames."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ..clips.frames import write_image
from ..clips.nuisances import to_uint8
from ..clips.synthetic import SyntheticClip
from . import casme2, casme3, samm, smic
from .classes import SCHEMES
from .difficulties import DIFFICULTIES
from .expressions import Official
from .folders import Layout
from .megc2019 import LABELS, PARTS

#: Emotions whose movement has another name.
_MOVES_LIKE = {
    "negative": "disgust",
    "positive": "happiness",
    "other": "others",
    "sad": "sadness",
    "happy": "happiness",
}
_OF_NUISANCES = 99  # of a seed: a number that no other stream of a clip has
_STEP = 2  # frames of a synthetic clip from one frame of a look-alike to the next


@dataclass(frozen=True)
class LookalikeConfig:
    """What a look-alike holds."""

    subjects: int = 8
    """Identities; of a composite, in each part."""
    clips: int = 5
    """Clips of each subject; emotions take turns."""
    counts: dict[str, int] | None = None
    """Clips of each emotion, dealt to the subjects in turn, in place of clips of each subject."""
    side: int = 128
    """Side of the frames in pixels."""
    seed: int = 0
    difficulty: Literal["easy", "medium", "hard"] = "easy"
    """easy: the same clean movement for all of a class. medium, hard: smaller and uneven ones that emotions share, at
    other tempi, with blinks, gaze, head motion, light, sensor noise and compression."""
    layout: str | None = None
    """Which of the dataset's layouts; the best known one if not given."""
    quirks: bool = True
    """Write the faults of the databases too; without them, every row can be used as it is."""

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty={self.difficulty!r} is none of {', '.join(DIFFICULTIES)}")
        clips = self.subjects * self.clips if self.counts is None else sum(self.counts.values())
        least = 5 if self.quirks else 1
        if self.subjects < 1 or self.side < 1 or clips < least:
            raise ValueError(
                f"subjects={self.subjects} of side={self.side} with {clips} clips in all: at least one subject, one "
                f"pixel and {least} clips are needed (quirks take 5)"
            )


@dataclass(frozen=True)
class Planned:
    """A clip to be written.

    Attributes:
        subject: from 1.
        order: of the subject's clips, from 0.
        emotion: as the database spells it, in lower case.
        onset, apex, offset: numbers of frames.
        indices: frames of ``clip`` from onset to offset.
        cells: onset, apex and offset as the sheet has them.
        without: numbers of frames that are missing.
        has_frames: whether there are any.
    """

    subject: int
    order: int
    emotion: str
    onset: int
    apex: int
    offset: int
    indices: tuple[int, ...]
    clip: SyntheticClip
    cells: tuple[Any, Any, Any]
    without: tuple[int, ...] = ()
    has_frames: bool = True


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


def _plan_clip(clip: SyntheticClip, subject: int, order: int, emotion: str, onset: int) -> Planned:
    rise, fall = (clip.apex - clip.onset) // _STEP, (clip.offset - clip.apex) // _STEP
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


def _write_frames(
    folder: Path, planned: Planned, config: LookalikeConfig, name: str, *, grey: bool = False, around: int = 0
) -> None:
    """Write the frames of a clip, if it has any.

    Args:
        name: of the file of a frame, to be formatted with its number.
        grey: as images of one channel.
        around: frames at rest to write before and after.
    """
    if not planned.has_frames:
        return
    folder.mkdir(parents=True, exist_ok=True)
    first, last = planned.indices[0], planned.indices[-1]
    indices = [*range(first - around, first), *planned.indices, *range(last + 1, last + 1 + around)]
    frames = planned.clip.read(indices, config.side)
    nuisances = DIFFICULTIES[config.difficulty].nuisances
    if nuisances:
        rng = np.random.default_rng((config.seed, planned.clip.subject, planned.order, _OF_NUISANCES))
        for nuisance in nuisances:
            frames = nuisance(frames, rng)
        frames = to_uint8(frames)
    for number, frame in enumerate(frames, planned.onset - around):
        if number not in planned.without:
            image = np.ascontiguousarray(frame.transpose(1, 2, 0)[:, :, ::-1])
            write_image(
                folder / name.format(number), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image
            )


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
        _write_frames(folder, planned, config, name, around=2 if layout == "raw" else 0)
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
        _write_frames(tree / filename[:3] / filename, planned, config, name, grey=True)
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
        _write_frames(folder, planned, config, name, around=2 if layout == "extended" else 0)
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
            _write_frames(beside, plan[0], config, name)


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
        _write_frames(folder, planned, config, "{}.jpg", around=0 if layout == "clips" else 2)
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
}


def _plan(dataset: str, config: LookalikeConfig) -> list[Planned]:
    """Raises ValueError for a layout or an emotion that the dataset does not have."""
    official, layouts, _ = _WRITERS[dataset]
    names = [layout.name for layout in layouts]
    if config.layout not in (None, *names):
        raise ValueError(f"layout={config.layout!r} is none of {', '.join(names)} of {dataset}")
    number, manner = list(_WRITERS).index(dataset), DIFFICULTIES[config.difficulty].manner
    rng = np.random.default_rng((config.seed, number))
    orders: Counter[int] = Counter()
    repeats: Counter[tuple[int, str]] = Counter()
    plan: list[Planned] = []
    for subject, emotion in _deal(list(official.counts), config):
        moves, order = _MOVES_LIKE.get(emotion, emotion), orders[subject]
        identity = 1000 * (number + 1) + subject  # the parts of a composite show different faces
        clip = SyntheticClip(identity, moves, config.seed, repeat=repeats[subject, moves], manner=manner)
        # From 7 on, frames pass 10, where the order of names leaves that of numbers; two clips share a recording.
        onset = 7 + (int(rng.integers(50)) if plan else 0) + 100 * (order % 2)
        plan.append(_plan_clip(clip, subject, order, emotion, onset))
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
        dataset: a key of ``DATASETS``.
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
    (root / "LOOKALIKE.txt").write_text(
        f"Warped photographs in the folders of {dataset}, written by `micron data make-lookalike`. Nothing here is "
        "of that database, and no score on it says anything of one.\n"
    )
    if len(plans) > 1:
        return _write_composite(root / "combined_3class_gt.csv", plans)
    return len(plans[dataset])
