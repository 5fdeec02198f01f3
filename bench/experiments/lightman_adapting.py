"""How fast does a recognizer adapt to a person? Inner steps against ordinary fine-tuning, on a few clips of the person.

Twelve people are learned from, sixteen others tested, and on six more the rate of the steps is chosen: the rates that a
training left (or the one rate of ordinary fine-tuning) times the factor whose curves are highest there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightman_setup import (
    ARMS,
    BOTH,
    EPOCHS,
    PLAIN,
    TRAINED,
    examples_of,
    of_people,
    people_of,
    rows_of,
    seen_by,
    start,
    task,
    with_passes,
    write_row,
)
from matplotlib.figure import SubFigure

from micron_model.evaluation.adaptation import CLIPS, draw
from micron_model.evaluation.metrics import confusion_matrix, resample_subjects, uf1
from micron_model.evaluation.protocols import loso
from micron_model.evaluation.task import Task
from micron_model.recognizers import Examples, Recognizer
from micron_model.recognizers.fitting import logits_of
from micron_model.recognizers.meta import LAST_LAYERS, adapted

TUNED, TESTED = 6, 16
MOST_STEPS = 5
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
#: Of ordinary fine-tuning; a factor is chosen.
RATE = 1e-2
RESAMPLES = 2000
COMPARED = (PLAIN, "two levels, first order", BOTH, "both, second order")
Setting = tuple[int, int]
SETTINGS: list[Setting] = [(0, 0), *((k, s) for k in CLIPS if k for s in range(1, MOST_STEPS + 1))]


def curves(
    recognizer: Recognizer,
    rates: Sequence[float],
    data: Task,
    examples: Examples,
    people: Sequence[str],
    seed: int,
    clips: Sequence[int] = CLIPS,
) -> dict[Setting, np.ndarray]:
    """Confusions (people, C, C) at every number of clips and of steps, of the same clips throughout."""
    found: dict[Setting, list[np.ndarray]] = {setting: [] for setting in SETTINGS if setting[0] in clips}
    for fold in loso(data.expressions):
        if fold.name not in people:
            continue
        ((few, tested),) = draw(data, fold, max(CLIPS), seed)
        values, truth = examples.at(tested).values, [data.labels[i] for i in tested]
        for most in clips:
            model = recognizer
            for step in range(1 if most == 0 else MOST_STEPS + 1):
                if step:  # a step after another is two steps: each is on all clips
                    model = adapted(model, examples.at(few[:most]), rates, steps=1, precision="fp32")
                if (most, step) in found:
                    said = [data.classes[i] for i in logits_of(model, values).argmax(1).tolist()]
                    found[most, step].append(confusion_matrix(truth, said, data.classes))
    return {setting: np.stack(of) for setting, of in found.items()}


def _name(setting: Setting) -> str:
    return "{} clips, {} steps".format(*setting)


def _score(confusions: np.ndarray) -> float:
    return float(uf1(confusions.sum(0)))


def run(path: Path, seeds: Sequence[int]) -> None:
    done = {(row["arm"], row["seed"]) for row in rows_of(path)}
    data = task("adapting", TRAINED + TUNED + TESTED, times=2)
    examples, begin = examples_of(data), start()
    for seed in seeds:
        people = people_of(examples, seed)
        trained, tuned = people[:TRAINED], people[TRAINED : TRAINED + TUNED]
        for arm in COMPARED:
            if (arm, seed) in done:
                continue
            recipe = with_passes(ARMS[arm], EPOCHS // 2)  # of twice as many clips
            recognizer = recipe.build(begin, data.classes, seed=seed)
            recipe.fit(recognizer, seen_by(arm, of_people(examples, trained)), seed=seed)
            rates = recognizer.config.inner_rates or [RATE] * LAST_LAYERS
            chosen = {}
            for factor in FACTORS:
                try:
                    scaled = [factor * rate for rate in rates]
                    of = curves(recognizer, scaled, data, examples, tuned, seed, (max(CLIPS),))
                except ValueError as error:  # it diverges
                    print(arm, factor, error, flush=True)
                    continue
                chosen[factor] = float(np.mean([_score(c) for c in of.values()]))
            factor = max(chosen, key=lambda f: chosen[f])
            measured = {
                by: curves(
                    recognizer, [by * rate for rate in rates], data, examples, people[TRAINED + TUNED :], seed
                )
                for by in {1.0, factor}
            }
            for kind, by in {"as trained": 1.0, "tuned": factor}.items():
                of = measured[by]
                row: dict[str, Any] = {"arm": arm, "seed": seed, "rates": kind, "factor": by}
                row |= {"rate": [by * rate for rate in rates], "tuning": chosen}
                row["uf1"] = {_name(setting): round(_score(c), 4) for setting, c in of.items()}
                row["confusions"] = {_name(setting): c.tolist() for setting, c in of.items()}
                write_row(path, row)


class Curves(NamedTuple):
    """What was measured, by arm and by which rates its steps took."""

    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Curves:
        return cls(rows_of(path))

    def rows_without_confusions(self) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name != "confusions"} for row in self.rows]

    def of(self, arm: str, rates: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["arm"], row["rates"]) == (arm, rates)]

    def mean(self, arm: str, rates: str, setting: Setting) -> float:
        return float(np.mean([row["uf1"][_name(setting)] for row in self.of(arm, rates)]))

    def resampled(self, arm: str, rates: str, setting: Setting) -> np.ndarray:
        """UF1 (RESAMPLES,) of people drawn with replacement, mean over seeds; draws are the same for every arm."""
        scores = []
        for row in self.of(arm, rates):
            confusions = np.array(row["confusions"][_name(setting)])
            scores.append(uf1(resample_subjects(confusions, RESAMPLES, row["seed"])))
        return np.mean(scores, 0)

    def difference(self, of: Callable[[Callable[[str, str, Setting], Any]], Any]) -> str:
        """A difference of scores, with its interval; bold where that does not hold 0."""
        low, high = np.percentile(of(self.resampled), (2.5, 97.5))
        shown = f"{of(self.mean):+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"**{shown}**" if low > 0 or high < 0 else shown

    def lines(self) -> list[str]:
        seeds = len({row["seed"] for row in self.rows})
        shown = [(0, 0), (1, 1), (1, 5), (2, 1), (2, 5), (4, 1), (4, 2), (4, 3), (4, 5)]
        names = ["as it is", *(f"{k} clip{'s' * (k > 1)}, {s} step{'s' * (s > 1)}" for k, s in shown[1:])]
        lines = [
            f"Adapted to a tested person: UF1 on {TESTED} people, 8 clips each, the same throughout, mean over "
            f"{seeds} seeds. Steps of plain gradient descent on the clips of the person. Rates as trained (of "
            f"fine-tuning {RATE:g}), or times the factor that was best for {TUNED} other people, a seed each.",
            "",
            f"| | factor | {' | '.join(names)} |",
            f"|---|---{'|---' * len(names)}|",
        ]
        for arm in COMPARED:
            for rates in ("as trained", "tuned"):
                factors = ", ".join(f"{row['factor']:g}" for row in self.of(arm, rates))
                factors = "1" if rates == "as trained" else factors
                scores = " | ".join(f"{self.mean(arm, rates, setting):.3f}" for setting in shown)
                lines.append(f"| {arm}, {rates} | {factors} | {scores} |")
        lines += [
            "",
            "Against ordinary fine-tuning, 4 clips, all rates tuned: of the score, and of the gain over the network "
            f"as it is. In brackets 95 % intervals, bootstrap over people ({RESAMPLES} draws), mean over seeds; bold: "
            "the interval does not hold 0.",
            "",
            "| | score, 1 step | score, 5 steps | gain, 1 step | gain, 5 steps | own gain, 5 steps |",
            "|---|---|---|---|---|---|",
        ]
        for arm in COMPARED:
            cells = []
            for before in (None, (0, 0)):
                for steps in (1, 5):

                    def against(score, before=before, steps=steps, arm=arm):
                        def of(arm):
                            end = score(arm, "tuned", (4, steps))
                            return end if before is None else end - score(arm, "tuned", before)

                        return of(arm) - of(PLAIN)

                    cells.append("" if arm == PLAIN else self.difference(against))
            cells.append(
                self.difference(
                    lambda score, arm=arm: score(arm, "tuned", (4, 5)) - score(arm, "tuned", (0, 0))
                )
            )
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        return lines

    def draw(self, figure: SubFigure) -> None:
        """Over the steps, a panel for each number of clips; and over the number of clips."""
        panels = figure.subplots(1, len(CLIPS), sharey=True)
        for arm, colour in zip(COMPARED, ("#024", "#2a8", "#c50", "#93c"), strict=True):
            for rates, line in (("as trained", ":"), ("tuned", "-")):
                for axes, most in zip(panels, [k for k in CLIPS if k], strict=False):
                    settings = [(0, 0), *((most, s) for s in range(1, MOST_STEPS + 1))]
                    self._line(axes, range(MOST_STEPS + 1), settings, arm, rates, colour, line)
                    axes.set(
                        title=f"{most} clip{'s' * (most > 1)}", xlabel="steps", xticks=range(MOST_STEPS + 1)
                    )
                self._line(
                    panels[-1], CLIPS, [(k, MOST_STEPS if k else 0) for k in CLIPS], arm, rates, colour, line
                )
        panels[-1].set(title=f"{MOST_STEPS} steps", xlabel="clips of the person", xticks=CLIPS)
        panels[0].set_ylabel("UF1")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        for axes in panels:
            axes.grid(alpha=0.3)
        figure.suptitle(
            "Adapted to the person: another protocol. Bars: 95 %, bootstrap over people, of tuned rates",
            fontsize=9,
        )

    def _line(self, axes, along, settings, arm, rates, colour, line) -> None:
        means = np.array([self.mean(arm, rates, setting) for setting in settings])
        label = f"{arm}, {rates}"
        if rates == "as trained":
            axes.plot(along, means, line, color=colour, label=label, lw=1)
            return
        ends = np.array([np.percentile(self.resampled(arm, rates, s), (2.5, 97.5)) for s in settings]).T
        bars = np.abs(ends - means)
        axes.errorbar(along, means, bars, color=colour, label=label, marker="o", ms=3, lw=1.2, capsize=2)
