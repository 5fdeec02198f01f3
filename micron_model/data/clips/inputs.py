"""What a recognizer is given of a clip: which of its frames, and what is made of them before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...limits import read_npz


class UnusableClip(ValueError):
    """A clip of which a recognizer's input cannot be made; the message is the reason."""


class ClipInput(Protocol):
    """What a recognizer needs of a clip. It is computed once and kept."""

    @property
    def size(self) -> int | None:
        """Side in pixels to which the face is cut; None leaves it in the pixels of the frame."""
        ...

    @property
    def key(self) -> str:
        """All that decides what ``encode`` gives: two inputs with one key give the same."""
        ...

    def frames(self, onset: int, apex: int, offset: int) -> tuple[int, ...]:
        """Numbers of the frames to be cut, onset first.

        Raises:
            UnusableClip: the clip does not have what is needed.
        """
        ...

    def encode(self, faces: np.ndarray) -> np.ndarray:
        """What is kept of a clip, of its faces (T, 3, size, size), uint8, RGB. Called from several threads at once.

        Raises:
            UnusableClip: nothing can be made of them.
        """
        ...


@dataclass(frozen=True)
class OnsetApex:
    """The faces of onset and apex as they are, uint8 (2, 3, size, size)."""

    size: int

    @property
    def key(self) -> str:
        return f"onset and apex, {self.size} pixels"

    def frames(self, onset: int, apex: int, offset: int) -> tuple[int, ...]:
        return onset, apex

    def encode(self, faces: np.ndarray) -> np.ndarray:
        return faces


class StoredValues:
    """What is kept of clips, a file each, read when it is asked for: more than memory holds.

    Args:
        files: npz files with an array ``values``, of one shape and dtype.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, chosen: slice | Sequence[int] | Tensor) -> Tensor:
        """The values of some clips, stacked."""
        return torch.from_numpy(np.stack([_read(path) for path in self.at(chosen).files]))

    def at(self, chosen: slice | Sequence[int] | Tensor) -> StoredValues:
        """Some of the clips, still on the disk."""
        if isinstance(chosen, slice):
            return StoredValues(self.files[chosen])
        return StoredValues([self.files[int(i)] for i in chosen])


def _read(path: Path) -> np.ndarray:
    return read_npz(path)["values"]


#: What is kept of clips (n, …): in memory, or on the disk. Indexed by a list of positions or a slice.
Values = Tensor | StoredValues


def take(values: Values, chosen: Sequence[int]) -> Values:
    """Some of them, where they are."""
    return values.at(chosen) if isinstance(values, StoredValues) else values[list(chosen)]
