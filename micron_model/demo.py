"""The demo: pre-train a tiny μ-BERT on synthetic clips and show what micro-attention learned."""

from __future__ import annotations

import json
import platform
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from micron_kernels import topk_mask

from . import html_page, visualize
from .data import SyntheticClip, synthetic_clips
from .data.clips.synthetic import CLASSES, FPS
from .evaluation import auroc, swap_auroc
from .models.config import MicronBERTConfig, preset
from .models.micron_bert import MicronBERT
from .plain_text import say
from .resumable import claimed
from .training import CheckpointError, PretrainConfig, pretrain
from .training.log import read_log
from .whole_file import write_whole

TRAINED_SUBJECTS = range(64)
HELD_OUT_SUBJECTS = range(1000, 1012)
TARGET = 0.90
"""AUROC on the patches that moved most that the demo is to end with."""


@dataclass
class DemoConfig:
    """What the demo trains and shows."""

    model: MicronBERTConfig = field(default_factory=lambda: preset("tiny", tied_start=True))
    training: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(
            steps=400, batch_size=32, learning_rate=3e-4, evaluate_every=50, checkpoint_every=100
        )
    )


@dataclass(frozen=True)
class HeldOut:
    """Onset–apex pairs of subjects that are not trained on, with their truth."""

    clips: list[SyntheticClip]
    onset: Tensor
    apex: Tensor
    moved: Tensor
    """How far each patch moved (B, N), in pixels."""

    @classmethod
    def make(cls, size: int, patch_size: int) -> HeldOut:
        clips = synthetic_clips(HELD_OUT_SUBJECTS)
        pairs = torch.from_numpy(np.stack([c.read([c.onset, c.apex], size) for c in clips]))
        moved = np.stack([c.moved(c.onset, c.apex, size, patch_size) for c in clips])
        return cls(clips, pairs[:, 0], pairs[:, 1], torch.from_numpy(moved))


def _map_auroc(values: Tensor, moved: Tensor) -> float:
    """How well a map finds the quarter of the patches of each pair that moved most."""
    most, _ = topk_mask(moved.float(), 0.25)
    return auroc(values.flatten(1).numpy(), most.numpy())


def _settings(config: DemoConfig) -> str:
    default, model = preset("tiny"), config.model
    changed = [
        f"{name}={value!r}" for name, value in asdict(model).items() if value != getattr(default, name)
    ]
    options = ", ".join(changed) or "none: the paper's settings"
    return html_page.table(
        [
            ("options beyond the paper's form", options),
            ("model", f"{model.image_size}×{model.image_size}, patches of {model.patch_size}, width {model.width}, "
             f"{model.depth} + {model.decoder_depth} blocks, roles {model.roles!r}, Patch of Interest {model.poi!r}"),
            ("training", f"{config.training.steps} steps of {config.training.batch_size} pairs, AdamW, peak "
             f"learning rate {config.training.learning_rate:g}, seed {config.training.seed}"),
            ("data", f"{len(TRAINED_SUBJECTS)} synthetic identities × {len(CLASSES)} classes at {FPS:g} frames a "
             f"second; {len(HELD_OUT_SUBJECTS)} other identities held out. All come from two photographs"),
            ("versions", f"Python {platform.python_version()}, torch {torch.__version__}"),
        ]
    )  # fmt: skip


def write_report(
    model: MicronBERT, held_out: HeldOut, config: DemoConfig, out: Path, seconds: float
) -> dict[str, Any]:
    """Write ``report.html``, self-contained, its PNGs and ``results.json`` to ``out``; return the results."""
    log = read_log(out)
    curve = [entry for entry in log if "auroc_moved" in entry]
    steps = [entry for entry in log if "loss" in entry]
    maps = visualize.change_maps(model, held_out.onset, held_out.apex)
    with torch.no_grad():
        shown = torch.arange(0, len(held_out.clips), len(CLASSES) + 1)[:4]
        batch = {"frames": held_out.onset[shown], "later": held_out.apex[shown]}
        reconstruction = model(batch, torch.Generator().manual_seed(0))
    results = {
        "auroc_moved_first": curve[0]["auroc_moved"],
        "auroc_moved_last": curve[-1]["auroc_moved"],
        "auroc_all_first": curve[0]["auroc_all"],
        "auroc_all_last": curve[-1]["auroc_all"],
        "map_auroc": {name: _map_auroc(values, held_out.moved) for name, values in maps.items()},
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "loss_reconstruction_last": steps[-1]["loss_reconstruction"],
        "contextual_variance_last": steps[-1]["contextual_variance"],
        "seconds": seconds,
    }
    truth = held_out.moved.unflatten(1, maps["poi"].shape[1:])
    labels = [f"{c.label}\n{c.amplitude * model.config.image_size / 64:.1f} px" for c in held_out.clips]
    figures = {
        "maps": visualize.figure_of_pairs(
            held_out.onset[shown],
            held_out.apex[shown],
            {name: values[shown] for name, values in maps.items()},
            labels=[labels[i] for i in shown],
            truth=truth[shown],
        ),
        "auroc": visualize.figure_of_auroc(log),
        "reconstructions": visualize.figure_of_reconstructions(
            model, batch["frames"], batch["later"], reconstruction
        ),
        "losses": visualize.figure_of_losses(log),
    }
    images = {name: html_page.png(figure) for name, figure in figures.items()}
    for name, data in images.items():
        write_whole(out / f"{name}.png", data)
    write_whole(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(out / "report.html", _render(images, results, config))
    return results


def _render(images: dict[str, bytes], results: dict[str, Any], config: DemoConfig) -> str:
    def image(name: str, description: str) -> str:
        return html_page.image(images[name], description)

    reached = results["auroc_moved_last"] >= TARGET
    verdict = (
        f'<p class="big{"" if reached else " missed"}">On faces that it was not trained on, micro-attention tells a '
        f"patch that was taken from the later frame from one that was not, among the quarter of patches that moved "
        f"most, with an AUROC of <b>{results['auroc_moved_last']:.3f}</b>; at step 0 it was "
        f"<b>{results['auroc_moved_first']:.3f}</b>. The target was {TARGET:.2f}: "
        f"{'reached' if reached else 'missed'}. Training took {results['seconds']:.0f} s.</p>"
    )
    finds = results["map_auroc"]
    return html_page.page(
        "μ-BERT: what micro-attention learned",
        [
            ("", verdict),
            (
                "What changed between onset and apex",
                image("maps", "onset, apex, difference, micro-attention map, Patch of Interest, true motion")
                + '<p class="note">Held-out clips; rows are labelled with the class and the displacement at the apex. '
                "The micro-attention map is log p(apex, apex) − log p(onset, apex): how much less a patch looks like "
                "itself than if nothing had changed. AUROC of each map against the quarter of the patches that truly "
                f"moved most: micro-attention {finds['micro_attention']:.3f}, plain frame difference "
                f"{finds['difference']:.3f}, Patch of Interest {finds['poi']:.3f}.</p>",
            ),
            (
                "Does micro-attention know which patches are foreign?",
                image("auroc", "AUROC over training")
                + '<p class="note">Measured within a position: the same pair under twelve swap masks, log of the '
                "diagonal minus its mean over the masks. No labels are used in training or here. Over all patches: "
                f"{results['auroc_all_first']:.3f} at step 0, {results['auroc_all_last']:.3f} at the end.</p>",
            ),
            (
                "Swapped frame and reconstruction",
                image("reconstructions", "frames, swapped frame, mask and reconstruction")
                + '<p class="note">After so short a training the reconstruction is coarse; it is the task that makes '
                "micro-attention learn, not the result.</p>",
            ),
            (
                "Losses",
                image("losses", "loss curves")
                + f'<p class="note">Total at the first step {results["loss_first"]:.3f}, at the last '
                f"{results['loss_last']:.3f}. Variance of the contextual token over the last batch: "
                f"{results['contextual_variance_last']:.2g}; near 0 it has collapsed, to which the paper's plain MSE "
                "between crop and whole is prone.</p>",
            ),
            ("Settings", _settings(config)),
        ],
    )


def run_demo(config: DemoConfig, out: Path, console: Console) -> dict[str, Any]:
    """Pre-train, measure and report into ``out``, replacing an earlier demo there.

    Raises:
        CheckpointError: ``out`` holds a run that is not a demo.
        Claimed: another process writes to ``out``.
    """
    with claimed(out):
        return _run_demo(config, out, console)


def _run_demo(config: DemoConfig, out: Path, console: Console) -> dict[str, Any]:
    settings = out / "demo.json"
    if (out / "checkpoint.pt").exists():
        if not settings.exists():
            raise CheckpointError(f"{out} holds a run that is not a demo: give another folder with --out")
        for name in ("checkpoint.pt", "log.jsonl", "results.json", "report.html"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "model", ignore_errors=True)
    write_whole(settings, json.dumps(asdict(config), indent=2) + "\n")
    size, patch_size = config.model.image_size, config.model.patch_size
    held_out = HeldOut.make(size, patch_size)

    def evaluate(model: MicronBERT) -> dict[str, float]:
        return swap_auroc(model, held_out.onset, held_out.apex, held_out.moved)

    started = time.perf_counter()
    clips = synthetic_clips(TRAINED_SUBJECTS)
    model = pretrain(config.training, config.model, clips, out, evaluate=evaluate, console=console)
    results = write_report(model.cpu(), held_out, config, out, time.perf_counter() - started)
    console.print(
        f"AUROC of micro-attention where it moved most: {results['auroc_moved_first']:.3f} at step 0, "
        f"{results['auroc_moved_last']:.3f} at the end (target {TARGET:.2f})"
    )
    say(console, f"report: {out / 'report.html'}")
    return results
