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
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate
from micron_model.evaluation.metrics import score
from micron_model.evaluation.task import load_task
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from
from micron_model.training import PretrainConfig, pretrain

SEEDS = 3
SCHEME = "casme2-5"
ONCE = EvaluateConfig(seeds=SEEDS, shuffled=False, baselines=())
FROZEN = MicronBERTRecipe(freeze="encoder")
QUIET = Console(quiet=True)

#: Name, recipe, how it is evaluated, and whether the weights are pre-trained.
RUNS: tuple[tuple[str, MicronBERTRecipe, EvaluateConfig, bool], ...] = (
    (
        "classifier alone, on features of the pre-trained model",
        FROZEN,
        EvaluateConfig(seeds=SEEDS, baselines=()),
        True,
    ),
    ("pooled over the whole face", replace(FROZEN, regions=1), ONCE, True),
    ("pooled over 2 × 2 parts", replace(FROZEN, regions=2), ONCE, True),
    ("pooled over 8 × 8 parts", replace(FROZEN, regions=8), ONCE, True),
    ("without subtracting the face at rest", replace(FROZEN, from_rest=False), ONCE, True),
    ("both: whole face, without subtracting", replace(FROZEN, regions=1, from_rest=False), ONCE, True),
    ("random weights (tied start)", FROZEN, ONCE, False),
    ("epoch chosen on an inner split", FROZEN, replace(ONCE, selection="inner"), True),
    ("LEAKY: epoch chosen on the test subjects", FROZEN, replace(ONCE, leaky_best_epoch=True), True),
    ("everything trained", MicronBERTRecipe(), ONCE, True),
    ("everything trained, from random weights", MicronBERTRecipe(), ONCE, False),
)


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
        make_lookalike("casme2", folder / "casme2", LookalikeConfig(subjects=12, clips=7))
        task = load_task(
            "casme2", folder / "casme2", OnsetApex(random.config.image_size), scheme=SCHEME,
            allow_differences=True, console=QUIET,
        )  # fmt: skip
        lines, shuffled = ["| | UF1 | UAR | seconds |", "|---|---|---|---|"], ""
        for i, (name, recipe, config, with_pretraining) in enumerate(RUNS):
            began = time.perf_counter()
            start = start_from(trained if with_pretraining else random, Corpus.of(synthetic_clips(range(64))))
            result = evaluate(task, recipe, start, config, folder / str(i), console=QUIET)
            assert result is not None
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
