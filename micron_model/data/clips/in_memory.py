"""A clip whose frames are made, or read, once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .frames import Clip


class InMemoryClip:
    """Frames of another clip, under its name.

    Args:
        clip: whose.
        size: side of the frames in pixels; no other is given.
        every: of how many frames one is kept, the first; the rate falls accordingly.
    """

    def __init__(self, clip: Clip, size: int, every: int = 1):
        self.name, self.fps, self.size = clip.name, clip.fps / every, size
        self._frames = clip.read(range(0, len(clip), every), size)

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        """Frames at ``indices`` as uint8 (T, 3, size, size), RGB.

        Raises:
            ValueError: ``size`` is not that of the frames.
        """
        if size != self.size:
            raise ValueError(
                f"size={size}; the frames of {self.name} are kept with {self.size} pixels: make others"
            )
        return self._frames[list(indices)]
