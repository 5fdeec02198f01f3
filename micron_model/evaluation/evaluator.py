"""Train and test a recognizer fold by fold, over processes and devices."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..data.databases.expressions import Expression
from ..models.micron_bert import MicronBERT
from ..recognizers.fitting import FinetuneConfig, features_of, fit, logits_of
from ..recognizers.micron_bert import Recognizer
from ..resumable import claimed
from ..whole_file import whole_file, write_whole
from .baselines import majority_class, shuffled_labels
from .metrics import confusion_matrix, uf1
from .predictions import LEAKY, Prediction, Predictions, read_predictions, write_predictions
from .protocols import Fold, check_fold, inner_split

_FEATURES = "features.npy"


@dataclass
class EvaluateConfig:
    """How to evaluate."""

    seeds: int = 5
    """Trainings of each fold, from seeds 0, 1, …; the scores' spread over them is reported."""
    selection: Literal["last", "inner"] = "last"
    """Which epoch is tested: the last, or the best on subjects held out of the training side (``inner``)."""
    leaky_best_epoch: bool = False
    """For diagnosis only: test the epoch that is best on the test subjects, as much of the field does. Every output is
    stamped with it."""
    shuffled: bool = True
    """Also train each fold on shuffled labels: what the score would be if there were nothing to learn."""
    regions: int = 4
    """Features are pooled over regions × regions parts of the face."""
    from_rest: bool = True
    """Subtract the features of the onset compared with itself."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}; at least 1 training of each fold is needed")
        if self.leaky_best_epoch and self.selection != "last":
            raise ValueError("leaky_best_epoch chooses the epoch itself; selection must stay 'last'")

    @property
    def stamp(self) -> str:
        """What a prediction says of how its epoch was chosen."""
        return LEAKY if self.leaky_best_epoch else self.selection


class Task(NamedTuple):
    """What is to be learned, and how it is tested."""

    expressions: list[Expression]
    labels: list[str]
    """The class of each expression."""
    classes: tuple[str, ...]
    folds: list[Fold]


class Evaluation(NamedTuple):
    """Predictions of the model, and of what it has to beat."""

    predictions: Predictions
    baselines: dict[str, Predictions]


class _Job(NamedTuple):
    kind: Literal["model", "shuffled"]
    seed: int
    fold: int


@dataclass(frozen=True)
class _Work:
    """All that a process needs to train any fold."""

    backbone: MicronBERT
    inputs: Tensor
    """Pairs, or features where the encoder is frozen."""
    task: Task
    config: EvaluateConfig
    device: str


def recognizer_of(backbone: MicronBERT, classes: Sequence[str], config: EvaluateConfig) -> Recognizer:
    """A recognizer that starts from ``backbone``, with a new classifier."""
    return Recognizer.from_pretrained_backbone(
        backbone, classes, regions=config.regions, from_rest=config.from_rest
    )


def _seed(*parts: object) -> int:
    """Of all that is random in a training; the same whoever does it, and when."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "little")


@dataclass
class _BestEpoch:
    """Keeps the logits of the test side at the epoch whose UF1 on some clips was highest so far."""

    predict: Callable[[list[int]], Tensor]
    labels: list[str]
    classes: tuple[str, ...]
    chosen_on: list[int]
    test: list[int]
    best: float = -1.0
    logits: Tensor | None = None

    def __call__(self, _epoch: int) -> None:
        predicted = [self.classes[i] for i in self.predict(self.chosen_on).argmax(1).tolist()]
        truth = [self.labels[i] for i in self.chosen_on]
        score = float(uf1(confusion_matrix(truth, predicted, self.classes)))
        if score > self.best:
            self.best, self.logits = score, self.predict(self.test)


def _train_fold(work: _Work, job: _Job) -> list[Prediction]:
    """Train one fold and predict its test side."""
    task, config = work.task, work.config
    fold = task.folds[job.fold]
    check_fold(fold, task.expressions)
    seed = _seed(job.seed, fold.name)
    labels = shuffled_labels(task.labels, fold.train, seed) if job.kind == "shuffled" else task.labels
    truth = torch.tensor([task.classes.index(label) for label in labels])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recognizer_of(work.backbone, task.classes, config).to(work.device)
    train, test = list(fold.train), list(fold.test)

    def predict(chosen: list[int]) -> Tensor:
        return logits_of(model, work.inputs[chosen], precision=config.finetune.precision)

    best = None
    if config.leaky_best_epoch:
        best = _BestEpoch(predict, labels, task.classes, test, test)
    elif config.selection == "inner":
        inner = inner_split(task.expressions, labels, train, seed=seed)
        train = list(inner.train)
        best = _BestEpoch(predict, labels, task.classes, list(inner.test), test)
    fit(
        model, work.inputs[train], truth[train], config.finetune, seed=seed,
        on_epoch=best if best is not None else lambda epoch: None,
    )  # fmt: skip
    logits = predict(test) if best is None or best.logits is None else best.logits
    rows = zip(test, logits.tolist(), logits.argmax(1).tolist(), strict=True)
    return [
        Prediction(
            e.dataset, e.subject, e.name, task.labels[i], task.classes[predicted], tuple(values), fold.name,
            job.seed, config.stamp,
        )
        for i, values, predicted in rows
        for e in [task.expressions[i]]
    ]  # fmt: skip


_work: _Work


def _start_worker(work: _Work, devices: torch.multiprocessing.SimpleQueue) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends them
    torch.set_num_threads(1)
    _work = _Work(work.backbone, work.inputs, work.task, work.config, devices.get())


def _train_in_worker(job: _Job) -> tuple[_Job, list[Prediction]]:
    return job, _train_fold(_work, job)


