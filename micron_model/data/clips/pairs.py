"""Pairs of near frames of one clip, for pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .frames import Clip, FrameError, Problem
from .stabilize import stabilized
from .warps import WarpedPair, warped_pair

#: What a sample may have for the device.
TENSORS = ("frames", "later", *WarpedPair._fields)


def longest_delta(delta: tuple[float, float], fps: float, delta_fps: float = 30.0) -> int:
    """The largest δ in frames of a clip at ``fps``, of a range ``delta`` meant at ``delta_fps``."""
    return max(1, round(delta[1] * fps / delta_fps))


def check_delta(delta: tuple[float, float]) -> None:
    """Raises ValueError for a range of δ that is none."""
    if not 0 < delta[0] <= delta[1]:
        raise ValueError(f"delta={delta}; it must be a range of positive numbers of frames, low to high")


def draw_delta(
    rng: np.random.Generator, fps: float, longest: int, delta: tuple[float, float], delta_fps: float
) -> int:
    """δ in frames of a clip at ``fps``, uniform over the range ``delta`` meant at ``delta_fps``.

    ``longest`` is the widest δ that the clip has room for: a clip that is too short gives its widest pair.
    """
    low = max(1, round(delta[0] * fps / delta_fps))
    high = longest_delta(delta, fps, delta_fps)
    return int(rng.integers(min(low, longest), min(high, longest) + 1))


class FramePairs(Dataset):
    """Frames (t, t+δ) of one clip, drawn at random but fixed by (seed, index).

    Sample i is the same whoever asks for it, in whatever order, on whatever worker: a run that resumes at step
    s sees what a run that never stopped would have seen.

    Args:
        clips: where frames come from; every clip is drawn equally often.
        size: side of the frames in pixels.
        seed: of all draws.
        delta: range of δ, both ends included, in frames at ``delta_fps``; scaled to each clip's rate.
        delta_fps: frame rate that ``delta`` is meant at (30: that of CAS(ME)^3, on which μ-BERT was trained).
        flip: mirror half of the pairs left to right.
        stabilize: lay the later frame over the earlier one. The face should fill the frames; where it cannot be
            followed the pair is left as it is, and is a problem.
        warp: side of a patch in pixels: to each pair belongs a :class:`WarpedPair` made of its earlier frame. 0: none.
        later: False reads the earlier frame of each pair alone, for training on warps alone.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        size: int,
        seed: int = 0,
        *,
        delta: tuple[float, float] = (5, 11),
        delta_fps: float = 30.0,
        flip: bool = True,
        stabilize: bool = False,
        warp: int = 0,
        later: bool = True,
    ):
        if not clips:
            raise ValueError("clips is empty; there is nothing to draw pairs from")
        check_delta(delta)
        self.clips, self.size, self.seed = clips, size, seed
        self.delta, self.delta_fps, self.flip, self.stabilize = delta, delta_fps, flip, stabilize
        self.warp, self.later = warp, later

    def __len__(self) -> int:
        return len(self.clips)

    def _draw(self, index: int, attempt: int) -> tuple[Clip, int, int, bool]:
        rng = np.random.default_rng((self.seed, index, attempt))
        clip = self.clips[int(rng.integers(len(self.clips)))]
        delta = draw_delta(rng, clip.fps, len(clip) - 1, self.delta, self.delta_fps)
        t = int(rng.integers(len(clip) - delta))
        return clip, t, delta, self.flip and bool(rng.integers(2))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``frames`` and ``later`` uint8 (3, size, size); ``source`` names them; ``problems`` met on the way.

        With ``warp`` also what a :class:`WarpedPair` has; without ``later`` no ``later``.

        A pair that cannot be read is replaced by the next draw. Raises FrameError after 16 of them in a row.
        """
        problems = []
        for attempt in range(16):
            clip, t, delta, flipped = self._draw(index, attempt)
            try:
                pair = clip.read([t, t + delta] if self.later else [t], self.size)
            except FrameError as error:
                path = error.path or clip.name
                problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
                continue
            source = f"{clip.name} frames {t} and {t + delta}" if self.later else f"{clip.name} frame {t}"
            if self.stabilize and self.later:
                pair, problem = stabilized_pair(pair, source)
                problems += problem
            if flipped:
                pair = pair[..., ::-1].copy()
            views = dict(zip(("frames", "later"), torch.from_numpy(pair), strict=False))
            sample = {**views, "source": source, "problems": problems}
            if self.warp:
                sample |= warped(
                    views["frames"], np.random.default_rng((self.seed, index, attempt, 1)), self.warp
                )
            return sample
        raise FrameError(
            f"16 pairs in a row could not be read; the last: {problems[-1].path}: {problems[-1].reason}"
        )


def stabilized_pair(pair: np.ndarray, source: str) -> tuple[np.ndarray, list[Problem]]:
    """A pair (2, 3, S, S), uint8, the later frame laid over the earlier one, and the problem of one that cannot be."""
    laid, (_, failure) = stabilized(pair)
    return laid, [] if failure is None else [Problem(source, f"left as they are: {failure}")]


def warped(frame: torch.Tensor, rng: np.random.Generator, patch_size: int) -> dict[str, torch.Tensor]:
    """``still``, ``warped`` and ``moved`` of a frame (3, S, S), see :class:`WarpedPair`."""
    pair = warped_pair(frame.numpy(), rng, patch_size)
    return {name: torch.from_numpy(x) for name, x in pair._asdict().items()}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of :class:`FramePairs` or ``ShardPairs`` as a batch: tensors stacked, sources and problems listed.

    ``consumer`` and ``position`` are those of the last sample, where samples have them.
    """
    place = {name: samples[-1][name] for name in ("consumer", "position") if name in samples[-1]}
    return place | {
        **{name: torch.stack([s[name] for s in samples]) for name in TENSORS if name in samples[-1]},
        "sources": [s["source"] for s in samples],
        "problems": [p for s in samples for p in s["problems"]],
    }
