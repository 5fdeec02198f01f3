"""Clips in the folders that people have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ...faults import describe, raise_if_of_the_machine
from .frames import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Clip,
    FrameError,
    ImageFolderClip,
    Problem,
    VideoClip,
)

#: Folders and files that systems put among one's own; as hidden ones are, they are passed over.
_OF_SYSTEMS = {
    *("__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle", "@eadir", "@tmp"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini"),
}


def is_of_a_system(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system put there."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def walk(
    root: Path, note: Callable[[Problem], object], seen: set[tuple[int, int]] | None = None
) -> Iterator[tuple[Path, list[Path]]]:
    """``root`` and the folders below it, each with its files, by name; those of systems are passed over.

    Folders are entered through links too, and each once: that it has another name is no reason to take it twice.

    Args:
        root: a folder.
        note: is told of folders that may not be entered.
        seen: folders that were walked before, by device and inode; those of this walk are added.
    """
    seen = set() if seen is None else seen
    waiting, links = [root], list[Path]()
    while waiting or links:  # links last: what lies here is found under its own name
        folder = waiting.pop() if waiting else links.pop()
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                found = sorted((e for e in entries if not is_of_a_system(e.name)), key=lambda e: e.name)
            folders = [e for e in found if e.is_dir()]
        except OSError as error:
            raise_if_of_the_machine(error, folder)
            note(Problem(str(folder), f"cannot be entered ({describe(error)})"))
            continue
        yield folder, [folder / e.name for e in found if e.is_file()]
        waiting += [folder / e.name for e in reversed(folders) if not e.is_symlink()]
        links += [folder / e.name for e in reversed(folders) if e.is_symlink()]


def find_clips(
    sources: Sequence[str | Path], *, fps: float | None = None, min_length: int = 2
) -> tuple[list[Clip], list[Problem]]:
    """All clips under ``sources``: video files, folders of images, and folders that hold either, at any depth.

    A folder that holds images directly is one clip. Hidden files and folders, and those of systems, are passed over.

    Args:
        sources: files and folders.
        fps: frame rate of folders of images (30 if not given), and of videos in place of what they state.
        min_length: shorter clips are problems.

    Returns:
        (clips sorted by path, problems: what looked like a clip and could not be used, folders that may not be entered,
        and how many files are neither image nor video).

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: there is not one usable clip; the message lists the problems.
    """
    clips: dict[str, Clip] = {}
    problems: list[Problem] = []
    seen: set[tuple[int, int]] = set()

    def add(make: Callable[[], Clip], path: Path) -> None:
        try:
            clip = make()
        except FrameError as error:
            problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
            return
        if len(clip) < min_length:
            problems.append(Problem(clip.name, f"has {len(clip)} frames; a pair needs {min_length}"))
        else:
            clips.setdefault(clip.name, clip)

    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
        if not source.is_dir():
            if source.suffix.lower() in VIDEO_SUFFIXES:
                add(partial(VideoClip.open, source, fps), source)
            else:
                known = ", ".join(sorted(VIDEO_SUFFIXES))
                problems.append(Problem(str(source), f"is neither a folder nor a video ({known})"))
            continue
        others: Counter[str] = Counter()
        for folder, files in sorted(walk(source, problems.append, seen)):
            images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
            if images:
                add(partial(ImageFolderClip.of, folder, images, fps or 30.0), folder)
            for path in files:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    add(partial(VideoClip.open, path, fps), path)
                elif path.suffix.lower() not in IMAGE_SUFFIXES:
                    others[path.suffix.lower() or "without a suffix"] += 1
        if others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
            more = ", …" if len(others) > 8 else ""
            problems.append(
                Problem(str(source), f"holds files that are neither image nor video: {kinds}{more}")
            )
    if not clips:
        listed = "; ".join(f"{p.path} {p.reason}" for p in problems[:5]) or "no image and no video was found"
        raise ValueError(f"no usable clip in {', '.join(map(str, sources))}: {listed}")
    return list(clips.values()), problems


def describe_clips(clips: Sequence[Clip]) -> list[str]:
    """What a user should know of how frames are taken, in words."""
    told = []
    variable = [c for c in clips if isinstance(c, VideoClip) and c.rhythm is not None]
    if variable:
        told.append(
            f"{len(variable)} videos have a variable frame rate, for example {variable[0].name}: they are taken at a "
            f"constant one ({variable[0].fps:.2f} a second), by the times of their frames"
        )
    for bits in sorted({c.bits for c in clips if isinstance(c, ImageFolderClip) and c.bits > 8}):
        deep = [c for c in clips if isinstance(c, ImageFolderClip) and c.bits == bits]
        told.append(
            f"{len(deep)} clips, for example {deep[0].name}, are images of 16 bits that hold grey levels of {bits}: "
            "these are taken to 8"
        )
    return told
