"""Pictures of what was found in a video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from .data.clips.faces import place_in_cut
from .plain_text import in_figure
from .prediction import Analysis, Candidate, Movement
from .recognizers.base import Recognizer
from .visualize import LINE_COLOURS


def figure_of_curve(analysis: Analysis) -> Figure:
    """The speed of the face over time; its movements are shaded, short ones with their likeliest class."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(analysis.curve)) / analysis.fps, analysis.curve, color=LINE_COLOURS[0], lw=1)
    groups: tuple[tuple[str, str, Sequence[Movement]], ...] = (
        ("at most 0.5 s", LINE_COLOURS[1], analysis.candidates),
        ("longer", LINE_COLOURS[3], analysis.longer),
        ("ignored", "0.5", analysis.ignored),
    )
    for name, colour, movements in groups:
        for i, movement in enumerate(movements):
            onset, apex, offset = movement.seconds
            axes.axvspan(onset, offset, color=colour, alpha=0.2, lw=0, label=None if i else name)
            axes.axvline(apex, color=colour, lw=0.8)
            label: str = movement.spotted.kind
            if isinstance(movement, Candidate) and movement.probabilities:
                likeliest = max(movement.probabilities, key=movement.probabilities.__getitem__)
                label = f"{in_figure(likeliest, 24)} {movement.probabilities[likeliest]:.2f}"
            axes.annotate(
                label, (apex, 1), (2, -3), xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                ha="left", va="top", fontsize=7,
            )  # fmt: skip
    axes.axhline(analysis.threshold, color=LINE_COLOURS[2], ls="--", lw=0.8, label="threshold")
    axes.set_xlabel("seconds")
    axes.set_ylabel("speed of the face (pixels of 80)")
    axes.margins(x=0, y=0.15)
    axes.grid(alpha=0.3)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8
    )
    return figure


def figure_of_candidates(analysis: Analysis, recognizer: Recognizer, margin: float) -> Figure | None:
    """What the recognizer sees in each candidate; None if there is none, or it has nothing to show.

    Maps are shown inside the outline of the face, which was cut with ``margin`` (:class:`SpotConfig`).
    """
    if not analysis.candidates:
        return None
    values = torch.stack([candidate.values for candidate in analysis.candidates])
    labels = [f"{candidate.seconds[1]:.2f} s" for candidate in analysis.candidates]
    size = recognizer.clip_input.size
    return recognizer.picture(values, labels, None if size is None else place_in_cut(margin, size))
