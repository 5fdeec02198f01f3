"""How to pre-train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

_Number = TypeVar("_Number", int, float)


def _low_and_high(limits: Sequence[_Number]) -> tuple[_Number, _Number]:
    low, high = limits
    return low, high


@dataclass
class PretrainConfig:
    """How to pre-train. Where the paper and the authors' code are silent, the choice is ours."""

    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 16
    """Pairs a batch (C). A step has one batch for each process and each accumulation."""
    accumulate: int = 1
    """Batches of a process whose gradients are averaged before each optimiser step."""
    learning_rate: float = 2.5e-4
    """Peak learning rate (C); a cosine takes it to 0 (C)."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = 1e-4
    """Of matrices; biases, norms and the contextual token have none (C: 1e-4)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    max_skipped: int = 3
    """Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run."""
    delta: tuple[int, int] = (5, 11)
    """Range of δ in frames at 30 frames a second, scaled to each clip's rate."""
    flip: bool = True
    """Mirror half of the pairs."""
    stabilize: bool = False
    """Lay the later frame of each pair over the earlier one, so that the head keeps still; the face should fill the
    frames. 3 ms a pair (ours)."""
    motion: tuple[float, float] = (0.0, 255.0)
    """Least and most motion of a pair that is trained on; others are rejected. In grey levels of 255: the mean
    difference between its frames over the quarter of the patches that differ most (ours)."""
    motion_end: tuple[float, float] | None = None
    """The same at the last step; in between the limits move linearly. Less of the least motion than ``motion``
    shows much motion first and little later (ours)."""
    candidates: float = 1.0
    """Pairs read for each that is trained on, so that others take the place of rejected ones. Where too few are
    left, the step has fewer pairs."""
    seed: int = 0
    """Of weights, pairs, masks and crops."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""
    device: str = "auto"
    """auto: a GPU if there is one."""
    compile: bool = False
    """Run encoder and decoder through torch.compile."""
    workers: int = 0
    """Processes of each rank that read frames; 0 reads in the training process."""
    pairs_per_run: int = 4
    """Pairs drawn from each run of frames of a shard before the next shard is read."""
    other_ranks: bool = False
    """Go on from a checkpoint of a run with another number of ranks (or, with shards, of workers). Each step then
    has other pairs than it would have had."""
    checkpoint_every: int = 500
    """Steps between checkpoints, each in place of the one before; the last step always writes one."""
    keep_every: int = 0
    """Steps between checkpoints that are kept beside it, as checkpoint-<step>.pt; 0 keeps none."""
    evaluate_every: int = 0
    """Steps between evaluations, where the caller gives one; 0 is never. Step 0 and the last count too."""
    tensorboard: bool = False
    """Write TensorBoard events beside the log."""

    def __post_init__(self) -> None:
        # From a file they come as lists.
        self.delta = _low_and_high(self.delta)
        self.motion = _low_and_high(self.motion)
        if self.motion_end is not None:
            self.motion_end = _low_and_high(self.motion_end)
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "pairs_per_run"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        for name in ("workers", "keep_every", "evaluate_every", "max_skipped"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup}; it is a share of the steps, in [0, 1]")
        for name in ("motion", "motion_end"):
            limits = getattr(self, name)
            if limits is not None and not 0 <= limits[0] <= limits[1] <= 255:
                raise ValueError(f"{name}={limits}; it must be two grey levels in [0, 255], low to high")
        if self.candidates < 1:
            raise ValueError(
                f"candidates={self.candidates}; at least 1 pair is read for each that is trained on"
            )

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is written after ``step``."""
        return step == self.steps or any(
            n and step % n == 0 for n in (self.checkpoint_every, self.keep_every)
        )

    @property
    def rejects(self) -> bool:
        """Whether any pair can be rejected for its motion."""
        return (self.motion, self.motion_end or self.motion) != ((0.0, 255.0), (0.0, 255.0))

    @property
    def pairs_read(self) -> int:
        """Pairs read for a batch."""
        return math.ceil(self.candidates * self.batch_size) if self.rejects else self.batch_size


#: Settings that may differ between a run and its continuation: they do not decide the losses.
FREE = {
    "checkpoint_every", "compile", "device", "evaluate_every", "keep_every", "max_skipped", "other_ranks",
    "tensorboard", "workers",
}  # fmt: skip


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """The rate of a step, after :func:`warm_cosine`."""
    return config.learning_rate * warm_cosine(step, config.steps, config.warmup)


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over a share of the steps, then a cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def motion_limits_at(step: int, config: PretrainConfig) -> tuple[float, float]:
    """Least and most motion of the pairs of a step."""
    end = config.motion_end or config.motion
    progress = step / max(1, config.steps - 1)
    low, high = (a + (b - a) * progress for a, b in zip(config.motion, end, strict=True))
    return low, high
