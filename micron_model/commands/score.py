"""``micron score``: what a csv of predictions is worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.megc_log import write_megc_log
from ..evaluation.metrics import PartScore, accuracy, score, uar, uf1
from ..evaluation.metrics import Score as Scores
from ..evaluation.predictions import read_predictions
from ..plain_text import cell_of_terminal, say, visible
from ..progress import working
from .answer import answering


@dataclass
class Score:
    """Print the scores of a csv of predictions: UF1, UAR and accuracy, pooled over all folds, with intervals."""

    predictions: tyro.conf.Positional[Path]
    """The csv: dataset, subject, clip, truth, prediction, logit_<class>..., fold, seed, selection."""
    megc_log: Path | None = None
    """Folder in which to write the predictions of each seed as a log of the MEGC 2019 challenge."""
    resamples: int = 1000
    """Of the subjects, for the intervals (95 %)."""
    json: bool = False
    """Print one JSON document instead of tables."""

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples={self.resamples}; it must be at least 1")

    def run(self, console: Console) -> None:
        predictions = read_predictions(self.predictions)
        with working("drawing the intervals", console):
            scores = score(predictions, resamples=self.resamples)
        with answering(self.json) as answer:
            answer.document = scores.as_json()
        if not self.json:
            # Of a pipe, rich would take the width to be 80.
            print_score(
                scores, Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)
            )
        if self.megc_log is not None:
            for seed in predictions.seeds:
                write_megc_log(self.megc_log / f"seed-{seed}.txt", predictions, seed)
            say(console, f"logs: {self.megc_log}")


#: Of a csv that holds several datasets.
_UNKNOWN_TRAINING = (
    "The csv does not say whether the scores of single datasets come from training on that one alone or on all "
    "together; papers print both under one name."
)


def print_score(scores: Scores, out: Console, *, parts: str = _UNKNOWN_TRAINING) -> None:
    """Stamps, the measures of Full and parts, clips and measures of each class, the confusion matrix of Full.

    ``parts`` says what was trained on for the scores of single datasets.
    """
    for stamp in scores.stamps:
        out.print(Text(visible(stamp), style="bold red"))
    seeds = ", ".join(map(str, scores.seeds))
    plural = "s" * (len(scores.seeds) > 1)
    out.print(
        Text(f"{scores.folds} folds pooled; seed{plural} {seeds}; epoch: {', '.join(scores.selections)}")
    )
    _print_measures(scores, out)
    if len(scores.parts) > 1 and parts:
        say(out, parts)
    _print_classes(scores, out)
    _print_confusion(scores.full, scores.classes, out)


def _print_table(out: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(cell_of_terminal(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(cell_of_terminal, row))
    out.print(cell_of_terminal(f"\n{title}"), table)


def _print_measures(scores: Scores, out: Console) -> None:
    rows = [
        [
            part.name,
            *(f"{m}\n{m.interval_text}" for m in (part.uf1, part.uar, part.accuracy)),
            str(part.clips),
            str(part.subjects),
        ]
        for part in scores.shown
    ]
    title = "Mean ± sd over seeds; in brackets the 95 % interval of the mean, of a bootstrap over subjects"
    _print_table(out, title, ["", "UF1", "UAR", "accuracy", "clips", "subjects"], rows)
    largest, always = scores.full.always_the_largest
    values = f"UF1 {uf1(always):.3f}, UAR {uar(always):.3f}, accuracy {accuracy(always):.3f}"
    say(out, f"Always {visible(largest)!r}: {values}")
    for part in scores.shown:
        if part.absent:
            say(out, f"Not counted in {part.name}, which has no clip of it: {', '.join(part.absent)}")


def _print_classes(scores: Scores, out: Console) -> None:
    full = scores.full
    rows = [
        [
            name,
            *(str(part.counts[name]) for part in scores.shown),
            *(
                "–" if name in full.absent else f"{value[name]:.3f}"
                for value in (full.class_f1, full.class_recall)
            ),
        ]
        for name in scores.classes
    ]
    columns = ["", *(part.name for part in scores.shown), "F1 (Full)", "recall (Full)"]
    _print_table(out, "Clips of each class", columns, rows)


def _print_confusion(part: PartScore, classes: Sequence[str], out: Console) -> None:
    several = len(part.confusion) > 1
    rows = [
        [name, *(f"{value:.1f}" if several else f"{value:.0f}" for value in row)]
        for name, row in zip(classes, part.confusion.mean(0), strict=True)
    ]
    title = f"Clips of {part.name}, rows true, columns predicted" + (", mean over seeds" if several else "")
    _print_table(out, title, ["true \\ predicted", *classes], rows)
