"""What each option does to micro-attention and to reconstruction: synthetic clips, several seeds, a fixed budget.

    python bench/experiments/micro_attention_options.py run         # every option and seed that is not there yet
    python bench/experiments/micro_attention_options.py run --only paper tied --seeds 0
    python bench/experiments/micro_attention_options.py report      # table and plot of what is there

``run`` adds a line a run to ``micro_attention_options.jsonl``; ``report`` writes ``.md`` and ``.png`` beside it.
``--size 224`` runs the same at 224×224 (for a GPU) into ``micro_attention_options_224.jsonl``.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from micron_kernels import blockwise_mask, swap_patches
from micron_model import MicronBERT, preset
from micron_model.data import synthetic_clips
from micron_model.data.clips.in_memory import InMemoryClip
from micron_model.demo import HELD_OUT_SUBJECTS, TRAINED_SUBJECTS
from micron_model.evaluation import swap_auroc
from micron_model.training import PretrainConfig, pretrain
from micron_model.training.log import read_log

HERE = Path(__file__).parent
STEPS, BATCH = 400, 16
#: Settings of model and training beside the paper's form; every run has the same number of steps unless it is named.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({}, {}),
    "tied": ({"tied_start": True}, {}),
    "motion weight": ({"reconstruction_weight": "motion"}, {}),
    "more motion first": ({}, {"motion": (8.0, 255.0), "motion_end": (0.0, 255.0), "candidates": 2.5}),
    "still pairs rejected": ({}, {"motion": (4.0, 255.0), "candidates": 1.5}),
    "normalized target": ({"normalized_target": True}, {}),
    "learning rate ×3": ({}, {"learning_rate": 1e-3}),
    "4 × the steps": ({}, {"steps": 4 * STEPS}),
    "tied, motion weight": ({"tied_start": True, "reconstruction_weight": "motion"}, {}),
    "tied, more motion first": (
        {"tied_start": True},
        {"motion": (8.0, 255.0), "motion_end": (0.0, 255.0), "candidates": 2.5},
    ),
}


@dataclass(frozen=True)
class HeldOut:
    """Onset–apex pairs of subjects that are not trained on, with their truth."""

    onset: Tensor
    apex: Tensor
    moved: Tensor
    """How far each patch moved (B, N), in pixels."""

    @classmethod
    def make(cls, size: int, patch_size: int) -> HeldOut:
        clips = synthetic_clips(HELD_OUT_SUBJECTS)
        pairs = torch.from_numpy(np.stack([c.read([c.onset, c.apex], size) for c in clips]))
        moved = np.stack([c.moved(c.onset, c.apex, size, patch_size) for c in clips])
        return cls(pairs[:, 0], pairs[:, 1], torch.from_numpy(moved))


@functools.cache
def trained_clips(size: int) -> list[InMemoryClip]:
    return [InMemoryClip(clip, size) for clip in synthetic_clips(TRAINED_SUBJECTS)]


@torch.no_grad()
def reconstruction_over_copying(model: MicronBERT, held_out: HeldOut, seed: int = 0) -> float:
    """L_r on held-out pairs over that of the swapped frame itself, both in the space of the model's target."""
    patch_size = model.config.patch_size
    grid = held_out.onset.shape[2] // patch_size
    generator = torch.Generator().manual_seed(seed)
    swap = blockwise_mask(len(held_out.onset), (grid, grid), model.config.swap_ratio, generator)
    device = model.mean.device
    pairs = {"frames": held_out.onset.to(device), "later": held_out.apex.to(device), "swap": swap.to(device)}
    reconstruction = model(pairs, generator)["reconstruction"]
    copied = model.patchify(swap_patches(*pairs.values(), patch_size, mean=model.mean, std=model.std))
    if model.config.normalized_target:
        variance, mean = torch.var_mean(copied, dim=2, keepdim=True)
        copied = (copied - mean) / (variance + 1e-6).sqrt()
    errors = [model.forward_loss(pairs["frames"], x).item() for x in (reconstruction, copied)]
    return errors[0] / errors[1]


