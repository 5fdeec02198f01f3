"""Pre-training of μ-BERT on pairs of frames."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.clips.frames import Clip
from ..data.clips.pairs import TENSORS
from ..data.databases.corpus import Corpus
from ..model_card import Training
from ..models.config import MicronBERTConfig
from ..models.micron_bert import MicronBERT
from ..plain_text import say
from ..progress import ProgressBar
from ..resumable import claimed
from ..signals import NotedSignals
from . import checkpoint
from .batches import Batches
from .config import PretrainConfig, learning_rate_at, motion_limits_at
from .device_input import autocast, choose_pairs
from .distributed import join, until_all_are_done
from .log import RunLog
from .problems import ProblemReport
from .run import Run, device_type

#: Measures of a model at a step, for the log; must not draw from torch's global generator.
Evaluate = Callable[[MicronBERT], dict[str, float]]

#: Variance of the contextual token over a batch under which it hardly tells one face from another. Measured on the
#: synthetic clips over 200 steps: without L_agg 0.11 to 0.25, "dino" 0.2 to 0.8, "mse" down to 0.005.
COLLAPSED = 0.01
#: What the log says of each step, as means over its batches and ranks.
_LOGGED = (
    "loss", "loss_reconstruction", "loss_aggregation", "loss_movement", "contextual_variance", "accepted",
)  # fmt: skip


#: Buffers are constants, and a centre that every rank computes alike. The option has its first name from torch 2.13 on.
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class NonFiniteLossError(RuntimeError):
    """Loss or gradient was NaN or infinite in more steps in a row than may be skipped."""


class Stopped(Exception):
    """A signal ended the run after a whole step; its checkpoint is written."""

    def __init__(self, signal_number: int, step: int, path: Path):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; {path} holds everything to resume"
        )
        self.signal_number = signal_number


def _generator(seed: int, step: int, part: int) -> torch.Generator:
    """Randomness of the masks and crops of a batch; ``part`` counts the batches of a step over all ranks.

    A function of its place, so that a resumed run draws the same, and two ranks what one process would that
    accumulates their batches.
    """
    digest = hashlib.sha256(f"{seed} {step} {part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class _Trainer:
    """One optimiser step after another, on one rank."""

    def __init__(self, run: Run, problems: ProblemReport):
        self.run, self.problems = run, problems
        self.forward: nn.Module = run.model
        if run.ranks.count > 1:
            self.forward = DistributedDataParallel(
                run.model,
                device_ids=[run.device] if run.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                find_unused_parameters=not run.model.config.gamma,  # then nothing decodes
                **_KEEP_BUFFERS,
            )

    def _losses(self, batch: dict[str, Any], part: int) -> dict[str, Tensor]:
        run, config = self.run, self.run.config
        pairs = {name: batch[name].to(run.device, non_blocking=True) for name in TENSORS if name in batch}
        if config.rejects:
            limits = motion_limits_at(run.step, config)
            pairs = choose_pairs(pairs, config.batch_size, limits, run.model.config.patch_size)
        place = part * run.ranks.count + run.ranks.rank
        with autocast(config.precision, run.device):
            result = self.forward(pairs, _generator(config.seed, run.step, place))
        weight = pairs.get("weight")
        accepted = torch.ones((), device=run.device) if weight is None else (weight > 0).float().mean()
        return result | {"accepted": accepted}

    def step(self, batches: list[dict[str, Any]], stop: bool) -> tuple[dict[str, Any], bool]:
        """One optimiser step; what the log says of it, and whether any rank was told to stop."""
        run, config, ranks = self.run, self.run.config, self.run.ranks
        learning_rate = learning_rate_at(run.step, config)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(len(_LOGGED) + 1, device=run.device)
        for part, batch in enumerate(batches):
            self.problems.add(batch["problems"])
            last = part == len(batches) - 1
            wait: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if isinstance(self.forward, DistributedDataParallel) and not last:
                wait = self.forward.no_sync()
            with wait:
                result = self._losses(batch, part)
                (result["loss"] / len(batches)).backward()
            sums[:-1] += torch.stack([result[name].detach().float() for name in _LOGGED]) / len(batches)
        own_loss = sums[0].clone()
        sums[:-1] /= ranks.count
        sums[-1] = float(stop)
        ranks.sums(sums)
        norm = nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_norm)
        *means, stops, gradient_norm, own = torch.cat([sums, norm[None], own_loss[None]]).tolist()
        values = dict(zip(_LOGGED, means, strict=True)) | {"gradient_norm": gradient_norm}
        if math.isfinite(values["loss"]) and math.isfinite(gradient_norm):
            run.optimizer.step()
            run.model.update_teacher((run.step + 1) / config.steps)
            run.skipped_in_a_row = 0
            values["learning_rate"] = learning_rate
        else:
            values = self._skip(batches, values, own)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        return values, stops > 0

    def _skip(self, batches: list[dict[str, Any]], values: dict[str, Any], own_loss: float) -> dict[str, Any]:
        run, config = self.run, self.run.config
        run.model.forget_step()
        run.skipped_in_a_row += 1
        sources = [source for batch in batches for source in batch["sources"]]
        reason = f"the loss is {values['loss']}, the gradient's norm {values['gradient_norm']}, at step {run.step + 1}"
        if not math.isfinite(own_loss) or run.ranks.is_first:
            self.problems.say(f"{reason}: skipped. Pairs of rank {run.ranks.rank}: {'; '.join(sources)}")
        if run.skipped_in_a_row > config.max_skipped:
            raise NonFiniteLossError(
                f"{reason}, the last of {run.skipped_in_a_row} in a row (max_skipped={config.max_skipped}); pairs of "
                f"rank {run.ranks.rank}: {'; '.join(sources)}. {run.path} is from before them"
            )
        return {"skipped": reason, "sources": sources}


class _Collapse:
    """Says once when the contextual token has been nearly the same for all faces for twenty steps."""

    def __init__(self) -> None:
        self.steps = 0

    def watch(self, variance: float, batch_size: int) -> str | None:
        self.steps = self.steps + 1 if variance < COLLAPSED and batch_size > 1 else 0
        if self.steps != 20:
            return None
        return (
            f"the contextual token has collapsed: its variance over a batch has been under {COLLAPSED} for 20 steps "
            f"(now {variance:.1e}), so Patch of Interest learns nothing. aggregation='dino' resists that, "
            "and so does a lower beta"
        )


#: Beside the steps that are done; all together fits 80 columns.
_SHOWN = "{task.fields[rate]:.2f}/s", "{task.fields[losses]}"


def pretrain(
    config: PretrainConfig,
    model_config: MicronBERTConfig,
    data: Sequence[Clip] | Sequence[str],
    out: Path,
    *,
    resume: bool = False,
    start: tuple[MicronBERT, Corpus] | None = None,
    evaluate: Evaluate | None = None,
    console: Console | None = None,
) -> MicronBERT:
    """Pre-train a μ-BERT on ``data``.

    Writes to ``out``: ``log.jsonl`` (an object a step: losses, learning rate, gradient norm, contextual variance,
    share of the pairs accepted, seconds, and of these the seconds in which it waited for data; and one an
    evaluation), ``checkpoint.pt``, and at the end ``model/`` for ``from_pretrained``. A run that was stopped or
    killed and goes on with ``resume`` has the same losses as one that never stopped.

    Started by ``torchrun`` in several processes, each trains on its own batches; the first logs and writes. n of
    them have the losses of one process that accumulates n batches.

    Args:
        config: how to train.
        model_config: what to train.
        data: what to train on: clips, or addresses of shards (see ``find_shards``).
        out: a folder; must not hold another run, unless ``resume``.
        resume: go on from ``out/checkpoint.pt``; start from scratch if there is none. ``config.steps`` may have grown,
            and the data may lie elsewhere.
        start: a model of the settings ``model_config`` whose weights a new run begins with, and what it has seen.
        evaluate: measures of the model, logged at the steps that ``config.evaluate_every`` names.
        console: where progress is shown; standard error by default.

    Raises:
        CheckpointError: ``out`` holds another run, or one with other settings, or a damaged checkpoint; or a
            checkpoint could not be written.
        NonFiniteLossError: loss or gradient was NaN or infinite in more than ``config.max_skipped`` steps in a
            row; names step and pairs.
        Claimed: another process writes to ``out``.
        RankLostError: another process has gone.
        Stopped: SIGTERM or SIGINT came; the step was finished and the checkpoint written.
        FrameError: 16 pairs in a row could not be read, or not one of all shards.
    """
    console = console or Console(stderr=True)
    ranks = join(device_type(config.device))
    with NotedSignals() as signals, until_all_are_done(ranks), contextlib.ExitStack() as claims:
        if ranks.is_first:
            claims.enter_context(claimed(out))
        run = Run(config, model_config, data, out, ranks)
        if run.path.exists() and not resume:
            raise checkpoint.CheckpointError(
                f"{run.path} exists: resume continues that run; another folder starts a new one"
            )
        if run.path.exists():
            told = run.resume()
            if ranks.is_first:
                for line in told:
                    say(console, line)
        else:
            if resume and ranks.is_first:
                say(console, f"{run.path} does not exist: starting from scratch")
            if start is not None:
                run.start_from(*start)
        run.agree_on_products()
        _train(run, data, evaluate if ranks.is_first else None, console, signals)
        if ranks.is_first:
            corpus = run.corpus(data)
            settings = {**asdict(config), "steps_done": run.step}
            run.model.save_pretrained(out / "model", training=Training(clips=corpus.clips, settings=settings))
            corpus.write(out / "model")
        return run.model.eval()


def _train(
    run: Run,
    data: Sequence[Clip] | Sequence[str],
    evaluate: Evaluate | None,
    console: Console,
    signals: NotedSignals,
) -> None:
    config, ranks, out = run.config, run.ranks, run.out
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(out, run.step, config.tensorboard) if ranks.is_first else None
    if ranks.is_first:
        checkpoint.remove_partial(out)
    if config.compile:
        run.model.encoder.compile()
        run.model.decoder.compile()
    problems = ProblemReport(console, f"rank {ranks.rank}: " if ranks.count > 1 else "")
    collapse = _Collapse()

    def evaluate_now() -> None:
        due = config.evaluate_every and (run.step % config.evaluate_every == 0 or run.step == config.steps)
        if log and evaluate is not None and due:
            log.write(run.step, evaluate(run.model))

    waited, began, first = 0.0, time.perf_counter(), run.step
    try:
        with ProgressBar(*_SHOWN, console=console, shown=ranks.is_first) as progress:
            task = progress.add_task("steps", total=config.steps, completed=run.step, rate=0.0, losses="")
            if run.step == 0:
                evaluate_now()
            batches = Batches(
                data, run.model.config, config, ranks, step=run.step, positions=run.positions,
                pin=run.device.type == "cuda",
            )  # fmt: skip
            trainer = _Trainer(run, problems)
            began = started = time.perf_counter()
            for of_step in batches:
                ready = time.perf_counter()
                values, stop = trainer.step(of_step, signals.received is not None)
                ended = time.perf_counter()
                waited += ready - started
                values |= {"seconds": ended - started, "seconds_waiting": ready - started}
                if log:
                    log.write(run.step, values)
                if "loss" in values:
                    if ranks.is_first:
                        problems.say(collapse.watch(values["contextual_variance"], config.batch_size))
                    weights, losses = run.model.config, f"L {values['loss']:.4f}"
                    for name, part, weight in (
                        ("L_r", "reconstruction", weights.gamma),
                        ("L_agg", "aggregation", weights.beta),
                        ("L_move", "movement", weights.movement),
                    ):
                        losses += f"  {name} {values[f'loss_{part}']:.4f}" if weight else ""
                    progress.update(task, losses=losses)
                evaluate_now()
                rate = (run.step - first) / (time.perf_counter() - began)
                progress.update(task, completed=run.step, rate=rate)
                stop = stop or (ranks.count == 1 and signals.received is not None)
                stop = stop and run.step < config.steps
                if stop or config.saves_at(run.step):
                    run.save(batches.positions)
                if stop:
                    raise Stopped(signals.received or signal.SIGTERM, run.step, run.path)
                started = time.perf_counter()
    finally:
        if log:
            log.close()
        problems.finish()
    share = waited / max(time.perf_counter() - began, 1e-9)
    if ranks.is_first and share > 0.1:
        console.print(
            f"waited for frames {share:.0%} of the time: more --training.workers, or shards (micron shard)"
        )