def _train_all(
    work: _Work, jobs: Sequence[_Job], devices: Sequence[str], workers: int
) -> Iterator[tuple[_Job, list[Prediction]]]:
    """Folds as they are finished; each process keeps to one device."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from ((job, _train_fold(work, job)) for job in jobs)
        return
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for i in range(workers):
        queue.put(devices[i % len(devices)])
    with ProcessPoolExecutor(workers, context, _start_worker, (work, queue)) as pool:
        try:
            for future in as_completed([pool.submit(_train_in_worker, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make ``out`` the folder of this evaluation, or go on with it.

    Raises:
        ValueError: it holds another.
    """
    path = out / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            raise ValueError(f"{path}: does not say of which evaluation; give another folder") from None
        different = [name for name in settings if before.get(name) != settings[name]]
        if different:
            listed = "; ".join(f"{n} was {before.get(n)!r}, is {settings[n]!r}" for n in different)
            raise ValueError(
                f"{out}: holds another evaluation: {listed}. Give the same settings and data, or another folder"
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1))


def evaluate(
    task: Task,
    pairs: Tensor,
    backbone: MicronBERT,
    config: EvaluateConfig,
    out: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    workers: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Train and test every fold, with every seed; a fold that is finished is not done again.

    Args:
        task: what is to be learned.
        pairs: (n, 2, 3, S, S) uint8, onset and apex of each expression.
        backbone: where every fold starts from; it is not changed.
        config: how.
        out: a folder; ``folds/`` in it has a csv a fold, so that the same call goes on after it was stopped.
        devices: which the processes share out among themselves.
        workers: processes; as many as GPUs, or as processors. 1 trains in this one.
        console: where progress is shown; standard error by default.

    Raises:
        ValueError: ``out`` holds another evaluation, or a subject is on both sides of a fold.
        Claimed: another process writes to ``out``.
    """
    with claimed(out):
        return _evaluate(task, pairs, backbone, config, out, devices, workers, console)


def _evaluate(
    task: Task,
    pairs: Tensor,
    backbone: MicronBERT,
    config: EvaluateConfig,
    out: Path,
    devices: Sequence[str],
    workers: int | None,
    console: Console | None,
) -> Evaluation:
    console = console or Console(stderr=True)
    if workers is None:
        workers = (os.cpu_count() or 1) if devices[0] == "cpu" else len(devices)
    described = [(e.dataset, e.subject, e.name, e.onset, e.apex) for e in task.expressions]
    settings = {
        "evaluation": asdict(config),
        "classes": task.classes,
        "folds": [fold.name for fold in task.folds],
        "clips": f"{len(described)} {hashlib.sha256(repr((described, task.labels)).encode()).hexdigest()[:16]}",
        "frames": _fingerprint(pairs),
        "model": _fingerprint(*backbone.state_dict().values()),
    }
    _claim(out, settings)
    inputs = pairs
    with progress_bar(console) as progress:
        if config.finetune.freeze == "encoder":
            inputs = _cached_features(task, pairs, backbone, config, out, devices[0], progress)
        work = _Work(
            copy.deepcopy(backbone).cpu().share_memory(), inputs.share_memory_(), task, config, devices[0]
        )
        kinds: tuple[Literal["model", "shuffled"], ...] = (
            ("model", "shuffled") if config.shuffled else ("model",)
        )
        jobs = [_Job(k, s, f) for k in kinds for s in range(config.seeds) for f in range(len(task.folds))]
        rows = {job: found for job in jobs if (found := _finished(_path(out, job, task), task)) is not None}
        shown = progress.add_task("folds", total=len(jobs), completed=len(rows))
        remaining = [job for job in jobs if job not in rows]
        for job, predicted in _train_all(work, remaining, devices, workers):
            path = _path(out, job, task)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, Predictions(task.classes, tuple(predicted)))
            rows[job] = predicted
            progress.update(shown, advance=1)
    together = {k: [row for job in jobs if job.kind == k for row in rows[job]] for k in kinds}
    majority = [
        row
        for fold in task.folds
        for row in majority_class(fold, task.expressions, task.labels, task.classes)
    ]
    baselines = {"majority class": majority} | (
        {"shuffled labels": together["shuffled"]} if config.shuffled else {}
    )
    return Evaluation(
        Predictions(task.classes, tuple(together["model"])),
        {name: Predictions(task.classes, tuple(found)) for name, found in baselines.items()},
    )


def _path(out: Path, job: _Job, task: Task) -> Path:
    return out / "folds" / f"{job.kind}-{job.seed}" / f"{task.folds[job.fold].name.replace('/', '-')}.csv"


def _finished(path: Path, task: Task) -> list[Prediction] | None:
    try:
        return list(read_predictions(path, task.classes).rows)
    except FileNotFoundError:
        return None


def _cached_features(
    task: Task,
    pairs: Tensor,
    backbone: MicronBERT,
    config: EvaluateConfig,
    out: Path,
    device: str,
    progress: Progress,
) -> Tensor:
    """Features of all pairs, computed once: nothing in them was fitted to any clip."""
    stored = features_in(out)
    if stored is not None and len(stored) == len(pairs):
        return torch.from_numpy(stored)
    model = recognizer_of(backbone, task.classes, config).to(device).eval()
    shown = progress.add_task("features", total=len(pairs))
    features = features_of(model, pairs, advance=lambda n: progress.update(shown, advance=n))
    with whole_file(out / _FEATURES) as file:
        np.save(file, features.numpy(), allow_pickle=False)
    return features


def features_in(out: Path) -> np.ndarray | None:
    """The features (n, F) that an evaluation with a frozen encoder left in its folder."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(out / _FEATURES, allow_pickle=False)
    return None


def progress_bar(console: Console) -> Progress:
    """A bar a task, with what is done of how much."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
    )
