"""Where the frames of a database lie under the folder that its user unpacked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..clips.find import VIDEO_SUFFIXES, is_of_a_system
from ..clips.frames import IMAGE_SUFFIXES
from .expressions import Unusable

_DEPTH = 4


class Layout(NamedTuple):
    """One of the ways in which a database is distributed.

    Attributes:
        name: what ``--layout`` takes.
        holds: pattern of the folders that its tree holds, for example those of the subjects.
        example: a name of that pattern.
        tree: pattern to be found in the last two parts of the tree's own path.
    """

    name: str
    holds: str
    example: str
    tree: str = ""


class Tree(NamedTuple):
    """Where the frames are.

    Attributes:
        layout: name of the layout.
        folder: holds those of all subjects.
        notes: what is to be said of the search.
    """

    layout: str
    folder: Path
    notes: tuple[str, ...] = ()


def subfolders(folder: Path, pattern: str = ".*") -> list[Path]:
    """Those whose name is of ``pattern``, in whatever case, sorted by name; hidden ones and those of the operating
    system are left out."""
    with os.scandir(folder) as entries:
        found = [Path(e.path) for e in entries if e.is_dir() and not is_of_a_system(e.name)]
    return sorted(p for p in found if re.fullmatch(pattern, p.name, re.IGNORECASE))


def _may_be_read(folder: str | Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def clip_folders(tree: Path, subject: str, name: Callable[[str, str], str]) -> dict[str, Path]:
    """The folders of clips in a tree of subjects, by the clips' names in lower case.

    Args:
        subject: pattern of the subjects' folders.
        name: gives the name of a clip from those of its subject's folder and of its own.
    """
    return {
        name(folder.name, clip.name).lower(): clip
        for folder in subfolders(tree, subject)
        for clip in subfolders(folder)
    }


def folders(root: Path, holds: str, closed: list[Path] | None = None) -> Iterator[Path]:
    """``root`` and the folders under it, the upper ones first, without those whose name matches ``holds``.

    Args:
        closed: where folders are put that may not be read; they are passed over without a word otherwise.

    Raises:
        FileNotFoundError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    level = [root]
    for _ in range(_DEPTH + 1):
        readable = [folder for folder in level if _may_be_read(folder)]
        if closed is not None:
            closed += [folder for folder in level if folder not in readable]
        yield from readable
        level = [sub for folder in readable for sub in subfolders(folder, rf"(?!(?:{holds})$).*")]


def _suffixes(folder: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Those of the files below a folder."""
    if not _may_be_read(folder):
        return
    with os.scandir(folder) as entries:
        inside = sorted((e for e in entries if not is_of_a_system(e.name)), key=lambda e: e.is_dir())
    for entry in inside:
        if not entry.is_dir():
            yield os.path.splitext(entry.name)[1].lower()
        elif depth:
            yield from _suffixes(Path(entry.path), depth - 1)


def _held(holders: Sequence[Path]) -> str:
    """What is in folders that look like those of frames: "frames", "videos" or "nothing"."""
    found = "nothing"
    for suffix in (suffix for folder in holders for suffix in _suffixes(folder)):
        if suffix in IMAGE_SUFFIXES:
            return "frames"
        if suffix in VIDEO_SUFFIXES:
            found = "videos"
    return found


def find_tree(root: Path, layouts: Sequence[Layout], layout: str | None = None) -> Tree:
    """The frames under ``root``.

    Args:
        root: the folder that was unpacked; the tree is it, or up to four levels below.
        layouts: those that there are; of several, the first that is found is taken.
        layout: name of one, to take it and no other.

    Raises:
        FileNotFoundError: ``root`` is no folder, or holds no such tree.
        ValueError: there is no such layout, or ``root`` holds two trees of it.
    """
    names = [known.name for known in layouts]
    if layout is not None and layout not in names:
        raise ValueError(f"--layout {layout}: the layouts are {', '.join(names)}")
    any_holds = "|".join(dict.fromkeys(known.holds for known in layouts))
    found: dict[str, list[Path]] = {name: [] for name in names}
    without: list[str] = []
    closed: list[Path] = []
    for folder in folders(root, any_holds, closed):
        path = "/".join(folder.absolute().parts[-2:])
        for known in layouts:
            if re.search(known.tree, path, re.IGNORECASE) and (holders := subfolders(folder, known.holds)):
                held = _held(holders)
                if held == "frames":
                    found[known.name].append(folder)
                else:
                    without.append(f"{folder} holds {held}, no frames")
                break
    notes = tuple(f"{folder}: may not be read, and is passed over" for folder in closed)
    for name in [layout] if layout is not None else names:
        if len(found[name]) > 1:
            listed = " and ".join(map(str, found[name]))
            raise ValueError(
                f"{root} holds several trees of layout {name!r}: {listed}. Give the one to be read as ROOT, and the "
                "sheet, if it is not below it, with --sheet"
            )
        if found[name]:
            return Tree(name, found[name][0], notes)
    others = [f"{tree} (--layout {name})" for name, trees in found.items() for tree in trees]
    wanted = f" of layout {layout!r}" if layout is not None else ""
    examples = " or ".join(dict.fromkeys(known.example for known in layouts))
    instead = f"there is {', '.join(others)}" if others else "give the folder that was unpacked"
    if any("holds videos" in reason for reason in without):
        instead += "; what is read is a release of images, or frames extracted under their own numbers"
    reasons = "; ".join([*without, *notes])
    raise FileNotFoundError(
        f"{root}: no frames{wanted}, that is no folder that holds folders named like {examples}"
        f"{f' with frames in them ({reasons})' if reasons else ''}; {instead}"
    )


def find_frames(folder: Path) -> dict[int, Path]:
    """The images of a folder by the number of their frame, ascending; empty if there is no such folder.

    The number is the last run of digits of a name, or, as in ``img7_224x224.png``, the last one that tells them apart.

    Raises:
        Unusable: two have the same number.
    """
    if not folder.is_dir():
        return {}
    images = {
        path: [int(run) for run in re.findall(r"\d+", path.stem)]
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_of_a_system(path.name)
    }
    images = {path: runs for path, runs in images.items() if runs}
    fewest = min(map(len, images.values()), default=1)
    place = next((i for i in range(-1, -fewest - 1, -1) if _differ(r[i] for r in images.values())), -1)
    frames: dict[int, Path] = {}
    for path, runs in images.items():
        number = runs[place]
        if number in frames:
            raise Unusable(f"{frames[number]} and {path.name} are both frame {number}; keep one of them")
        frames[number] = path
    return dict(sorted(frames.items()))


def _differ(numbers: Iterable[int]) -> bool:
    listed = list(numbers)
    return len(set(listed)) == len(listed)
