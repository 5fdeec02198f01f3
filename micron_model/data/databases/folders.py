"""Where the frames of a database lie under the folder that its user unpacked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..clips.frames import IMAGE_SUFFIXES, frame_number

_DEPTH = 4


class Layout(NamedTuple):
    """One of the ways in which a database is distributed.

    Attributes:
        name: what ``layout=`` takes.
        holds: pattern of the folders that its tree holds, for example those of the subjects.
        tree: pattern to be found in the last two parts of the tree's own path.
    """

    name: str
    holds: str
    tree: str = ""


def subfolders(folder: Path, pattern: str = ".*") -> list[Path]:
    """Those whose name is of ``pattern``, in whatever case, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        found = [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(p for p in found if re.fullmatch(pattern, p.name, re.IGNORECASE))


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


def folders(root: Path, holds: str) -> Iterator[Path]:
    """``root`` and the folders under it, the upper ones first, without those whose name matches ``holds``.

    Raises:
        FileNotFoundError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    level = [root]
    for _ in range(_DEPTH + 1):
        yield from level
        level = [sub for folder in level for sub in subfolders(folder, rf"(?!(?:{holds})$).*")]


def find_tree(root: Path, layouts: Sequence[Layout], layout: str | None = None) -> tuple[str, Path]:
    """The layout of the frames under ``root`` and the folder that holds those of all subjects.

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
        raise ValueError(f"layout={layout!r} is none of {', '.join(names)}")
    any_holds = "|".join(dict.fromkeys(known.holds for known in layouts))
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder in folders(root, any_holds):
        path = "/".join(folder.absolute().parts[-2:])
        for known in layouts:
            if re.search(known.tree, path, re.IGNORECASE) and subfolders(folder, known.holds):
                found[known.name].append(folder)
                break
    for name in [layout] if layout is not None else names:
        if len(found[name]) > 1:
            listed = ", ".join(map(str, found[name]))
            raise ValueError(
                f"{root} holds several trees of layout {name!r}: {listed}; give the folder of one alone"
            )
        if found[name]:
            return name, found[name][0]
    others = [str(tree) for trees in found.values() for tree in trees]
    wanted = f" of layout {layout!r}" if layout is not None else ""
    instead = f"there is {', '.join(others)}" if others else "give the folder that was unpacked"
    raise FileNotFoundError(
        f"{root}: no frames{wanted}, that is no folder with folders named like {any_holds}; {instead}"
    )


def find_frames(folder: Path) -> dict[int, Path]:
    """The images of a folder by the number of their frame, ascending; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
    frames: dict[int, Path] = {}
    for path in sorted(images, key=frame_number):
        number, _ = frame_number(path)
        if number >= 0:
            frames.setdefault(number, path)
    return frames
