"""The processes of a run, as torchrun starts them."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


class RankLostError(RuntimeError):
    """Another process of the run has gone."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; alone unless torchrun started it."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Number of this process on its machine: the GPU that it takes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs, evaluates and writes."""
        return self.rank == 0

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of ``values`` over all ranks, which each must ask for."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Plain data of every rank, in order of rank, on every rank."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        distributed.all_gather_object(gathered, value)
        return gathered


@contextlib.contextmanager
def join(device_type: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; alone where it started none.

    Raises:
        RankLostError: inside, when an exchange fails because another process has gone.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    ours = not distributed.is_initialized()
    if ours:
        if device_type == "cuda":
            torch.cuda.set_device(local)
        distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size(), local)
    try:
        yield ranks
        ranks.gather(
            None
        )  # none leaves while another may still be writing: what then fails, all must hear of
    except RuntimeError as error:
        if ranks.count > 1 and _says_a_peer_is_gone(error):
            raise RankLostError(
                f"rank {ranks.rank} of {ranks.count}: another rank has ended or cannot be reached "
                f"({str(error).splitlines()[0]}). What it said is above or on its machine; --resume goes on from "
                "the last checkpoint"
            ) from error
        raise
    finally:
        # DDP lies in cycles that hold the group: its threads must have ended before the process does.
        gc.collect()
        if ours:
            distributed.destroy_process_group()


def _says_a_peer_is_gone(error: RuntimeError) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return any(
        sign in str(error) for sign in ("gloo", "Connection closed by peer", "Connection reset", "NCCL")
    )
