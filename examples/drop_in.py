"""Swap `diagonal_attention` into somebody else's model and see what it changes: time and memory, not results.

    python examples/drop_in.py
    python examples/drop_in.py --patch 4 --batch 1 --device cuda

`TwoFrameNet` stands for a research repository: its attention computes the whole N×N softmax to keep the diagonal.
One call, `replace_diagonal_attention(model)`, finds the module and puts ours in its place, on the same weights.
`python -m micron_kernels.info` says which kernels are active.
"""

import argparse
import copy
import os
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from micron_kernels.nn import replace_diagonal_attention
from micron_model.data import synthetic_clips

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks of itself on stderr


class CrossAttention(nn.Module):
    """The foreign module, called with a list [q, k, v], each (B, N, dim)."""

    def __init__(self, dim, num_heads=8, diag_att=True):
        super().__init__()
        self.num_heads = num_heads
        self.diag_att = diag_att
        self.scale = (dim // num_heads) ** -0.5
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv):
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, dim/heads]
            for layer, x in zip((self.to_q, self.to_k, self.to_v), qkv, strict=True)
        )
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)  # [B, heads, N, N]
        if self.diag_att:
            attention = attention.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # [B, heads, N, 1]
            out = attention * v
        else:
            out = attention @ v
        return self.proj(out.transpose(1, 2).flatten(2)), attention


class TwoFrameNet(nn.Module):
    """Two frames (B, 3, H, W) in, logits (B, 3) and the attention out."""

    def __init__(self, size, patch, dim, num_heads):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads)
        self.head = nn.Linear(dim, 3)

    def forward(self, *frames):
        onset, apex = (self.norm(self.embed(x).flatten(2).transpose(1, 2) + self.positions) for x in frames)
        out, attention = self.cross([apex, onset, apex])
        return self.head((apex + out).mean(1)), attention


def training_step(model, onset, apex, labels):
    """The outputs, and the gradients of all parameters."""
    logits, attention = model(onset, apex)
    loss = nn.functional.cross_entropy(logits, labels) + attention.mean()
    return [logits.detach(), attention.detach()], torch.autograd.grad(loss, list(model.parameters()))


def compare(name, before, after, exact):
    """Print the largest difference; exit unless rounding explains it, which a run in fp64 (`exact`) tells."""
    before, after, exact = (  # each tensor over its largest value, then all as one vector
        torch.cat([(x.double().cpu() / e.abs().max()).flatten() for x, e in zip(tensors, exact, strict=True)])
        for tensors in (before, after, exact)
    )
    apart, theirs, ours = ((a - b).abs().max() for a, b in ((after, before), (before, exact), (after, exact)))
    print(f"{name:9} differ by {apart:.1e} of the largest; off fp64: theirs {theirs:.1e}, ours {ours:.1e}")
    if not ours <= 2 * theirs + 2 * torch.finfo(torch.float32).eps:
        raise SystemExit(f"{name} differ by more than rounding")


def milliseconds(functions, device, rounds):
    """Median time of each, called in turn so that all meet the same machine; a first round warms."""
    taken = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) * 1e3 for times in taken]


def peak_mebibytes(function, device):
    """The most that torch's allocator lent at a time. Our C++ kernels need about 1 MiB a thread besides."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    return np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max() / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of a frame in pixels")
    parser.add_argument("--patch", type=int, default=8, help="side of a patch in pixels")
    parser.add_argument("--batch", type=int, default=4, help="pairs of frames")
    parser.add_argument("--dim", type=int, default=512, help="width of a token")
    parser.add_argument("--heads", type=int, default=8, help="heads of the attention")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each")
    args = parser.parse_args()

    clips = synthetic_clips(range(args.batch))[: args.batch]
    pairs = np.stack([clip.read([clip.onset, clip.apex], args.size) for clip in clips])  # [B, 2, 3, H, W]
    onset, apex = (torch.from_numpy(pairs).to(args.device).float() / 127.5 - 1).unbind(1)
    labels = torch.arange(args.batch, device=args.device) % 3
    torch.manual_seed(0)
    theirs = TwoFrameNet(args.size, args.patch, args.dim, args.heads).to(args.device)

    ours = copy.deepcopy(theirs)
    print("replaced:", *replace_diagonal_attention(ours))  # the one call; all else here checks and measures

    results = [training_step(model, onset, apex, labels) for model in (theirs, ours)]
    exact_inputs = (onset.cpu().double(), apex.cpu().double(), labels.cpu())
    results.append(training_step(copy.deepcopy(theirs).cpu().double(), *exact_inputs))
    for name, *values in zip(("outputs", "gradients"), *results, strict=True):
        compare(name, *values)

    forward = [torch.no_grad()(lambda model=model: model(onset, apex)) for model in (theirs, ours)]
    step = [lambda model=model: training_step(model, onset, apex, labels) for model in (theirs, ours)]
    print(f"on {args.batch} pairs of {theirs.positions.shape[1]} patches, {args.heads} heads, {args.device}:")
    for name, functions in (("forward", forward), ("forward + backward", step)):
        times = milliseconds(functions, args.device, args.rounds)
        peaks = [peak_mebibytes(function, args.device) for function in functions]
        print(f"  {name:18} {times[0]:7.1f} -> {times[1]:7.1f} ms ({times[0] / times[1]:.1f}× as fast)"
              f"   {peaks[0]:7.1f} -> {peaks[1]:7.1f} MiB at its peak")  # fmt: skip
