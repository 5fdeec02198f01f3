"""Pre-training of μ-BERT on pairs of frames."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from ..config import MicronBERTConfig
from ..data.frames import Clip, Problem
from ..data.pairs import FramePairs, collate
from ..micron_bert import MicronBERT
from . import checkpoint
from .log import RunLog

#: Measures of a model at a step, for the log; must not draw from torch's global generator.
Evaluate = Callable[[MicronBERT], dict[str, float]]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


class Stopped(Exception):
    """A signal ended the run after a whole step; its checkpoint is written."""

    def __init__(self, signal_number: int, step: int, path: Path):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; {path} holds everything to resume"
        )
        self.signal_number = signal_number


@dataclass
class PretrainConfig:
    """How to pre-train. Where the paper and the authors' code are silent, the choice is ours."""

    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 16
    """Pairs a step and device, before accumulation (C)."""
    accumulate: int = 1
    """Batches whose gradients are summed before each optimiser step."""
    learning_rate: float = 2.5e-4
    """Peak learning rate (C); a cosine takes it to 0 (C)."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = 1e-4
    """Of matrices; biases, norms and the contextual token have none (C: 1e-4)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    delta: tuple[int, int] = (5, 11)
    """Range of δ in frames at 30 frames a second, scaled to each clip's rate."""
    flip: bool = True
    """Mirror half of the pairs."""
    seed: int = 0
    """Of weights, pairs, masks and crops."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""
    device: str = "auto"
    """auto: a GPU if there is one."""
    compile: bool = False
    """Run encoder and decoder through torch.compile."""
    workers: int = 0
    """Processes that read frames; 0 reads in the training process."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    evaluate_every: int = 0
    """Steps between evaluations, where the caller gives one; 0 is never. Step 0 and the last count too."""
    tensorboard: bool = False
    """Write TensorBoard events beside the log."""

    def __post_init__(self) -> None:
        self.delta = tuple(self.delta)  # type: ignore[assignment]
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup}; it is a share of the steps, in [0, 1]")


#: Settings that may differ between a run and its continuation: they do not decide the losses.
_FREE = {"device", "compile", "workers", "checkpoint_every", "evaluate_every", "tensorboard"}


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine to 0."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device={name!r}, but torch sees no GPU; 'auto' takes what there is")
    return torch.device(name)


