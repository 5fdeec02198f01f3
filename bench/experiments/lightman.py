"""Is learning in two levels, beside macro-expressions, robust? μ-BERT on look-alikes with nuisances, five ways.

    python bench/experiments/lightman.py run       # goes on after a stop; a line a training in --rows
    python bench/experiments/lightman.py report    # lightman.md, lightman.json, lightman.png beside it

Three classes; a network learns from 12 people and is tested on 16 others, as it is. All arms start from one small
untrained μ-BERT with a tied start, and see as many clips: where fewer are left to learn from, more often.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.clips.nuisances import sensor_noise, to_uint8
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.data.databases.prepared import FaceConfig
from micron_model.evaluation.macro import with_macro
from micron_model.evaluation.metrics import confusion_matrix, uf1
from micron_model.evaluation.task import Task, load_task
from micron_model.recognizers import Examples, Recipe, Start
from micron_model.recognizers.fitting import logits_of
from micron_model.recognizers.lightman import LightmanRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
OUT = ROOT / "out/experiments/lightman"
QUIET = Console(quiet=True)
SEEDS = 3
TRAINED, TESTED = 12, 16
#: Each person shows each of the three classes twice.
_EACH = {"happiness": 2, "disgust": 1, "repression": 1, "surprise": 2}
_MACRO_PEOPLE = 10
#: Half the side and the width of the preset tiny, and half its depth: 75 trainings on one CPU thread.
SIDE = 32
SIZE: dict[str, Any] = {
    "image_size": 32,
    "width": 64,
    "depth": 2,
    "decoder_width": 32,
    "decoder_depth": 1,
    "tied_start": True,
}
#: Passes over the 72 clips of the whole training side.
EPOCHS = 8
_PLAIN = MicronBERTRecipe(epochs=EPOCHS, batch_size=6, learning_rate=2e-3)
#: Grey levels of 255 of the noise that is added to every frame.
_NOISE = 12.0


def _meta(**settings: Any) -> LightmanRecipe:
    return LightmanRecipe(wrapped=_PLAIN, **settings)


ARMS: dict[str, Recipe] = {
    "μ-BERT fine-tuned": _PLAIN,
    "+ auxiliary loss": _meta(inner_steps=0),
    "+ meta": _meta(align="off"),
    "+ both, first order": _meta(),
    "+ both, second order": _meta(order="second"),
}


class Side(NamedTuple):
    train: Examples
    test: Examples


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


def start() -> Start:
    torch.manual_seed(0)
    return start_from(MicronBERT(preset("tiny", **SIZE)).eval(), Start().corpus)


def task() -> Task:
    """The look-alikes under light, head motion, compression and noise ("medium"), and macro-expressions beside them."""
    people = TRAINED + TESTED
    common = {"side": 64, "difficulty": "medium", "quirks": False}
    for name, count in (("casme2", people), ("macro", _MACRO_PEOPLE)):
        if not (OUT / name / "LOOKALIKE.txt").exists():
            counts = {emotion: each * count for emotion, each in _EACH.items()}
            make_lookalike(name, OUT / name, LookalikeConfig(subjects=count, counts=counts, **common))  # type: ignore[arg-type]
    face, cache = FaceConfig(detect=False), OUT / "cache"
    found = load_task(
        "casme2", OUT / "casme2", OnsetApex(SIDE), scheme="3", face=face, cache=cache, allow_differences=True,
        console=QUIET,
    )  # fmt: skip
    return with_macro(found, OUT / "macro", OnsetApex(SIDE), face=face, cache=cache, console=QUIET)


def sides(data: Task, seed: int) -> Side:
    """Who is trained on is drawn anew for each seed."""
    examples = data.examples(LightmanRecipe(macro=OUT / "macro"), start())
    people = np.random.default_rng(seed).permutation(sorted(set(examples.subjects)))[:TRAINED]
    is_trained = [s in people for s in examples.subjects]
    train, test = ([i for i, t in enumerate(is_trained) if t == want] for want in (True, False))
    return Side(examples.at(train), examples.at(test))


def run(
    path: Path, conditions: Sequence[str], arms: Sequence[str], seeds: Sequence[int], epochs: int
) -> None:
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[k] for k in ("condition", "arm", "seed")) for row in rows_of(path)}
    data, begin = task(), start()
    for seed in seeds:
        for number, condition in enumerate(conditions):
            side = CONDITIONS[condition](sides(data, seed), np.random.default_rng((seed, number)))
            passes = round(epochs * 6 * TRAINED / len(side.train.labels))
            for arm in arms:
                if (condition, arm, seed) not in done:
                    recipe = ARMS[arm]
                    if isinstance(recipe, LightmanRecipe):
                        recipe = replace(recipe, wrapped=replace(recipe.wrapped, epochs=passes))
                    else:
                        assert isinstance(recipe, MicronBERTRecipe)
                        recipe = replace(recipe, epochs=passes)
                    row = {"condition": condition, "arm": arm, "seed": seed}
                    with path.open("a") as file:
                        file.write(
                            json.dumps(row | measure(recipe, begin, side, data, seed), ensure_ascii=False)
                            + "\n"
                        )


def measure(recipe: Recipe, begin: Start, side: Side, data: Task, seed: int) -> dict[str, Any]:
    recognizer = recipe.build(begin, data.classes, seed=seed)
    began = time.process_time()
    recipe.fit(recognizer, side.train, seed=seed)
    seconds = time.process_time() - began
    predicted = logits_of(recognizer, side.test.values).argmax(1)
    truth, said = ([data.classes[i] for i in labels.tolist()] for labels in (side.test.labels, predicted))
    cosines = [h["gradient cosine"] for h in recognizer.history if "gradient cosine" in h]
    found = {
        "uf1": float(uf1(confusion_matrix(truth, said, data.classes))), "seconds": seconds,
        "clips": len(side.train.labels), "cosine": float(np.mean(cosines)) if cosines else None,
    }  # fmt: skip
    print(f"{type(recipe).__name__} {found}", flush=True)
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(path: Path) -> None:
    """Means over seeds, and the least CPU seconds of a training on the same number of clips."""
    rows = rows_of(path)
    (HERE / "lightman.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    at = {(c, a): [r for r in rows if (r["condition"], r["arm"]) == (c, a)] for c in CONDITIONS for a in ARMS}

    seeds = sorted({row["seed"] for row in rows})

    def cell(found: Sequence[dict[str, Any]]) -> str:
        scores = [row["uf1"] for row in found]
        spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
        fewer = f" ({len(scores)} of {len(seeds)} seeds)" if len(scores) < len(seeds) else ""
        return f"{np.mean(scores):.3f}{spread}{fewer}" if scores else "–"

    lines = [
        f"UF1 of three classes on {TESTED} people, 96 clips, that no training saw; look-alikes of level medium; "
        f"mean ± standard deviation over {len(seeds)} seeds, each with other people to learn from. Seconds: the least "
        f"CPU time of a training that passes over {EPOCHS * 6 * TRAINED} clips, one thread. torch {torch.__version__}.",
        "",
        f"| | {' | '.join(CONDITIONS)} | seconds |",
        f"|---{'|---' * (len(CONDITIONS) + 1)}|",
    ]
    for arm in ARMS:
        seconds = min(row["seconds"] for condition in CONDITIONS for row in at[condition, arm])
        lines.append(f"| {arm} | {' | '.join(cell(at[c, arm]) for c in CONDITIONS)} | {seconds:.1f} |")
    (HERE / "lightman.md").write_text("\n".join([*lines, ""]))

    figure, panels = plt.subplots(
        1, len(CONDITIONS), figsize=(12, 2.9), sharey=True, sharex=True, layout="constrained"
    )
    for axes, condition in zip(panels, CONDITIONS, strict=True):
        for i, arm in enumerate(ARMS):
            scores = [row["uf1"] for row in at[condition, arm]]
            axes.plot(scores, [i] * len(scores), "o", color="#024", markersize=4)
            axes.plot(np.mean(scores), i, "|", color="#c50", markersize=16, markeredgewidth=2)
        axes.axvline(1 / 3, color="#c00", linewidth=0.8)
        axes.set(
            title=condition, xlim=(0.15, 0.75), xlabel="UF1", yticks=range(len(ARMS)), yticklabels=list(ARMS)
        )
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.suptitle("Points: seeds. Orange: their mean. Red: a third of three classes", fontsize=9)
    figure.savefig(HERE / "lightman.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--rows", type=Path, default=OUT / "rows.jsonl")
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(SEEDS)))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    if options.what == "run":
        run(options.rows, options.conditions, options.arms, options.seeds, options.epochs)
    else:
        report(options.rows)
