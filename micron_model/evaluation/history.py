"""What trainings measured from epoch to epoch: a csv each, and the picture of all of them."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..limits import read_file
from ..plain_text import in_figure, to_csv
from ..visualize import LINE_COLOURS
from ..whole_file import write_whole

#: A row an epoch: numbers by name (``Recognizer.history``).
History = Sequence[Mapping[str, float]]
_MOST_BYTES = 4 << 20


def write_history(path: Path, history: History) -> None:
    """Write a csv: the epoch, from 1 on, and what was measured in it."""
    rows = [[epoch, *(f"{value:.6g}" for value in row.values())] for epoch, row in enumerate(history, 1)]
    write_whole(path, to_csv([["epoch", *history[0]], *rows]))


def read_histories(folder: Path) -> list[dict[str, np.ndarray]]:
    """What each training in a folder measured, by name, (epochs,).

    Raises:
        ValueError: a file holds something else.
    """
    found = []
    for path in sorted(folder.rglob("*.csv")):
        try:
            names, *rows = csv.reader(io.StringIO(read_file(path, _MOST_BYTES).decode()), strict=True)
            values = np.array(rows, float).reshape(len(rows), len(names))
        except (ValueError, csv.Error):
            raise ValueError(f"{path}: is not what was written there; delete it and its fold's csv") from None
        found.append(dict(zip(names[1:], values.T[1:], strict=True)))
    return found


def figure_of_histories(histories: Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """A panel for losses and one for all else: mean over trainings, and the band of 80 % of them."""
    names = list(dict.fromkeys(name for history in histories for name in history))
    panels = [
        found for found in ([n for n in names if "loss" in n], [n for n in names if "loss" not in n]) if found
    ]
    figure = Figure(figsize=(4.6 * len(panels), 2.9), layout="constrained")
    for axes, shown in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, colour in zip(shown, itertools.cycle(LINE_COLOURS), strict=False):
            of_name = [history[name] for history in histories if name in history]
            shortest = min(map(len, of_name))
            values = np.stack([x[:shortest] for x in of_name])  # [trainings, epochs]
            epochs = np.arange(1, shortest + 1)
            low, high = np.quantile(values, (0.1, 0.9), axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            marker = "o" if len(epochs) == 1 else None  # a point is no line
            axes.plot(epochs, values.mean(0), marker=marker, color=colour, label=in_figure(name))
        if any("cosine" in name for name in shown):
            axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure
