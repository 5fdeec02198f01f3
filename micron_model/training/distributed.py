"""The processes of a run, as torchrun starts them."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
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

    joined_here: bool = False
    """Whether ``join`` made the group that connects them, so that this run ends it."""

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


def join(device_type: str) -> Ranks:
    """Join the processes that torchrun started; alone where it started none."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()
    local = int(os.environ.get("LOCAL_RANK", 0))
    ours = not distributed.is_initialized()
    if ours:
        if device_type == "cuda":
            torch.cuda.set_device(local)
        distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Ranks(distributed.get_rank(), distributed.get_world_size(), local, joined_here=ours)


@contextlib.contextmanager
def until_all_are_done(ranks: Ranks) -> Iterator[None]:
    """Leave the group only when every rank has done what is inside, or one of them is lost.

    torchrun sends SIGTERM to those that are left of a run, at once: a process must note it, not obey it, to have
    the time to say why it ends.

    Raises:
        RankLostError: an exchange inside failed because another process has gone.
    """
    try:
        yield
        ranks.gather(None)  # another may still be writing: what then fails, all must hear of
    except RuntimeError as error:
        if ranks.count == 1 or not _says_a_peer_is_gone(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the model, and it the group
        raise RankLostError(
            f"rank {ranks.rank} of {ranks.count}: another rank has ended or cannot be reached "
            f"({str(error).splitlines()[0]}). What it said is above or on its machine; --resume goes on from "
            "the last checkpoint"
        ) from error
    finally:
        # The group's threads hold tensors that Python owns, and abort the process if they outlive the interpreter.
        # They end with the last reference to the group, and DDP's lies in a cycle.
        gc.collect()
        if ranks.joined_here:
            distributed.destroy_process_group()


def _says_a_peer_is_gone(error: RuntimeError) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return any(
        sign in str(error) for sign in ("gloo", "Connection closed by peer", "Connection reset", "NCCL")
    )
