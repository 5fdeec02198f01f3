"""Pictures of what a μ-BERT sees."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
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
    ``poi``: Patch-of-Interest scores of the apex times the number of patches, 1 is average; not of a model without.
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
    }
    if model.config.poi != "off":
        maps["poi"] = after.scores * after.scores.shape[1]
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


class Overlay(NamedTuple):
    """A map over the frame that it is of."""

    frame: Tensor
    """(3, H, W)."""
    values: Tensor
    """(rows, columns)."""
    limits: tuple[float, float] | None = None
    """Lowest and highest value of the colours, which are written below it; its own if not given."""
    inside: Tensor | None = None
    """(rows, columns), bool: where it is shown; everywhere if not given."""


def above_zero(values: Tensor) -> tuple[float, float] | None:
    """Limits of the colours of maps of change: from nothing to the highest, or their own if nothing is above 0.

    Below 0 a patch looks more like itself than if nothing had changed.
    """
    highest = float(values.max())
    return (0.0, highest) if highest > 0 else None


def map_image(overlay: Overlay, opacity: float = 0.6) -> np.ndarray:
    """A map in colour over its frame in grey: (H, W, 3), uint8."""
    grey, values = to_image(overlay.frame).mean(2, keepdims=True), overlay.values.cpu().numpy()
    height, width, _ = grey.shape
    inside = np.ones(values.shape, bool) if overlay.inside is None else overlay.inside.numpy()
    low, high = limits_of(overlay)
    stretched = ((values - low) / (high - low)).clip(0, 1) if high > low else np.zeros_like(values)
    rows, columns = (
        np.arange(n) * cells // n for n, cells in zip((height, width), values.shape, strict=True)
    )
    colours = colormaps[MAP_COLOURS](stretched[rows[:, None], columns])[..., :3]
    share = opacity * inside[rows[:, None], columns, None]
    return (255 * (share * colours + (1 - share) * grey)).round().astype(np.uint8)


def limits_of(overlay: Overlay) -> tuple[float, float]:
    """Lowest and highest value of its colours."""
    values = overlay.values if overlay.inside is None else overlay.values[overlay.inside]
    return overlay.limits or (float(values.min()), float(values.max()))


def _overlay(axes: Axes, overlay: Overlay) -> None:
    low, high = limits_of(overlay)
    axes.imshow(map_image(overlay))
    axes.set_xlabel(f"{low:.2f} to {high:.2f}", fontsize=7, labelpad=2)


def figure_of_cells(
    cells: Sequence[Sequence[Tensor | np.ndarray | Overlay]],
    *,
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    scale: str = "of each map's own range",
) -> Figure:
    """Rows of frames (3, H, W), images (H, W, 3) and maps over frames, with a title a column and a label a row.

    ``scale`` says what the highest and the lowest colour are of, where there are maps.
    """
    count, columns = len(cells), len(cells[0])
    maps = any(isinstance(cell, Overlay) for row in cells for cell in row)
    figure = Figure(
        figsize=(1.75 * columns + (0.8 if maps else 0.3), (1.85 if maps else 1.75) * count + 0.4),
        layout="constrained",
    )
    grid: Any = figure.subplots(count, columns, squeeze=False)
    for row, of_row in enumerate(cells):
        for column, (axes, cell) in enumerate(zip(grid[row], of_row, strict=True)):
            if isinstance(cell, Overlay):
                _overlay(axes, cell)
            else:
                axes.imshow(to_image(cell) if isinstance(cell, Tensor) else cell)
            _bare(axes, titles[column] if row == 0 and column < len(titles) else "")
        if row < len(labels):
            grid[row, 0].set_ylabel(in_figure(labels[row]), fontsize=8)
    if maps:
        bar = figure.colorbar(ScalarMappable(cmap=MAP_COLOURS), ax=grid, fraction=0.02, pad=0.01)
        bar.set_ticks([0, 1], labels=["lowest", "highest"])
        bar.set_label(scale, fontsize=8)
    return figure


def figure_of_pairs(
    onset: Tensor,
    apex: Tensor,
    maps: dict[str, Tensor],
    *,
    labels: Sequence[str] = (),
    gain: float = 4.0,
    inside: Tensor | None = None,
) -> Figure:
    """Rows of onset | apex | amplified difference | micro-attention | Patch of Interest, where the model has one.

    Args:
        onset, apex: (B, 3, H, W), uint8.
        maps: what :func:`change_maps` gave for them.
        labels: one a row.
        gain: factor of the difference, shown around mid-grey.
        inside: (rows, columns), bool: the patches of which maps are shown; all if not given.
    """
    overlays = {"micro_attention": "micro-attention", "poi": "Patch of Interest"}
    shown = [name for name in overlays if name in maps]
    cells: list[list[Tensor | np.ndarray | Overlay]] = []
    for i, after in enumerate(apex):
        of_row = [maps[name][i] for name in shown]
        limits = [above_zero(x if inside is None else x[inside]) for x in of_row]
        drawn = [Overlay(after, x, of_map, inside) for x, of_map in zip(of_row, limits, strict=True)]
        cells.append([onset[i], after, _amplified_difference(onset[i], after, gain), *drawn])
    titles = ["onset", "apex", f"difference ×{gain:g}", *(overlays[name] for name in shown)]
    return figure_of_cells(cells, titles=titles, labels=labels, scale="from 0 to the highest of the map")


def figure_of_images(clips: Tensor, *, titles: Sequence[str], labels: Sequence[str]) -> Figure:
    """A row of images a clip (B, T, 3, H, W), uint8, with a title a column and a label a row."""
    return figure_of_cells([list(clip) for clip in clips], titles=titles, labels=labels)


def figure_of_losses(log: Sequence[dict[str, Any]]) -> Figure:
    """The losses of a run over its steps."""
    steps = [entry for entry in log if "loss" in entry]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    names = {
        "loss": "total",
        "loss_reconstruction": "reconstruction $L_r$",
        "loss_aggregation": "aggregation $L_{agg}$",
        "loss_movement": "movement",
    }
    parts = [name for name in names if any(entry[name] for entry in steps)]
    if len(parts) == 2:  # the total is the other
        parts = parts[1:]
    for name, colour in zip(parts, LINE_COLOURS, strict=False):
        axes.plot(
            [e["step"] for e in steps], [e[name] for e in steps], label=names[name], color=colour, lw=1.2
        )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (log scale)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def figure_of_auroc(log: Sequence[dict[str, Any]], plain: Mapping[str, float]) -> Figure:
    """AUROC of a model's maps over a run, a curve a level of nuisances.

    Args:
        log: of the run; what it says of a level is called ``auroc_<level>``.
        plain: the AUROC of the best plain means at each level, drawn dashed.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for (level, best), colour in zip(plain.items(), LINE_COLOURS, strict=False):
        entries = [entry for entry in log if f"auroc_{level}" in entry]
        axes.plot(
            [e["step"] for e in entries], [e[f"auroc_{level}"] for e in entries], "o-", ms=4, color=colour, label=level
        )  # fmt: skip
        axes.axhline(best, color=colour, lw=1, ls="--")
    axes.plot([], [], color="0.3", lw=1, ls="--", label="best plain means")
    axes.set_xlabel("step")
    axes.set_ylabel("AUROC of the map")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return figure
