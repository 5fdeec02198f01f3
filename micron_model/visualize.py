"""Pictures of what a μ-BERT sees."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from micron_kernels import frame_difference

from .models.micron_bert import MicronBERT
from .plain_text import in_figure
from .whole_file import write_whole

MAP_COLOURS = "cividis"  # reads the same with every kind of colour blindness, and in grey
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of Okabe and Ito, colour-blind-safe


@torch.no_grad()
def change_maps(model: MicronBERT, onset: Tensor, apex: Tensor) -> dict[str, Tensor]:
    """Maps (B, rows, columns) of what changed between two frames (B, 3, H, W), uint8.

    ``difference``: mean absolute difference of grey levels, in [0, 1]. ``micro_attention``: that of
    :meth:`MicronBERT.movement_map`, high where the frames differ.
    ``poi``: Patch-of-Interest scores of the apex times the number of patches; 1 is average.
    """
    was_training = model.training
    model.eval()
    size = model.config.patch_size
    before, after = model.encode_pair(onset, apex)
    change = model.movement_map(before, after)
    model.train(was_training)
    maps = {
        "difference": frame_difference(apex, onset, size),
        "micro_attention": change,
        "poi": after.scores * after.scores.shape[1],
    }
    grid = (onset.shape[2] // size, onset.shape[3] // size)
    return {name: x.unflatten(1, grid).cpu() for name, x in maps.items()}


def save_figure(figure: Figure, path: Path, dpi: int = 140) -> None:
    """Write a figure in the format of the suffix (PNG without one), whole or not at all.

    Raises:
        ValueError: matplotlib knows no such format.
        RuntimeError: it cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower() or "png", dpi=dpi)
    write_whole(path, buffer.getvalue())


def to_image(frame: Tensor) -> np.ndarray:
    """A frame (3, H, W), uint8 or floating in [0, 1], as (H, W, 3) floating in [0, 1]."""
    image = frame.detach().cpu()
    image = image / 255 if image.dtype == torch.uint8 else image.float().clamp(0, 1)
    return image.permute(1, 2, 0).numpy()


def _bare(axes: Axes, title: str = "") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=9)


def _amplified_difference(onset: Tensor, apex: Tensor, gain: float) -> np.ndarray:
    difference = apex.cpu().float() - onset.cpu().float()
    return (0.5 + gain * difference / 255).clamp(0, 1).permute(1, 2, 0).numpy()


