"""Draws the pictures of the pages, docs/architecture.svg and docs/operators/*.svg: ``python docs/pictures.py``.

What is drawn is computed by the operators, on a pair of frames of the synthetic clips.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from micron_kernels import blockwise_mask, diagonal_attention, frame_difference, swap_patches, topk_mask
from micron_model.data import synthetic_clips

PATCH, GRID = 8, 8
SIDE = PATCH * GRID
TO = Path(__file__).parent
INK, BLUE, ORANGE = "#333333", "#3949ab", "#e65100"


def two_frames() -> tuple[torch.Tensor, torch.Tensor]:
    """Onset and apex (1, 3, 64, 64), uint8, of the clip that moves most."""
    clips = [clip for clip in synthetic_clips(range(4)) if clip.label is not None]
    pairs = [torch.from_numpy(np.stack(clip.read([clip.onset, clip.apex], SIDE))) for clip in clips]
    onset, apex = max(pairs, key=lambda pair: (pair[0].float() - pair[1].float()).abs().mean())
    return onset[None], apex[None]


def figure(width: float, height: float, ratios: tuple[float, ...]) -> tuple[Figure, list[Axes]]:
    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = list(drawn.subplots(1, len(ratios), width_ratios=ratios))
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return drawn, axes


def show(ax: Axes, frame: torch.Tensor, title: str) -> None:
    ax.imshow(frame[0].permute(1, 2, 0).numpy())
    for at in range(PATCH, SIDE, PATCH):
        ax.axhline(at - 0.5, color="white", lw=0.4, alpha=0.5)
        ax.axvline(at - 0.5, color="white", lw=0.4, alpha=0.5)
    ax.set_title(title)


def heat(ax: Axes, values: torch.Tensor, title: str, cmap: str = "magma") -> None:
    ax.imshow(values.reshape(GRID, GRID).numpy(), cmap=cmap)
    ax.set_title(title)


def tokens_of(frame: torch.Tensor) -> torch.Tensor:
    """Patches (1, 64, 192), each to unit length without its mean: stand-ins for what an encoder would give."""
    x = torch.nn.functional.unfold(frame.float(), PATCH, stride=PATCH).transpose(1, 2)
    return torch.nn.functional.normalize(x - x.mean(2, keepdim=True), dim=2)


def draw_diagonal_attention(onset: torch.Tensor, apex: torch.Tensor) -> Figure:
    query, key = tokens_of(apex), tokens_of(onset)
    scale = 30.0
    softmax = (query @ key.transpose(1, 2) * scale).softmax(2)[0]
    _, weights = diagonal_attention(
        query[:, None], key[:, None], key[:, None], scale=scale, return_weights=True
    )
    drawn, (one, two, matrix, diagonal) = figure(9.6, 2.7, (1, 1, 1, 1))
    show(one, onset, "one frame: keys")
    show(two, apex, "the other: queries")
    matrix.imshow(softmax.sqrt().numpy(), cmap="Blues")
    matrix.plot([0, GRID**2 - 1], [0, GRID**2 - 1], color=ORANGE, lw=1.2)
    matrix.set_title("row softmax, N × N")
    matrix.set(xlabel="keys j", ylabel="queries i")
    heat(diagonal, 1 - weights[0, 0], "1 − its diagonal p, per patch")
    return drawn


def draw_frame_difference(onset: torch.Tensor, apex: torch.Tensor) -> Figure:
    drawn, (one, two, result) = figure(7.4, 2.7, (1, 1, 1))
    show(one, onset, "reference r")
    show(two, apex, "frame x")
    heat(result, frame_difference(apex, onset, PATCH), "mean |x − r| per patch")
    return drawn


def draw_swap_patches(onset: torch.Tensor, apex: torch.Tensor) -> Figure:
    swap = blockwise_mask(1, (GRID, GRID), 0.4, torch.Generator().manual_seed(3))
    red = (
        apex.float() * torch.tensor([1.0, 0.72, 0.55])[:, None, None]
    )  # so that it is seen whose patch is whose
    tinted = red.round().clamp(0, 255).byte()
    drawn, axes = figure(9.6, 2.7, (1, 1, 1, 1))
    show(axes[0], onset, "frame")
    show(axes[1], tinted, "other (tinted)")
    heat(axes[2], swap.float(), "swap", "Blues")
    show(axes[3], swap_patches(onset, tinted, swap, PATCH), "result")
    return drawn


def draw_poi_topk() -> Figure:
    scores = torch.tensor([[0.2, 0.9, 0.1, 0.6, 0.3, 0.8, 0.05, 0.6, 0.4, 0.15, 0.7, 0.25]])
    _, indices = topk_mask(scores, 4)
    chosen = indices[0].tolist()
    count = scores.shape[1]
    drawn, (bars, cells) = figure(9.6, 2.9, (1, 1))
    colours = [BLUE if i in chosen else "#c5cae9" for i in range(count)]
    bars.bar(range(count), scores[0].tolist(), color=colours)
    bars.set(xticks=range(count), xlabel="position", ylabel="score")
    bars.set_title("the k = 4 highest scores; any tie would go to the lower position")
    rows = {"tokens": range(count), "mask_tokens": chosen, "select_tokens": chosen}
    for y, (name, kept) in enumerate(rows.items()):
        for place, i in enumerate(chosen if name == "select_tokens" else range(count)):
            there = i in kept
            colour = colours[i] if there else "white"
            cells.add_patch(matplotlib.patches.Rectangle((place, -y), 0.9, 0.7, fc=colour, ec="#9fa8da"))
            ink = "white" if there and i in chosen else INK
            cells.text(place + 0.45, -y + 0.35, str(i) if there else "0", ha="center", va="center", color=ink)
        cells.text(-0.3, -y + 0.35, name, ha="right", va="center")
    cells.set(xlim=(-3.6, count), ylim=(-2.3, 1.0))
    cells.axis("off")
    return drawn


def draw_architecture() -> Figure:
    """Boxes and arrows: pre-training above, evaluation below."""
    drawn = Figure(figsize=(9.6, 3.3), layout="constrained")
    ax = drawn.subplots()
    ax.axis("off")
    ax.set(xlim=(0, 11), ylim=(0, 3.7))

    def box(x: float, y: float, name: str, below: str, colour: str) -> None:
        ax.add_patch(
            matplotlib.patches.FancyBboxPatch(
                (x, y), 1.62, 0.82, boxstyle="round,pad=0.03", fc=colour, ec="#9fa8da"
            )
        )
        ax.text(x + 0.81, y + 0.56, name, ha="center", va="center", fontsize=8.6, weight="bold", color=INK)
        ax.text(x + 0.81, y + 0.23, below, ha="center", va="center", fontsize=7.5, color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 1.3})

    ours, plain = "#c5cae9", "#f5f5f5"
    rows = (
        (
            2.5,
            ("videos, images", "find, read", plain),
            ("pairs", "frame t, frame t + δ", plain),
            ("swap_patches", "δ's patches in t", ours),
            ("encoder", "tokens, scores", plain),
            ("diagonal_attention", "what changed, where", ours),
            ("decoder, losses", "L_r, L_agg", plain),
        ),
        (
            0.25,
            ("database", "sheet and frames", plain),
            ("census", "beside the official one", plain),
            ("faces, input", "cut and kept once", plain),
            ("recipe", "trains a recognizer", plain),
            ("folds", "by subject", plain),
            ("predictions.csv", "every score is of it", plain),
        ),
    )
    for y, *boxes in rows:
        for i, (name, below, colour) in enumerate(boxes):
            box(0.1 + 1.84 * i, y, name, below, colour)
            if i:
                arrow((1.84 * i - 0.08, y + 0.41), (0.1 + 1.84 * i - 0.03, y + 0.41))
    ax.text(0.1, 3.5, "pre-training, without labels", fontsize=9, color=BLUE, va="center")
    ax.text(0.1, 1.25, "evaluation", fontsize=9, color=BLUE, va="center")
    arrow((0.1 + 1.84 * 3.44, 2.45), (0.1 + 1.84 * 3.44, 1.12))
    ax.text(
        0.2 + 1.84 * 3.44,
        1.78,
        "the pre-trained model, and whom it has seen",
        fontsize=8,
        va="center",
        color=INK,
    )
    return drawn


def main() -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "micron", "font.size": 9, "axes.titlesize": 9})
    pair = two_frames()
    pictures = {
        "diagonal_attention": draw_diagonal_attention(*pair),
        "frame_difference": draw_frame_difference(*pair),
        "poi_topk": draw_poi_topk(),
        "swap_patches": draw_swap_patches(*pair),
    }
    for name, drawn in pictures.items():
        drawn.savefig(TO / "operators" / f"{name}.svg", metadata={"Date": None}, dpi=150)
    draw_architecture().savefig(TO / "architecture.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
