"""What the launchers of the Triton kernels share. Imported, as they are, only when one is launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ._implementation import capability


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a kernel over tiles divides its work: rows and columns of scores, and columns of a row at a time.

    Chosen by a table, never by timing: another tile sums in another order, and the same call gives the same bits on
    every machine of an architecture, run after run.
    """

    BLOCK_M: int
    BLOCK_N: int
    COLUMNS: int
    num_warps: int = 4
    num_stages: int = 1

    def constants(self) -> dict[str, int]:
        """What a kernel is launched with."""
        return dataclasses.asdict(self)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` on the device of its first tensor and torch's current stream there.

    ``constants`` are its constexpr parameters, num_warps and num_stages. Every launch goes through here, so that
    the tests can compile each kernel as it would be launched, for chips that they do not have.
    """
    if 0 in grid:
        return
    device = next(x for x in arguments if isinstance(x, Tensor)).device
    if device.type == "cpu":  # the interpreter
        constants.pop("num_warps", None)
        constants.pop("num_stages", None)
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants)


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have, in bytes."""
    if device.type == "cpu":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


def is_hopper(device: torch.device) -> bool:
    """Whether tiles go through wgmma, whose sums lie in registers and whose operands in shared memory."""
    return device.type == "cuda" and torch.version.hip is None and capability(device)[0] == 9