def _autocast(config: PretrainConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.dim() == 2]
    others = [p for name, p in trained if p.dim() != 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def _step_generator(seed: int, step: int, part: int) -> torch.Generator:
    """Randomness of one batch: a function of its place in the run, so that a resumed run draws the same."""
    digest = hashlib.sha256(f"{seed} {step} {part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _fingerprint(clips: Sequence[Clip]) -> str:
    """What the clips are, for the check that a run goes on with the data it began with."""
    described = "\n".join(f"{clip.name} {len(clip)} {clip.fps}" for clip in clips)
    return f"{len(clips)} clips {hashlib.sha256(described.encode()).hexdigest()[:16]}"


class _Signals:
    """Inside, SIGTERM and SIGINT are noted, not obeyed at once: the step in progress is finished first."""

    received: int | None = None

    def __enter__(self) -> _Signals:
        self._before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals to their owner
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.received = number

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(
        self, config: PretrainConfig, model_config: MicronBERTConfig, clips: Sequence[Clip], out: Path
    ):
        self.config, self.out = config, out
        self.device = _resolve_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = MicronBERT(model_config).to(self.device).train()
        self.optimizer = _optimizer(self.model, config)
        self.step = 0
        # Through JSON, so that what is compared on resuming is what a file can hold.
        settings = {"training": asdict(config), "model": asdict(model_config), "data": _fingerprint(clips)}
        self.settings = json.loads(json.dumps(settings))

    @property
    def path(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings,
        }
        checkpoint.save(self.path, content)

    def resume(self) -> None:
        content = checkpoint.load(self.path, self.device)
        for name in ("step", "model", "optimizer", "settings"):
            if name not in content:
                raise checkpoint.CheckpointError(
                    f"{self.path}: has no {name!r}; it is not a checkpoint of pretrain"
                )
        self._check_settings(content["settings"])
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]

    def _check_settings(self, stored: dict[str, Any]) -> None:
        differences = []
        for part in ("training", "model"):
            for name, value in self.settings[part].items():
                before = stored[part].get(name)
                if before != value and name not in _FREE:
                    differences.append(f"{name} was {before!r}, is {value!r}")
        if stored["data"] != self.settings["data"]:
            differences.append(f"data was {stored['data']}, is {self.settings['data']}")
        if differences:
            raise checkpoint.CheckpointError(
                f"{self.path}: belongs to a run with other settings: {'; '.join(differences)}. "
                "Give the same settings, or another folder"
            )


class _InOrder(Sampler[list[int]]):
    """The samples of batches first to last; made one by one, since a run may have millions."""

    def __init__(self, first: int, last: int, size: int):
        self.first, self.last, self.size = first, last, size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            yield list(range(batch * self.size, (batch + 1) * self.size))


def _batches(run: _Run, clips: Sequence[Clip], problems: list[Problem]) -> Iterator[list[dict[str, Any]]]:
    """The batches of each remaining step."""
    config = run.config
    pairs = FramePairs(clips, run.model.config.image_size, config.seed, delta=config.delta, flip=config.flip)
    first, last = run.step * config.accumulate, config.steps * config.accumulate
    loader = DataLoader(
        pairs,
        batch_sampler=_InOrder(first, last, config.batch_size),
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=run.device.type == "cuda",
    )
    step = []
    for batch in loader:
        problems += batch["problems"]
        step.append(batch)
        if len(step) == config.accumulate:
            yield step
            step = []


def _forward(run: _Run, batch: dict[str, Any], part: int) -> dict[str, Tensor]:
    frames = {name: batch[name].to(run.device, non_blocking=True) for name in ("frames", "later")}
    with _autocast(run.config, run.device):
        return run.model(frames, _step_generator(run.config.seed, run.step, part))


def _train_step(run: _Run, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One optimiser step; returns what the log says of it."""
    config, model = run.config, run.model
    learning_rate = learning_rate_at(run.step, config)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    logged = ("loss", "loss_reconstruction", "loss_aggregation", "contextual_variance")
    sums = dict.fromkeys(logged, 0.0)
    for part, batch in enumerate(batches):
        result = _forward(run, batch, part)
        if not torch.isfinite(result["loss"]):
            raise NonFiniteLossError(
                f"the loss is {result['loss'].item()} at step {run.step}, batch {part} of {len(batches)}; its "
                f"pairs: {'; '.join(batch['sources'])}. The last checkpoint is from before it"
            )
        (result["loss"] / len(batches)).backward()
        for name in logged:
            sums[name] += result[name].item() / len(batches)
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm).item()
    if not math.isfinite(norm):
        sources = "; ".join(s for batch in batches for s in batch["sources"])
        raise NonFiniteLossError(f"the gradient's norm is {norm} at step {run.step}; its pairs: {sources}")
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    model.update_teacher(run.step / config.steps)
    return {**sums, "gradient_norm": norm, "learning_rate": learning_rate}


def _progress_bar(console: Console) -> Progress:
    return Progress(  # fits 80 columns
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.2f}/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[losses]}"),
        console=console,
    )


def pretrain(
    config: PretrainConfig,
    model_config: MicronBERTConfig,
    clips: Sequence[Clip],
    out: Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    console: Console | None = None,
) -> MicronBERT:
    """Pre-train a μ-BERT on ``clips``.

    Writes to ``out``: ``log.jsonl`` (an object a step: losses, learning rate, gradient norm, contextual variance,
    seconds; and one an evaluation), ``checkpoint.pt``, and at the end ``model/`` for ``from_pretrained``.
    A run that was stopped or killed and goes on with ``resume`` has the same losses as one that never stopped.

    Args:
        config: how to train.
        model_config: what to train.
        clips: what to train on.
        out: a folder; must not hold another run, unless ``resume``.
        resume: go on from ``out/checkpoint.pt``; start from scratch if there is none.
        evaluate: measures of the model, logged at the steps that ``config.evaluate_every`` names.
        console: where progress is shown; standard error by default.

    Raises:
        CheckpointError: ``out`` holds another run, or one with other settings, or a damaged checkpoint.
        NonFiniteLossError: the loss or its gradient is NaN or infinite; names step, batch and pairs.
        Stopped: SIGTERM or SIGINT came; the step was finished and the checkpoint written.
        FrameError: 16 pairs in a row could not be read.
    """
    console = console or Console(stderr=True)
    run = _Run(config, model_config, clips, out)
    if run.path.exists() and not resume:
        raise checkpoint.CheckpointError(
            f"{run.path} exists: resume continues that run; another folder starts a new one"
        )
    if run.path.exists():
        run.resume()
    elif resume:
        console.print(f"{run.path} does not exist: starting from scratch")
    out.mkdir(parents=True, exist_ok=True)
    if config.compile:
        run.model.encoder.compile()
        run.model.decoder.compile()
    log = RunLog(out, run.step, config.tensorboard)
    problems: list[Problem] = []

    def evaluate_now() -> None:
        due = config.evaluate_every and (run.step % config.evaluate_every == 0 or run.step == config.steps)
        if evaluate is not None and due:
            log.write(run.step, evaluate(run.model))

    try:
        with _Signals() as signals, _progress_bar(console) as progress:
            task = progress.add_task(
                "pre-training", total=config.steps, completed=run.step, rate=0.0, losses=""
            )
            if run.step == 0:
                evaluate_now()
            began, first = time.perf_counter(), run.step
            for batches in _batches(run, clips, problems):
                started = time.perf_counter()
                values = _train_step(run, batches)
                log.write(run.step, {**values, "seconds": time.perf_counter() - started})
                evaluate_now()
                losses = f"L {values['loss']:.4f}  L_r {values['loss_reconstruction']:.4f}"
                losses += f"  L_agg {values['loss_aggregation']:.4f}"
                rate = (run.step - first) / (time.perf_counter() - began)
                progress.update(task, completed=run.step, rate=rate, losses=losses)
                if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                    run.save()
                if signals.received is not None and run.step < config.steps:
                    run.save()
                    raise Stopped(signals.received, run.step, run.path)
    finally:
        log.close()
        report_problems(problems, console)
    run.model.save_pretrained(out / "model")
    return run.model.eval()


def report_problems(problems: Sequence[Problem], console: Console) -> None:
    """List files that were passed over, each once."""
    distinct = dict.fromkeys(problems)
    if distinct:
        console.print(f"{len(distinct)} files were passed over:")
        for problem in list(distinct)[:20]:
            console.print(f"  {problem.path}: {problem.reason}", markup=False)
        if len(distinct) > 20:
            console.print(f"  … and {len(distinct) - 20} more")
