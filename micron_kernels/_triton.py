"""What the launchers of the Triton kernels share. Imported, as they are, only when one is launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ._implementation import capability


@dataclasses.dataclass(frozen=True)
class Tile:
    """How a kernel over tiles divides its work: rows and columns of scores, and columns of a row at a time."""

    BLOCK_M: int
    BLOCK_N: int
    COLUMNS: int
    num_warps: int = 4
    num_stages: int = 1


_fastest: dict[Hashable, Tile] = {}


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


def launch_tiled(
    kernel: Any,
    programs: Callable[[int], int],
    tiles: Sequence[Tile],
    *arguments: Any,
    **constants: Any,
) -> None:
    """:func:`launch` with the fastest of ``tiles``; ``programs(BLOCK_M)`` is the size of the grid.

    The first call of a kernel with these constants and dtypes times the tiles; the winner is kept on disk, in
    Triton's cache. Sizes that are no constants, such as the length of the sequence, do not count. While a CUDA
    graph is captured nothing can be timed: the first tile is taken then.
    """

    def launch_with(tile: Tile) -> None:
        launch(kernel, (programs(tile.BLOCK_M),), *arguments, **constants, **dataclasses.asdict(tile))

    tensors = [x for x in arguments if isinstance(x, Tensor)]
    device = tensors[0].device
    if len(tiles) == 1 or device.type == "cpu":
        return launch_with(tiles[0])
    key = (kernel.fn, device, tensors[0].dtype, tuple(constants.items()), tuple(tiles))
    if key in _fastest:
        return launch_with(_fastest[key])
    if programs(tiles[0].BLOCK_M) == 0 or torch.cuda.is_current_stream_capturing():
        return launch_with(tiles[0])
    configs = []
    for tile in tiles:
        meta = dataclasses.asdict(tile)
        options = {name: meta.pop(name) for name in ("num_warps", "num_stages")}
        configs.append(triton.Config(meta, **options))
    tuner = triton.autotune(configs, key=list(constants), cache_results=True)(kernel)
    with torch.cuda.device(device):
        tuner[lambda meta: (programs(meta["BLOCK_M"]),)](*arguments, **constants)
    best = tuner.best_config
    _fastest[key] = Tile(**best.kwargs, num_warps=best.num_warps, num_stages=best.num_stages)
    return None


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have, in bytes."""
    if device.type == "cpu":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


def is_hopper(device: torch.device) -> bool:
    """Whether tiles go through wgmma, whose sums lie in registers and whose operands in shared memory."""
    return device.type == "cuda" and torch.version.hip is None and capability(device)[0] == 9
