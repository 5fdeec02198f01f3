"""What the launchers of the Triton kernels share. Imported, as they are, only when one is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._implementation import capability, interpreted


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` on the device of its first tensor and torch's current stream there.

    ``constants`` are its constexpr parameters, num_warps and num_stages. Every launch goes through here, so that
    the tests can compile each kernel as it would be launched, for chips that they do not have.
    """
    if 0 in grid:
        return
    device = next(x for x in arguments if isinstance(x, Tensor)).device
    if device.type == "cpu":
        constants.pop("num_warps", None), constants.pop("num_stages", None)
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants)


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have, in bytes."""
    if interpreted():
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


__all__ = ["capability", "interpreted", "launch", "shared_bytes"]
