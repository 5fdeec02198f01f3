"""The batches of a run: from clips or from shards, the same whether or not it was stopped on the way."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.clips.frames import Clip, FrameError
from ..data.clips.pairs import FramePairs, collate
from ..data.shards.plan import fingerprint as fingerprint_of_clips
from ..data.shards.read import Position, ShardPairs
from ..data.shards.read import fingerprint as fingerprint_of_shards
from ..limits import check_shared_memory
from ..models.config import MicronBERTConfig
from .config import PretrainConfig
from .distributed import Ranks

#: Where the consumers of a rank are in their shards, see ``ShardPairs``.
Positions = dict[int, Position]
#: Batches that a worker reads ahead.
_PREFETCHED = 2


def sort_out(data: Sequence[Clip] | Sequence[str]) -> tuple[list[Clip], list[str]]:
    """(clips, addresses of shards), of which one is empty."""
    shards = [x for x in data if isinstance(x, str)]
    return [x for x in data if not isinstance(x, str)], shards


def fingerprint(data: Sequence[Clip] | Sequence[str]) -> str:
    """What the data are, for the check that a run goes on with those it began with."""
    clips, shards = sort_out(data)
    if shards:
        return fingerprint_of_shards(shards)
    return fingerprint_of_clips(clips)


class _InOrder(Sampler[list[int]]):
    """The samples of a rank's batches, step by step; made one by one, since a run may have millions."""

    def __init__(self, first: int, last: int, config: PretrainConfig, ranks: Ranks):
        self.first, self.last, self.size, self.ranks = first, last, config.pairs_read, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            start = (batch * self.ranks.count + self.ranks.rank) * self.size
            yield list(range(start, start + self.size))


def _start_worker(_worker: int) -> None:
    # What a terminal or a scheduler sends to the whole job reaches the workers too, and the training process needs
    # their batches to finish its step. It ends them itself; one that does not heed that gets a second SIGTERM from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    _let_through(signal.SIG_UNBLOCK)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _let_through(how: int) -> None:
    """Block or unblock SIGTERM; processes that are started inherit it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(how, {signal.SIGTERM})


def _check_shared_memory(config: PretrainConfig, image_size: int) -> None:
    """Raises RuntimeError where batches that wait do not fit: workers would wait for ever, or be killed."""
    of_batch = config.pairs_read * 2 * 3 * image_size**2
    waiting = config.workers * _PREFETCHED + 1
    check_shared_memory(
        waiting * of_batch,
        f"{waiting} batches of {of_batch} bytes that {config.workers} workers may have read",
        "fewer --training.workers or pairs a batch take less",
    )


class Batches:
    """An iterator over a rank's batches, a list of ``accumulate`` of them for each step that remains.

    Args:
        data: clips, or the addresses of shards.
        model: what is trained: the side of its frames, and whether it learns from warps.
        config: how to train.
        ranks: this process among the others.
        step: the first step.
        positions: where a stopped run was in its shards.
        pin: whether batches are put into pinned memory, from which a GPU copies faster.
    """

    def __init__(
        self,
        data: Sequence[Clip] | Sequence[str],
        model: MicronBERTConfig,
        config: PretrainConfig,
        ranks: Ranks,
        *,
        step: int = 0,
        positions: Positions | None = None,
        pin: bool = False,
    ):
        self.config, self.ranks = config, ranks
        self.positions: Positions = dict(positions or {})
        self.batch = step * config.accumulate
        last = config.steps * config.accumulate
        options: dict[str, Any] = {
            "delta": config.delta,
            "flip": config.flip,
            "stabilize": config.stabilize,
            "warp": model.patch_size if model.movement else 0,
            "later": bool(model.gamma) or config.rejects,
        }
        dataset: Dataset
        clips, shards = sort_out(data)
        if shards:
            dataset = ShardPairs(
                shards, model.image_size, config.seed, **options, pairs_per_run=config.pairs_per_run, rank=ranks.rank,
                ranks=ranks.count, start=self.positions, first_worker=self.batch,
            )  # fmt: skip
            how: dict[str, Any] = {"batch_size": config.pairs_read}
        else:
            dataset = FramePairs(clips, model.image_size, config.seed, **options)
            how = {"batch_sampler": _InOrder(self.batch, last, config, ranks)}
        loader = DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=_start_worker,
            # OpenCV's threads do not survive a fork: a forked worker could wait for them for ever.
            multiprocessing_context="spawn" if config.workers else None,
            prefetch_factor=_PREFETCHED if config.workers else None,
            pin_memory=pin,
            **how,
        )
        if config.workers:
            _check_shared_memory(config, model.image_size)
            _let_through(signal.SIG_BLOCK)  # until a worker can heed it
        try:
            self._loader = iter(loader)
        finally:
            if config.workers:
                _let_through(signal.SIG_UNBLOCK)
        self.last = last

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self.batch < self.last:
            yield [self._next() for _ in range(self.config.accumulate)]

    def _next(self) -> dict[str, Any]:
        try:
            batch = next(self._loader)
        except FrameError as error:  # from a worker it comes with a traceback in its message
            raise FrameError(str(error).strip().splitlines()[-1].split("FrameError: ")[-1]) from None
        if "position" in batch:
            self.positions[batch["consumer"]] = batch["position"]
        self.batch += 1
        return batch