def run(name: str, seed: int, size: int) -> dict[str, Any]:
    """Train one option with one seed; what was measured of it on held-out identities."""
    of_model, of_training = OPTIONS[name]
    config = preset("tiny", image_size=size, **of_model)
    every = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 3e-4, "seed": seed}
    training = PretrainConfig(**{**every, **of_training}, evaluate_every=50, checkpoint_every=10**6)
    held_out = HeldOut.make(size, config.patch_size)

    def evaluate(model: MicronBERT) -> dict[str, float]:
        device = model.mean.device
        found = swap_auroc(
            model, held_out.onset.to(device), held_out.apex.to(device), held_out.moved.to(device)
        )
        return found | {"over_copying": reconstruction_over_copying(model, held_out)}

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(
            training,
            config,
            trained_clips(size),
            Path(folder),
            evaluate=evaluate,
            console=Console(quiet=True),
        )
        log = read_log(Path(folder))
    measured = [e for e in log if "auroc_all" in e]
    return {
        "option": name,
        "seed": seed,
        "size": size,
        "steps": training.steps,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
        "contextual_variance": [e["contextual_variance"] for e in log if "loss" in e][-1],
        "curve": {
            key: [round(e[key], 4) for e in measured]
            for key in ("step", "auroc_all", "auroc_moved", "over_copying")
        },
    }


def results(size: int) -> Path:
    return HERE / f"micro_attention_options{'' if size == 64 else f'_{size}'}.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row an option, mean ± standard deviation over the seeds at the last step."""
    lines = [
        "| option | steps | AUROC, all patches | AUROC, the quarter that moved most | L_r over copying | CT variance |",
        "|---|---|---|---|---|---|",
    ]
    for name in OPTIONS:
        mine = [r for r in runs if r["option"] == name]
        if mine:
            last = {
                key: [r["curve"][key][-1] for r in mine]
                for key in ("auroc_all", "auroc_moved", "over_copying")
            }
            variance = statistics.median(r["contextual_variance"] for r in mine)
            lines.append(
                f"| {name} | {mine[0]['steps']} | {_spread(last['auroc_all'])} | {_spread(last['auroc_moved'])} | "
                f"{_spread(last['over_copying'])} | {variance:.2g} |"
            )
    seeds = sorted({r["seed"] for r in runs})
    size, device, version = runs[0]["size"], runs[0]["device"], runs[0]["torch"]
    return "\n".join(
        [
            f"{size}×{size}, preset `tiny`, batches of {BATCH} pairs, learning rate 3e-4, {len(TRAINED_SUBJECTS)} "
            f"synthetic identities, {len(HELD_OUT_SUBJECTS)} others held out; seeds {seeds}, mean ± standard "
            f"deviation; {device}, torch {version}.",
            "",
            *lines,
            "",
        ]
    )


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """AUROC where it moved most, and reconstruction, over the steps; a band from the lowest to the highest seed."""
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.subplots(2, 2, sharex=False)
    groups = (
        [name for name in OPTIONS if not name.startswith("tied")],
        ["paper", *(name for name in OPTIONS if name.startswith("tied"))],
    )
    colours = color_sequences["tab10"]
    measures = (
        ("auroc_moved", "AUROC within a position,\nthe quarter that moved most"),
        ("over_copying", "L_r over that of copying\nthe swapped frame"),
    )
    for row, (key, label) in enumerate(measures):
        for column, names in enumerate(groups):
            axes = grid[row][column]
            for colour, name in zip(colours, names, strict=False):
                mine = [r for r in runs if r["option"] == name]
                if mine:
                    curves = [r["curve"][key] for r in mine]
                    steps = mine[0]["curve"]["step"]
                    middle = [statistics.mean(values) for values in zip(*curves, strict=True)]
                    axes.plot(steps, middle, color=colour, lw=1.6, label=name)
                    low, high = (list(map(f, zip(*curves, strict=True))) for f in (min, max))
                    axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            if row:
                axes.set_yscale("log")
                axes.axhline(1, color="0.3", lw=0.8)
                axes.set_xlabel("step")
            else:
                axes.axhline(0.5, color="0.3", lw=0.8)
                axes.set_ylim(0.45, 1.0)
                axes.legend(fontsize=8, framealpha=0.9, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="OPTION")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    path = results(arguments.size)
    if arguments.action == "run":
        for seed in arguments.seeds:
            for name in arguments.only:
                if any(r["option"] == name and r["seed"] == seed for r in read(path)):
                    continue
                done = run(name, seed, arguments.size)
                with open(path, "a") as file:
                    file.write(json.dumps(done) + "\n")
                last = {key: values[-1] for key, values in done["curve"].items()}
                print(f"{name}, seed {seed}: {last}, {done['seconds']} s", flush=True)
        return
    runs = read(path)
    text = table(runs)
    path.with_suffix(".md").write_text(text)
    plot(runs, path.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
