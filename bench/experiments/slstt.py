"""What SLSTT learns on look-alikes, beside μ-BERT and plain means.

    python bench/experiments/localisation.py --train --only "movement, flow"    # μ-BERT for its pre-trained rows
    python bench/experiments/slstt.py run [casme2-easy …]    # goes on after a stop; tasks may run side by side
    python bench/experiments/slstt.py report                 # slstt.md, slstt.json, slstt.png beside it

Three classes; the subjects are dealt into three groups, each tested by networks that learned from the other two.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data.clips.flow import grey
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.evaluation.evaluator import EvaluateConfig, Evaluation, evaluate
from micron_model.evaluation.metrics import score
from micron_model.evaluation.protocols import Fold
from micron_model.evaluation.task import Task, load_task
from micron_model.recognizers import Recipe, Start
from micron_model.recognizers.flow import FlowRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from
from micron_model.recognizers.slstt import SLSTTRecipe

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))
from localisation import model_of  # noqa: E402
from own_recognizer import Convolutional  # noqa: E402  (what the examples' page runs)

SEEDS = 3
GROUPS = 3
OUT = ROOT / "out/experiments/slstt"
QUIET = Console(quiet=True)
_CASME2 = {"happiness": 24, "disgust": 12, "repression": 12, "surprise": 24}
_SETS = {
    "casme2": LookalikeConfig(subjects=12, counts=_CASME2, side=96, quirks=False),
    "megc2019": LookalikeConfig(subjects=6, clips=6, side=96, quirks=False),
}
TITLES = {
    "casme2-easy": "CASME II, easy",
    "casme2-medium": "CASME II, medium",
    "casme2-hard": "CASME II, hard",
    "megc2019-easy": "composite, easy",
    "megc2019-medium": "composite, medium",
    "megc2019-hard": "composite, hard",
}
#: Where the slow rows run: the ends of the range.
ENDS = ("casme2-easy", "casme2-hard", "megc2019-easy", "megc2019-hard")
HARD = ("casme2-hard", "megc2019-hard")


@dataclass(frozen=True)
class SignedDifference:
    """Apex less onset in grey, what is lighter and what is darker, (2, size, size)."""

    size: int

    @property
    def key(self) -> str:
        return f"signed difference of onset and apex, {self.size} pixels"

    def frames(self, onset: int, apex: int, offset: int) -> tuple[int, ...]:
        return onset, apex

    def encode(self, faces: np.ndarray) -> np.ndarray:
        onset, apex = (grey(face).astype(np.float32) for face in faces)
        return np.stack([np.maximum(apex - onset, 0), np.maximum(onset - apex, 0)])


@dataclass
class FrameDifference(FlowRecipe):
    """The flow recognizer on the frame difference in place of flow."""

    name = "frame-difference"

    def clip_input(self, start: Start) -> SignedDifference:  # type: ignore[override]
        return SignedDifference(self.size)


def untrained() -> Start:
    torch.manual_seed(0)
    return start_from(MicronBERT(preset("tiny", tied_start=True)).eval(), Start().corpus)


def untrained_with_flow() -> Start:
    return start_from(model_of("movement, flow, untrained", 0), Start().corpus)


def pretrained() -> Start:
    """On movement, by other identities of the photographs that the look-alikes warp (see localisation.py)."""
    return start_from(model_of("movement, flow", 0), Start().corpus)


#: Training from scratch on few clips wants another optimiser than the authors' (see the row that has theirs).
SCRATCH: dict[str, Any] = {
    "preset": "tiny", "optimizer": "adamw", "learning_rate": 2e-3, "warmup": 0.1, "weight_decay": 0.05,
    "clip_norm": 1.0, "batch_size": 8, "epochs": 20,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    name: str
    recipe: Recipe
    start: Callable[[], Start] = Start
    shuffled: bool = False
    tasks: Sequence[str] = ENDS


ROWS = {
    "flow": Row("flow and a linear layer", FlowRecipe(), tasks=tuple(TITLES)),
    "difference": Row("frame difference and a linear layer", FrameDifference(), tasks=tuple(TITLES)),
    "lstm": Row("SLSTT tiny, LSTM, flow", SLSTTRecipe(**SCRATCH), shuffled=True),
    "mean": Row("SLSTT tiny, mean, flow", SLSTTRecipe(**SCRATCH, aggregator="mean")),
    "micron-bert": Row("μ-BERT, frozen, untrained (tied start)", MicronBERTRecipe(freeze="encoder"), untrained),
    "flow-untrained": Row(
        "μ-BERT with flow as an input, frozen, untrained", MicronBERTRecipe(freeze="encoder"), untrained_with_flow
    ),
    "pretrained": Row(
        "μ-BERT with flow as an input, frozen, pre-trained on movement", MicronBERTRecipe(freeze="encoder"), pretrained
    ),
    "whole": Row(
        "μ-BERT with flow as an input, trained from random weights", MicronBERTRecipe(), untrained_with_flow, tasks=HARD
    ),
    "pretrained-whole": Row(
        "μ-BERT with flow as an input, trained, pre-trained on movement", MicronBERTRecipe(), pretrained, tasks=HARD
    ),
    "map-untrained": Row(
        "μ-BERT with flow as an input, map, frozen, untrained",
        MicronBERTRecipe(freeze="encoder", features="map", regions=8), untrained_with_flow, tasks=HARD,
    ),
    "map": Row(
        "μ-BERT with flow as an input, map, frozen, pre-trained on movement",
        MicronBERTRecipe(freeze="encoder", features="map", regions=8), pretrained, tasks=HARD,
    ),
    "map-whole": Row(
        "μ-BERT with flow as an input, map, trained, pre-trained on movement",
        MicronBERTRecipe(features="map", regions=8), pretrained, tasks=HARD,
    ),
    "example": Row("examples/own_recognizer.py", Convolutional(), tasks=tuple(TITLES)),
    "frames": Row("SLSTT tiny, LSTM, frames", SLSTTRecipe(**SCRATCH, look="frames")),
    "encoder": Row(
        "SLSTT on flow by μ-BERT's encoder, frozen, untrained, LSTM",
        SLSTTRecipe(**SCRATCH, freeze="encoder"), untrained,
    ),
    "encoder-frames": Row(
        "SLSTT on frames by μ-BERT's encoder, frozen, untrained, LSTM",
        SLSTTRecipe(**SCRATCH, freeze="encoder", look="frames"), untrained,
    ),
    "authors": Row(
        "SLSTT tiny, LSTM, flow, trained as the authors do", SLSTTRecipe(preset="tiny"), tasks=("casme2-easy",)
    ),
}  # fmt: skip


def task_of(name: str, inputs: Sequence) -> Task:
    dataset, level = name.split("-")
    root = OUT / name / "lookalike"
    if not (root / "LOOKALIKE.txt").exists():
        config = _SETS[dataset]
        make_lookalike(dataset, root, LookalikeConfig(**(vars(config) | {"difficulty": level})))
    task = load_task(
        dataset, root, inputs, scheme="3", protocol="cde" if dataset == "megc2019" else "loso",
        cache=OUT / name / "cache", allow_differences=True, console=QUIET,
    )  # fmt: skip
    subjects = sorted({e.subject for e in task.expressions})
    group = {subject: i % GROUPS for i, subject in enumerate(subjects)}
    sides = [[group[e.subject] == g for e in task.expressions] for g in range(GROUPS)]
    folds = [
        Fold(f"group {g + 1}", tuple(i for i, t in enumerate(side) if not t), tuple(i for i, t in enumerate(side) if t),
             task.expressions)
        for g, side in enumerate(sides)
    ]  # fmt: skip
    return task._replace(folds=folds)


def run(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        rows = {
            key: row for key, row in ROWS.items()
            if name in row.tasks and not (OUT / name / f"{key}.json").exists()
        }  # fmt: skip
        inputs = [OnsetApex(64), *(row.recipe.clip_input(row.start()) for row in rows.values())]
        task = task_of(name, inputs)
        for key, row in rows.items():
            began = time.process_time()
            config = EvaluateConfig(seeds=SEEDS, shuffled=row.shuffled, baselines=())
            found = evaluate(
                task, row.recipe, row.start(), config, OUT / name / key, workers=1, console=QUIET
            )
            assert found is not None
            keep(name, key, row, found, task, time.process_time() - began)


def keep(task: str, key: str, row: Row, found: Evaluation, data: Task, seconds: float) -> None:
    """A json a row, with the CPU seconds of the run that trained it."""
    named = {row.name: found.predictions}
    if row.shuffled:
        named[f"{row.name}: shuffled labels"] = found.baselines["shuffled labels"]
        named["majority class"] = found.baselines["majority class"]
    entries = []
    for name, predictions in named.items():
        full = score(predictions).full
        entries.append(
            {
                "task": task, "name": name, "clips": full.clips, "subjects": full.subjects,
                "uf1": full.uf1.per_seed, "interval": full.uf1.interval, "uar": full.uar.mean,
                "seconds": seconds if name == row.name else None,
            }
        )  # fmt: skip
        print(task, name, full.uf1, full.uf1.interval_text, f"{seconds:.0f} s", flush=True)
    (OUT / task / f"{key}.json").write_text(json.dumps(entries))


def report() -> None:
    entries = [
        entry for task in TITLES for key in ROWS if (path := OUT / task / f"{key}.json").exists()
        for entry in json.loads(path.read_text())
    ]  # fmt: skip
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (HERE / "slstt.json").write_text(text + "\n")
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    tasks = [task for task in TITLES if any(entry["task"] == task for entry in entries)]
    at = {(entry["task"], entry["name"]): entry for entry in entries}

    def cell(entry: dict | None) -> str:
        if entry is None:
            return "–"
        low, high = entry["interval"]
        spread = f" ± {np.std(entry['uf1'], ddof=1):.3f}" if len(entry["uf1"]) > 1 else ""
        return f"{np.mean(entry['uf1']):.3f}{spread} [{low:.2f}, {high:.2f}]"

    sizes = ", ".join(
        f"{TITLES[t]}: {e['clips']} clips of {e['subjects']} identities"
        for t in tasks
        for e in [next(e for e in entries if e["task"] == t)]
    )
    lines = [
        f"UF1 of three classes on look-alikes; {GROUPS} groups of subjects, each tested by networks that learned from "
        f"the others; {SEEDS} seeds (one where a seed changes nothing), mean ± standard deviation over them "
        f"[95 % interval over subjects]. {sizes}. torch {torch.__version__}, one thread.",
        "",
        f"| | {' | '.join(TITLES[t] for t in tasks)} |",
        f"|---{'|---' * len(tasks)}|",
        *(f"| {name} | {' | '.join(cell(at.get((t, name))) for t in tasks)} |" for name in names),
    ]
    (HERE / "slstt.md").write_text("\n".join([*lines, ""]))
    plot(at, names, tasks)


def plot(at: dict, names: Sequence[str], tasks: Sequence[str]) -> None:
    """A point a seed and the interval of their mean, a panel a task."""
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(3.4 * len(tasks) + 3, 0.4 * len(names) + 1.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, task in zip(panels[0], tasks, strict=True):
        for i, name in enumerate(names):
            entry = at.get((task, name))
            if entry is not None:
                axes.plot(entry["interval"], [i, i], color="#9ab", linewidth=6, solid_capstyle="butt")
                axes.plot(entry["uf1"], [i] * len(entry["uf1"]), "o", color="#024", markersize=4)
        axes.set(
            title=TITLES[task], xlim=(0, 1.02), xlabel="UF1", yticks=range(len(names)), yticklabels=names
        )
        axes.axvline(1 / 3, color="#c00", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
    panels[0, 0].invert_yaxis()
    figure.suptitle(
        "Bars: 95 % interval over subjects. Points: seeds. Red: a third of three classes", fontsize=9
    )
    figure.savefig(HERE / "slstt.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("tasks", nargs="*", help=", ".join(TITLES))
    options = parser.parse_args()
    if options.what == "run":
        run(options.tasks or list(TITLES))
    else:
        report()
