"""What an evaluation writes of adapted recognizers: csv files, curves, and the section of the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .. import html_page
from ..plain_text import in_csv, in_page, to_csv
from ..visualize import LINE_COLOURS
from ..whole_file import write_whole
from .adaptation import Setting
from .folds import MODEL, slug
from .metrics import PartScore, score
from .predictions import ANOTHER_PROTOCOL, Predictions, write_predictions
from .report import banner

_STYLES = ("o-", "s--", "D:", "^-.", "v-")
#: Of every kind, by setting.
Adapted = Mapping[str, Mapping[Setting, Predictions]]
Scores = dict[str, dict[Setting, PartScore]]


def scores_of(adapted: Adapted) -> Scores:
    return {kind: {s: score(p).full for s, p in of.items()} for kind, of in adapted.items()}


def write_adapted(out: Path, adapted: Adapted, stamps: Sequence[str]) -> tuple[str, str]:
    """Write ``adapted.csv`` and ``adapted.png``, and a csv of predictions of each setting in ``adapted-predictions``.

    Args:
        out: the folder of the report.
        adapted: of at least one recognizer.
        stamps: what is to be said, beside that it is another protocol.

    Returns:
        Title and HTML of a section of the report.
    """
    scores = scores_of(adapted)
    said = [ANOTHER_PROTOCOL, *stamps]
    for kind, of in adapted.items():
        for setting, predictions in of.items():
            name = f"{slug(kind)}-{setting.clips}-clips-{setting.steps}-steps.csv"
            path = out / "adapted-predictions" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, predictions)
    header = ["recognizer", "clips that adapt", "steps", "clips", "subjects", "seeds"]
    numbers = ["uf1", "uf1_sd", "uf1_low", "uf1_high", "uar", "accuracy"]
    rows: list[list[object]] = [[*header, *numbers, "stamps"]]
    for kind, of_setting in scores.items():
        for setting, part in of_setting.items():
            uf1 = part.uf1
            values = (uf1.mean, uf1.sd, *uf1.interval, part.uar.mean, part.accuracy.mean)
            seeds = len(uf1.per_seed)
            cells = [f"{value:.6f}" for value in values]
            rows.append([kind, *setting, part.clips, part.subjects, seeds, *cells, in_csv("; ".join(said))])
    write_whole(out / "adapted.csv", to_csv(rows))
    picture = html_page.png(figure_of_adaptation(scores))
    write_whole(out / "adapted.png", picture)
    note = (
        "UF1 of the same clips of every subject, whatever number of its other clips adapts; mean over seeds, bars: "
        "standard deviation. Without clips the recognizer is as it is. Ordinary fine-tuning trains the same network "
        "without tasks, and takes plain steps of one rate on the same clips and layers."
    )
    image = html_page.image(picture, "UF1 over the clips that adapt and over the steps")
    return (
        "Adapted to the person: another protocol",
        f'{banner(said)}{image}<p class="note">{in_page(note)}</p>{html_page.grid(table_of(scores))}',
    )


def table_of(scores: Scores) -> list[list[str]]:
    """A row a setting, a column a recognizer; the first row is the header."""
    first = next(iter(scores.values()))
    part = next(iter(first.values()))
    header = f"clips that adapt, steps ({part.clips} clips of {part.subjects} subjects are tested)"
    rows = [[header, *(f"UF1, {_name(kind)}" for kind in scores)]]
    for setting in first:
        label = f"{_counted(setting.clips, 'clip')}, {_counted(setting.steps, 'step')}"
        measures = [of[setting].uf1 for of in scores.values()]
        rows.append(
            [
                label if setting.clips else "none: as it is",
                *(f"{uf1} {uf1.interval_text}" for uf1 in measures),
            ]
        )
    return rows


def figure_of_adaptation(scores: Scores) -> Figure:
    """UF1 over the number of clips, a line for each number of steps, and over the steps, a line for each number of
    clips; a colour a recognizer."""
    figure = Figure(figsize=(9.2, 4.5), layout="constrained")
    by_clips, by_steps = figure.subplots(1, 2, sharey=True)
    for (kind, of), colour in zip(scores.items(), LINE_COLOURS, strict=False):
        clips = sorted({s.clips for s in of if s.clips})
        steps = sorted({s.steps for s in of if s.clips})
        start = of[Setting(0, 0)]
        for axes, lines, along, setting_of, unit in (
            (by_clips, steps, clips, lambda line, x: Setting(x, line), "step"),
            (by_steps, clips, steps, lambda line, x: Setting(line, x), "clip"),
        ):
            for line, style in zip(lines, itertools.cycle(_STYLES), strict=False):
                parts = [start, *(of[setting_of(line, x)] for x in along)]
                axes.errorbar(
                    [0, *along], [p.uf1.mean for p in parts], [p.uf1.sd for p in parts], color=colour, fmt=style,
                    capsize=2, lw=1.2, ms=4, alpha=0.9, label=f"{_name(kind)}, {_counted(line, unit)}",
                )  # fmt: skip
    by_clips.set_xlabel("labelled clips of the tested subject")
    by_steps.set_xlabel("steps of the gradient")
    by_steps.set_xscale("symlog", linthresh=1)
    by_steps.set_xticks([0, *sorted({s.steps for of in scores.values() for s in of if s.clips})])
    by_steps.xaxis.set_major_formatter("{x:.0f}")
    by_clips.set_xticks([0, *sorted({s.clips for of in scores.values() for s in of if s.clips})])
    by_clips.set_ylabel("UF1")
    for axes in (by_clips, by_steps):
        axes.grid(alpha=0.3)
        axes.legend(
            frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=len(scores)
        )
    figure.suptitle("Another protocol: labelled clips of the tested subject adapt the recognizer", fontsize=9)
    return figure


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def _name(kind: str) -> str:
    return "this run" if kind == MODEL else kind
