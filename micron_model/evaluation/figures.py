"""Pictures of how well expressions are recognised."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..plain_text import in_figure
from ..visualize import LINE_COLOURS, MAP_COLOURS
from .metrics import PartScore

_COLOURS = (*LINE_COLOURS, "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*X"
#: Characters of a name that there is room for.
_LONGEST = 24


def figure_of_confusions(parts: Sequence[PartScore], *, stamps: Sequence[str] = ()) -> Figure:
    """A panel for each part: clips (mean over seeds) and, coloured, their share of the true class. Rows are the truth.

    Args:
        parts: one or more, of the same classes.
        stamps: written above.
    """
    classes = [in_figure(name, _LONGEST) for name in parts[0].counts]
    columns = min(len(parts), 4 if len(classes) <= 3 else 2)
    rows = -(-len(parts) // columns)
    side = 0.95 + 0.6 * len(classes)
    figure = Figure(figsize=(max(side * columns, 4.5), (side + 0.75) * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, part in zip(grid.flat, parts, strict=False):
        _draw(axes, part, classes)
    for axes in grid.flat[len(parts) :]:
        axes.remove()
    _stamp(figure, stamps)
    return figure


def _draw(axes: Axes, part: PartScore, classes: Sequence[str]) -> None:
    clips = part.confusion.mean(0)
    true = clips.sum(1, keepdims=True)
    shares = np.where(true > 0, clips / np.maximum(true, 1e-9), np.nan)
    axes.imshow(np.ma.masked_invalid(shares), cmap=MAP_COLOURS, vmin=0, vmax=1)
    axes.set_facecolor("0.9")
    axes.set_xticks(range(len(classes)), classes, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    several = len(part.confusion) > 1
    axes.set_title(f"{in_figure(part.name, _LONGEST)}, {part.clips} clips", fontsize=10)
    for (row, column), share in np.ndenumerate(shares):
        count = f"{clips[row, column]:.1f}" if several else f"{clips[row, column]:.0f}"
        text = f"{count}\n{share:.0%}" if np.isfinite(share) else "–"
        colour = "white" if np.isfinite(share) and share < 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _stamp(figure: Figure, stamps: Sequence[str]) -> None:
    """Make room above and write there."""
    if not stamps:
        return
    width, height = figure.get_size_inches()
    lines = [line for stamp in stamps for line in textwrap.wrap(in_figure(stamp, 1000), int(12 * width))]
    figure.set_size_inches(width, height + 0.17 * len(lines))
    figure.suptitle("\n".join(lines), color="#b00020", fontsize=9, fontweight="bold")


def principal_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components (n, 2) of features (n, d), and the share of the variance of each (2,).

    Their signs are such that the largest entry of each direction is positive.

    Raises:
        ValueError: there are fewer than three rows, fewer than two columns, or an entry is not finite.
    """
    if features.ndim != 2 or features.shape[0] < 3 or features.shape[1] < 2:
        raise ValueError(
            f"features of shape {features.shape}; (n, d) with n at least 3 and d at least 2 is needed"
        )
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    centred = features - features.mean(0)
    left, scale, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    largest = directions[np.arange(2), np.abs(directions[:2]).argmax(1)]
    signs = np.where(largest < 0, -1.0, 1.0)
    variance = scale**2
    return left[:, :2] * scale[:2] * signs, variance[:2] / max(float(variance.sum()), np.finfo(float).tiny)


def figure_of_features(
    features: np.ndarray,
    labels: Sequence[str],
    datasets: Sequence[str],
    classes: Sequence[str],
    *,
    stamps: Sequence[str] = (),
) -> Figure:
    """The first two principal components of features (n, d): a colour a class, a marker a dataset.

    Raises:
        ValueError: not as many labels or datasets as rows, a label that is no class, or what
            :func:`principal_components` refuses.
    """
    if not len(features) == len(labels) == len(datasets):
        raise ValueError(
            f"{len(features)} features, {len(labels)} labels, {len(datasets)} datasets; one each a clip"
        )
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise ValueError(f"label {unknown[0]!r} is none of {', '.join(classes)}")
    points, shares = principal_components(features)
    colours = dict(zip(classes, _COLOURS, strict=False))
    if len(classes) > len(_COLOURS):
        colours = dict(zip(classes, colormaps["turbo"](np.linspace(0, 1, len(classes))), strict=True))
    names = sorted(set(datasets))
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axes = figure.subplots()
    markers = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(names)}
    for dataset, marker in markers.items():
        mine = [i for i, name in enumerate(datasets) if name == dataset]
        x, y = points[mine].T
        colour = [colours[labels[i]] for i in mine]
        axes.scatter(x, y, c=colour, marker=marker, s=22, alpha=0.75, linewidths=0)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.grid(alpha=0.3)
    keys = [
        Line2D([], [], ls="", marker="o", color=colours[name], label=in_figure(name, _LONGEST))
        for name in classes
    ]
    if len(names) > 1:
        keys += [
            Line2D([], [], ls="", marker=markers[name], color="0.4", label=in_figure(name, _LONGEST))
            for name in names
        ]
    figure.legend(handles=keys, loc="outside right center", frameon=False, fontsize=9)
    _stamp(figure, stamps)
    return figure