def _overlay(axes: Axes, frame: Tensor, values: np.ndarray, opacity: float = 0.6) -> None:
    """``values`` (rows, columns), stretched to its own range, in colour over the frame in grey."""
    grey = to_image(frame).mean(2)
    height, width = grey.shape
    low, high = float(values.min()), float(values.max())
    stretched = (values - low) / (high - low) if high > low else np.zeros_like(values)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axes.imshow(
        stretched, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=opacity, extent=(0, width, height, 0),
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xlabel(f"{low:.2f} to {high:.2f}", fontsize=7, labelpad=2)


def figure_of_pairs(
    onset: Tensor,
    apex: Tensor,
    maps: dict[str, Tensor],
    *,
    labels: Sequence[str] = (),
    truth: Tensor | None = None,
    gain: float = 4.0,
) -> Figure:
    """Rows of onset | apex | amplified difference | micro-attention | Patch of Interest (| true motion).

    Args:
        onset, apex: (B, 3, H, W), uint8.
        maps: what :func:`change_maps` gave for them.
        labels: one a row.
        truth: (B, rows, columns), true motion in pixels, where it is known.
        gain: factor of the difference, shown around mid-grey.
    """
    columns = ["onset", "apex", f"difference ×{gain:g}", "micro-attention", "Patch of Interest"]
    overlays = [maps["micro_attention"], maps["poi"]]
    if truth is not None:
        columns.append("true motion (px)")
        overlays.append(truth)
    count = onset.shape[0]
    figure = Figure(figsize=(1.75 * len(columns) + 0.8, 1.95 * count + 0.4), layout="constrained")
    grid: Any = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        images = [
            to_image(onset[row]),
            to_image(apex[row]),
            _amplified_difference(onset[row], apex[row], gain),
        ]
        for axes, image in zip(grid[row], images, strict=False):
            axes.imshow(image)
        for axes, values in zip(grid[row, 3:], overlays, strict=True):
            _overlay(axes, apex[row], values[row].numpy())
        for column, axes in enumerate(grid[row]):
            _bare(axes, columns[column] if row == 0 else "")
        if row < len(labels):
            grid[row, 0].set_ylabel(in_figure(labels[row]), fontsize=8)
    bar = figure.colorbar(ScalarMappable(cmap=MAP_COLOURS), ax=grid, fraction=0.02, pad=0.01)
    bar.set_ticks([0, 1], labels=["lowest", "highest"])
    bar.set_label("of each map's own range", fontsize=8)
    return figure


def figure_of_images(clips: Tensor, *, titles: Sequence[str], labels: Sequence[str]) -> Figure:
    """A row of images a clip (B, T, 3, H, W), uint8, with a title a column and a label a row."""
    count, columns = clips.shape[:2]
    figure = Figure(figsize=(1.75 * columns + 0.3, 1.8 * count + 0.3), layout="constrained")
    grid: Any = figure.subplots(count, columns, squeeze=False)
    for row in range(count):
        for column, axes in enumerate(grid[row]):
            axes.imshow(to_image(clips[row, column]))
            _bare(axes, titles[column] if row == 0 else "")
        if row < len(labels):
            grid[row, 0].set_ylabel(labels[row], fontsize=8)
    return figure


def figure_of_reconstructions(
    model: MicronBERT, frames: Tensor, later: Tensor, result: dict[str, Tensor]
) -> Figure:
    """Rows of frame t | frame t+δ | t with patches of t+δ in it | which patches | restored.

    Args:
        frames, later: (B, 3, H, W), uint8.
        result: what the model's ``forward`` gave for them.
    """
    columns = ["frame t", "frame t+δ", "t with patches of t+δ", "swapped patches", "restored t"]
    size = model.config.patch_size
    grid_shape = (frames.shape[2] // size, frames.shape[3] // size)
    swapped = model.denormalize(result["swapped"])
    restored = model.denormalize(model.unpatchify(result["reconstruction"].float(), *grid_shape))
    count = frames.shape[0]
    figure = Figure(figsize=(1.75 * len(columns), 1.8 * count + 0.3), layout="constrained")
    grid: Any = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        mask = result["swap"][row].unflatten(0, grid_shape).float().cpu().numpy()
        for column, image in ((0, frames[row]), (1, later[row]), (2, swapped[row]), (4, restored[row])):
            grid[row, column].imshow(to_image(image))
        grid[row, 3].imshow(mask, cmap=MAP_COLOURS, vmin=0, vmax=1, interpolation="nearest")
        for column, axes in enumerate(grid[row]):
            _bare(axes, columns[column] if row == 0 else "")
    return figure


def figure_of_losses(log: Sequence[dict[str, Any]]) -> Figure:
    """The losses of a run over its steps."""
    steps = [entry for entry in log if "loss" in entry]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    names = {
        "loss": "total",
        "loss_reconstruction": "reconstruction $L_r$",
        "loss_aggregation": "aggregation $L_{agg}$",
    }
    for (name, label), colour in zip(names.items(), LINE_COLOURS, strict=False):
        axes.plot([e["step"] for e in steps], [e[name] for e in steps], label=label, color=colour, lw=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (normalised pixels², log scale)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def figure_of_auroc(log: Sequence[dict[str, Any]]) -> Figure:
    """The AUROC of micro-attention against the swap masks over a run."""
    entries = [entry for entry in log if "auroc_all" in entry]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, label, colour in (
        ("auroc_moved", "the quarter of patches that moved most", LINE_COLOURS[0]),
        ("auroc_all", "all patches", LINE_COLOURS[1]),
    ):
        axes.plot(
            [e["step"] for e in entries], [e[name] for e in entries], "o-", ms=4, label=label, color=colour
        )
    axes.axhline(0.5, color="0.5", lw=1, ls="--", label="chance")
    axes.set_ylim(0.45, 1.0)
    axes.set_xlabel("step")
    axes.set_ylabel("AUROC within a position")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure
