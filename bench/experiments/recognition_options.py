"""What each part of the recognizer does to its scores, on a look-alike of CASME II.

    python bench/experiments/recognition_options.py

Twelve identities, five classes, leave one subject out, the preset "tiny". Writes recognition_options.md beside it.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data import synthetic_clips
from micron_model.data.databases.classes import SCHEMES, label
from micron_model.data.databases.datasets import load_dataset
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.data.databases.prepared import FaceConfig, prepare
from micron_model.evaluation.evaluator import EvaluateConfig, Task, evaluate
from micron_model.evaluation.metrics import score
from micron_model.evaluation.protocols import loso
from micron_model.recognizers.fitting import FinetuneConfig
from micron_model.training import PretrainConfig, pretrain

SEEDS = 3
SCHEME = "casme2-5"
FROZEN = EvaluateConfig(seeds=SEEDS, shuffled=False, finetune=FinetuneConfig(freeze="encoder"))
QUIET = Console(quiet=True)

#: Name, settings, and whether the weights are pre-trained.
RUNS: tuple[tuple[str, EvaluateConfig, bool], ...] = (
    ("classifier alone, on features of the pre-trained model", replace(FROZEN, shuffled=True), True),
    ("pooled over the whole face", replace(FROZEN, regions=1), True),
    ("pooled over 2 × 2 parts", replace(FROZEN, regions=2), True),
    ("pooled over 8 × 8 parts", replace(FROZEN, regions=8), True),
    ("without subtracting the face at rest", replace(FROZEN, from_rest=False), True),
    ("both: whole face, without subtracting", replace(FROZEN, regions=1, from_rest=False), True),
    ("random weights (tied start)", FROZEN, False),
    ("epoch chosen on an inner split", replace(FROZEN, selection="inner"), True),
    ("LEAKY: epoch chosen on the test subjects", replace(FROZEN, leaky_best_epoch=True), True),
    ("everything trained", replace(FROZEN, finetune=FinetuneConfig()), True),
    ("everything trained, from random weights", replace(FROZEN, finetune=FinetuneConfig()), False),
)


def make_task(folder: Path, size: int) -> tuple[Task, torch.Tensor]:
    make_lookalike("casme2", folder, LookalikeConfig(subjects=12, clips=7))
    labelled = label(load_dataset("casme2", folder).expressions, SCHEME)
    prepared = prepare(labelled.expressions, size, FaceConfig())
    assert prepared.expressions == labelled.expressions
    folds = loso(prepared.expressions)
    return Task(prepared.expressions, labelled.labels, SCHEMES[SCHEME].classes, folds), prepared.pairs


def pretrained(folder: Path) -> MicronBERT:
    """The demo's model: tied start, 300 steps on synthetic identities."""
    config = PretrainConfig(steps=300, batch_size=32, learning_rate=3e-4)
    return pretrain(
        config, preset("tiny", tied_start=True), synthetic_clips(range(64)), folder, console=QUIET
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        random = MicronBERT(preset("tiny", tied_start=True)).eval()
        trained = pretrained(folder / "pretrain")
        task, pairs = make_task(folder / "casme2", random.config.image_size)
        lines, shuffled = ["| | UF1 | UAR | seconds |", "|---|---|---|---|"], ""
        for i, (name, config, with_pretraining) in enumerate(RUNS):
            began = time.perf_counter()
            model = trained if with_pretraining else random
            result = evaluate(task, pairs, model, config, folder / str(i), console=QUIET)
            full = score(result.predictions).full
            seconds = time.perf_counter() - began
            lines.append(f"| {name} | {full.uf1} {full.uf1.interval_text} | {full.uar} | {seconds:.0f} |")
            print(lines[-1], flush=True)
            if config.shuffled:
                baseline = score(result.baselines["shuffled labels"]).full
                shuffled = f"{baseline.uf1} {baseline.uf1.interval_text}"
    text = (
        f"CASME II look-alike, scheme {SCHEME}: {len(task.labels)} clips of {len(task.folds)} identities, leave one "
        f'subject out, preset "tiny"; {SEEDS} seeds, mean ± standard deviation [95 % interval over subjects]. First '
        f"row on shuffled labels: UF1 {shuffled}. torch {torch.__version__}, {os.cpu_count()} processors."
    )
    Path(__file__).with_suffix(".md").write_text("\n".join([text, "", *lines, ""]))


if __name__ == "__main__":
    main()
