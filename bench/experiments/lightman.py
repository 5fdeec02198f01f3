"""Is learning in two levels, beside macro-expressions, robust, and does it adapt faster? μ-BERT on look-alikes.

    python bench/experiments/lightman.py run       # goes on after a stop; a line a training in out/experiments/lightman
    python bench/experiments/lightman.py report    # lightman.md, lightman.json, lightman.png beside it

Three classes; a network learns from 12 people and is tested on 16 others, as it is. All arms start from one small
untrained μ-BERT with a tied start, and see as many clips: where fewer are left to learn from, more often. Adapting to
a tested person (``lightman_adapting.py``) is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightman_adapting as adapting
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightman_setup import (
    ARMS,
    BOTH,
    CLIPS_EACH,
    EPOCHS,
    OUT,
    PLAIN,
    TRAINED,
    Side,
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
from scipy import stats

from micron_model.data.clips.nuisances import sensor_noise, to_uint8
from micron_model.evaluation.metrics import confusion_matrix, uf1
from micron_model.evaluation.task import Task
from micron_model.recognizers import Examples, Recipe, Start
from micron_model.recognizers.fitting import logits_of

HERE = Path(__file__).parent
#: Trainings with options that were left out for what they show.
LEFT_OUT = HERE / "lightman_left_out.jsonl"
ROWS, ADAPTING = OUT / "rows.jsonl", OUT / "adapting.jsonl"
SEEDS = 3
TESTED = 16
#: Grey levels of 255 of the noise that is added to every frame.
_NOISE = 12.0
CONTRASTIVE, TWO, TWO_SECOND = "one level, contrastive", "two levels, first order", "two levels, second order"
#: What an option changes: pairs of arms that differ in it alone, with and without.
OPTIONS = {
    "contrastive loss": [(CONTRASTIVE, PLAIN), (BOTH, TWO), ("both, second order", TWO_SECOND)],
    "adversarial loss": [("one level, adversarial", PLAIN), ("both, adversarial", TWO)],
    "interval loss": [("one level, interval", PLAIN), ("both, interval", TWO)],
    "two levels": [
        (TWO, PLAIN),
        (BOTH, CONTRASTIVE),
        ("both, adversarial", "one level, adversarial"),
        ("both, interval", "one level, interval"),
    ],
    "second order, not first": [(TWO_SECOND, TWO), ("both, second order", BOTH)],
    "fixed rates, not learned": [("both, fixed rates", BOTH)],
    "all layers, not the last": [("both, all layers", BOTH)],
}


def whole(side: Side, rng: np.random.Generator) -> Side:
    return side


def quarter(side: Side, rng: np.random.Generator) -> Side:
    """A quarter of the people to learn from."""
    people = rng.permutation(sorted(set(side.train.subjects)))[: TRAINED // 4]
    return side._replace(train=side.train.at([i for i, s in enumerate(side.train.subjects) if s in people]))


def unequal(side: Side, rng: np.random.Generator) -> Side:
    """Of one class all clips, of the others a tenth of as many."""
    labels = side.train.labels.numpy()
    common = int(rng.integers(3))
    kept = [np.flatnonzero(labels == common)]
    kept += [
        rng.permutation(np.flatnonzero(labels == c))[: round(len(kept[0]) / 10)]
        for c in range(3)
        if c != common
    ]
    return side._replace(train=side.train.at(sorted(int(i) for few in kept for i in few)))


def wrong(side: Side, rng: np.random.Generator) -> Side:
    """A fifth of the training labels are of another class."""
    labels = side.train.labels.clone()
    chosen = rng.permutation(len(labels))[: round(0.2 * len(labels))]
    labels[torch.from_numpy(chosen)] = (labels[torch.from_numpy(chosen)] + torch.from_numpy(
        rng.integers(1, 3, len(chosen))
    )) % 3  # fmt: skip
    return side._replace(train=side.train._replace(labels=labels))


def noisy(side: Side, rng: np.random.Generator) -> Side:
    """Noise of a sensor on every frame, to learn from and to be tested on."""

    def disturbed(examples: Examples) -> Examples:
        values = examples.values
        assert isinstance(values, torch.Tensor)
        frames = sensor_noise(values.flatten(0, 1).numpy(), rng, deviation=_NOISE)
        return examples._replace(values=torch.from_numpy(to_uint8(frames)).unflatten(0, values.shape[:2]))

    return Side(disturbed(side.train), disturbed(side.test))


CONDITIONS: dict[str, Callable[[Side, np.random.Generator], Side]] = {
    "all": whole,
    "a quarter of the people": quarter,
    "classes 10:1": unequal,
    "20 % wrong labels": wrong,
    "noisy frames": noisy,
}


def run(path: Path, conditions: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> None:
    done = {tuple(row[k] for k in ("condition", "arm", "seed")) for row in rows_of(path)}
    data, begin = task("casme2", TRAINED + TESTED), start()
    examples = examples_of(data)
    for seed in seeds:
        people = people_of(examples, seed)
        whole_side = Side(of_people(examples, people[:TRAINED]), of_people(examples, people[TRAINED:]))
        for condition in conditions:
            rng = np.random.default_rng((seed, list(CONDITIONS).index(condition)))
            side = CONDITIONS[condition](whole_side, rng)
            passes = round(EPOCHS * CLIPS_EACH * TRAINED / len(side.train.labels))
            for arm in arms:
                if (condition, arm, seed) not in done:
                    row = {"condition": condition, "arm": arm, "seed": seed}
                    seen = side._replace(train=seen_by(arm, side.train))
                    write_row(path, row | measure(with_passes(ARMS[arm], passes), begin, seen, data, seed))


def measure(recipe: Recipe, begin: Start, side: Side, data: Task, seed: int) -> dict[str, Any]:
    recognizer = recipe.build(begin, data.classes, seed=seed)
    began = time.process_time()
    recipe.fit(recognizer, side.train, seed=seed)
    seconds = time.process_time() - began
    predicted = logits_of(recognizer, side.test.values).argmax(1)
    truth, said = ([data.classes[i] for i in labels.tolist()] for labels in (side.test.labels, predicted))
    cosines = [h["gradient cosine"] for h in recognizer.history if "gradient cosine" in h]
    return {
        "uf1": float(uf1(confusion_matrix(truth, said, data.classes))), "seconds": round(seconds, 2),
        "clips": len(side.train.labels), "cosine": float(np.mean(cosines)) if cosines else None,
    }  # fmt: skip


def report(path: Path, adapting_rows: Path) -> None:
    rows = rows_of(path) + rows_of(LEFT_OUT)
    arms = [*ARMS, *dict.fromkeys(row["arm"] for row in rows if row["arm"] not in ARMS)]
    score = {(row["condition"], row["arm"], row["seed"]): row["uf1"] for row in rows}
    seeds = sorted({seed for _, _, seed in score})

    def scores_of(condition: str, arm: str) -> list[float]:
        return [score[condition, arm, seed] for seed in seeds if (condition, arm, seed) in score]

    def cell(condition: str, arm: str) -> str:
        scores = scores_of(condition, arm)
        fewer = f" ({len(scores)} seeds)" if len(scores) < len(seeds) else ""
        return f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}{fewer}"

    def changes(pairs: Sequence[tuple[str, str]], condition: str) -> list[float]:
        """Of each seed, mean over pairs."""
        found = [
            [
                score.get((condition, arm, seed), np.nan) - score.get((condition, other, seed), np.nan)
                for arm, other in pairs
            ]
            for seed in seeds
        ]
        return [float(np.mean(of)) for of in found if np.isfinite(of).all()]

    lines = [
        f"UF1 of three classes on {TESTED} people, {TESTED * CLIPS_EACH} clips, that no training saw; look-alikes of "
        f"level medium; mean ± standard deviation over {len(seeds)} seeds, each with other people to learn from. "
        f"Seconds: the least CPU time of a training that passes over {EPOCHS * CLIPS_EACH * TRAINED} clips, one "
        f"thread. torch {torch.__version__}.",
        "",
        f"| | {' | '.join(CONDITIONS)} | seconds |",
        f"|---{'|---' * (len(CONDITIONS) + 1)}|",
    ]
    for arm in arms:
        seconds = min(row["seconds"] for row in rows if row["arm"] == arm)
        lines.append(f"| {arm} | {' | '.join(cell(c, arm) for c in CONDITIONS)} | {seconds:.1f} |")
    lines += [
        "",
        "What each option changes: differences of UF1 on the same people and seed, from arms that differ in that "
        "option alone (mean over one to four pairs of arms); a number a seed. Over all: mean and 95 % interval of "
        "Student's t over seeds and conditions, and how many differences are above 0; bold: the interval does not hold "
        "0.",
        "",
        f"| | {' | '.join(CONDITIONS)} | over all |",
        f"|---{'|---' * (len(CONDITIONS) + 1)}|",
    ]
    for option, pairs in OPTIONS.items():
        by_condition = [changes(pairs, condition) for condition in CONDITIONS]
        every = [change for of in by_condition for change in of]
        mean, half = np.mean(every), stats.sem(every) * stats.t.ppf(0.975, len(every) - 1)
        shown = f"{mean:+.3f} ± {half:.3f}"
        shown = f"**{shown}**" if abs(mean) > half else shown
        cells = [" ".join(f"{change:+.3f}" for change in of) for of in by_condition]
        lines.append(
            f"| {option} | {' | '.join(cells)} | {shown}, {sum(c > 0 for c in every)} of {len(every)} |"
        )
    found = adapting.Curves.read(adapting_rows)
    (HERE / "lightman.md").write_text("\n".join([*lines, "", *found.lines(), ""]))
    kept = {"robust": rows, "adapting": found.rows_without_confusions()}
    text = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in of) + "\n]"
        for name, of in kept.items()
    )
    (HERE / "lightman.json").write_text(f"{{\n{text}\n}}\n")

    figure = plt.figure(figsize=(12, 7.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 0.9])
    panels = above.subplots(1, len(CONDITIONS), sharey=True, sharex=True)
    for axes, condition in zip(panels, CONDITIONS, strict=True):
        for i, arm in enumerate(arms):
            scores = scores_of(condition, arm)
            axes.plot(scores, [i] * len(scores), "o", color="#024", markersize=3.5)
            axes.plot(np.mean(scores), i, "|", color="#c50", markersize=13, markeredgewidth=2)
        axes.axvline(1 / 3, color="#c00", linewidth=0.8)
        axes.set(title=condition, xlim=(0.15, 0.75), xlabel="UF1", yticks=range(len(arms)), yticklabels=arms)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    above.suptitle("As it is. Points: seeds. Orange: their mean. Red: a third of three classes", fontsize=9)
    found.draw(below)
    figure.savefig(HERE / "lightman.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(SEEDS)))
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        run(ROWS, options.conditions, options.arms, options.seeds)
        adapting.run(ADAPTING, options.seeds)
    else:
        report(ROWS, ADAPTING)
