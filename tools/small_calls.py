"""Small calls of every operator and kernel, forward and backward, for a tool that watches them.

Inputs are drawn and results compared on the CPU, so that on a GPU hardly anything runs but the kernels themselves.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from micron_kernels import (
    diagonal_attention,
    frame_difference,
    mask_tokens,
    select_tokens,
    swap_patches,
    topk_mask,
)
from micron_kernels._implementation import why_not
from micron_kernels.info import OPERATORS

HALF, SINGLE = torch.bfloat16, torch.float32
TOLERANCE = {HALF: 5e-2, SINGLE: 1e-3}


class Case(NamedTuple):
    operator: str
    name: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    sizes: dict[str, int] = {}  # noqa: RUF012  # never written to


def cases() -> Iterator[Case]:
    """Lengths around and off the sizes of tiles, widths of one tile and several, every operator's options."""
    for dtype in (HALF, SINGLE):
        for batch, heads, length, width in ((1, 2, 33, 24), (1, 1, 129, 64), (2, 1, 70, 512)):
            q, k, v = (torch.randn(batch, heads, length, width).to(dtype) for _ in range(3))
            sizes = {"width": width, "value_width": width}
            name = f"{dtype} {tuple(q.shape)}"
            yield Case("diagonal_attention", name, diagonal_attention, (q, k, v), sizes)
            masked = functools.partial(
                _attention_of_rows,
                rows=torch.randint(length, (batch, 9)),
                key_mask=torch.rand(batch, length) > 0.3,
            )
            yield Case("diagonal_attention", f"{name} rows, masked", masked, (q, k, v), sizes)
    for dtype in (torch.uint8, SINGLE, HALF):
        for patch_size, side in ((8, 40), (7, 21)):
            frames = torch.randint(0, 256, (2, 3, 3, side, side)).to(dtype)
            reference = frames[:, 0].flip(-1).contiguous()
            name = f"{dtype} {tuple(frames.shape)} patch {patch_size}"
            difference = functools.partial(frame_difference, patch_size=patch_size)
            yield Case("frame_difference", name, difference, (frames, reference))
            swap = torch.rand(2, (side // patch_size) ** 2) > 0.5
            swapped = functools.partial(_swapped, swap=swap, patch_size=patch_size)
            yield Case("swap_patches", name, swapped, (frames[:, 0].contiguous(), reference))
    for length, width in ((13, 7), (129, 64), (784, 33)):
        tokens, scores = torch.randn(3, length, width), torch.randn(3, length)
        name = f"{tuple(tokens.shape)}"
        chosen = functools.partial(topk_mask, k=length // 4)
        yield Case("poi_topk", f"topk_mask {name}", chosen, (scores,))
        for function in (mask_tokens, select_tokens):
            weighted = functools.partial(function, k=length // 4, weighted=True)
            yield Case("poi_topk", f"{function.__name__} {name}", weighted, (tokens, scores))


def _attention_of_rows(q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor, key_mask: Tensor, impl: str) -> Any:
    rows, key_mask = rows.to(q.device), key_mask.to(q.device)
    return diagonal_attention(q, k, v, rows=rows, key_mask=key_mask, return_weights=True, impl=impl)


def _swapped(frame: Tensor, other: Tensor, *, swap: Tensor, patch_size: int, impl: str) -> Tensor:
    return swap_patches(frame, other, swap.to(frame.device), patch_size, std=(0.2, 0.3, 0.4), impl=impl)


def results(case: Case, impl: str, device: torch.device) -> list[Tensor]:
    """Outputs and gradients, on the CPU."""
    leaves = [x.to(device).requires_grad_(x.is_floating_point()) for x in case.inputs]
    output = case.function(*leaves, impl=impl)
    outputs = list(output) if isinstance(output, tuple) else [output]
    differentiable = [x for x in outputs if x.requires_grad]
    wrt = [x for x in leaves if x.requires_grad]
    if differentiable:
        gradients = [torch.ones(x.shape, dtype=x.dtype).to(device) for x in differentiable]
        outputs += torch.autograd.grad(differentiable, wrt, gradients)
    return [x.detach().cpu() for x in outputs]


def agree(tested: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Coarse: the tests hold the fine rule."""
    if not tested.is_floating_point():
        return torch.equal(tested, expected)
    error = (tested.double() - expected.double()).abs().max()
    return bool(error <= TOLERANCE.get(dtype, 1e-3) * expected.double().abs().max().clamp(min=1e-3))


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if every kernel agreed with the reference, 1 if one did not or none could be called."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--operator", choices=OPERATORS, help="only this one")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    called, wrong = dict.fromkeys(("triton", "native"), 0), 0
    for case in cases():
        if options.operator not in (None, case.operator):
            continue
        available = OPERATORS[case.operator].IMPLEMENTATIONS
        dtypes = [x.dtype for x in case.inputs]
        expected = None
        for impl in called:
            why = why_not(available, impl, device, dtypes, **case.sizes)
            if why is not None:
                print(f"{case.operator} {case.name}: not {impl}, which {why}")
                continue
            expected = expected or results(case, "reference", torch.device("cpu"))
            tested = results(case, impl, device)
            right = all(agree(x, y, dtypes[0]) for x, y in zip(tested, expected, strict=True))
            print(f"{case.operator} {case.name}: {impl} {'agrees' if right else 'IS WRONG'}", flush=True)
            called[impl] += 1
            wrong += not right
    print(", ".join(f"{count} cases of {impl}" for impl, count in called.items()), f"{wrong} wrong", sep=", ")
    return int(wrong > 0 or not any(called.values()))


if __name__ == "__main__":
    sys.exit(main())
