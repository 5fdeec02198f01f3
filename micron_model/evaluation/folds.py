"""One fold after another: trained and tested, in processes that share them out, each in a file of its own."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.multiprocessing
from torch import Tensor

from ..models import products
from ..recognizers.base import Examples, Recipe, Start
from ..recognizers.fitting import logits_of
from ..signals import end_with_parent
from .adaptation import draw, predict_adapted, settings_of
from .baselines import shuffled_labels
from .config import EvaluateConfig
from .history import History
from .metrics import confusion_matrix, uf1
from .predictions import Prediction, read_predictions, read_rows
from .protocols import check_fold, inner_split
from .task import Task, positions

MODEL, SHUFFLED = "model", "shuffled"
#: The same network, trained in the ordinary way: what adapting the model is compared with.
ORDINARY = "ordinary fine-tuning"
ADAPTING = (MODEL, ORDINARY)


class Job(NamedTuple):
    kind: str
    """"model", "shuffled" or the name of a baseline."""
    seed: int
    fold: int


class Trained(NamedTuple):
    """What is trained in every fold."""

    recipe: Recipe
    start: Start
    examples: Examples
    """Of all clips, with the true labels; embedded where that is the same in every fold."""


@dataclass(frozen=True)
class Work:
    """All that a process needs to train any fold."""

    trained: dict[str, Trained]
    """By the kind of job."""
    task: Task
    config: EvaluateConfig
    device: str


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


class Outcome(NamedTuple):
    """What came of a fold."""

    predictions: list[Prediction]
    history: History
    """What the training measured."""
    adapted: list[Prediction]
    """By the other protocol, of every setting (``adaptation``); none unless it is asked for."""


def train_fold(work: Work, job: Job) -> Outcome:
    """Train one fold and predict its test side."""
    task, config = work.task, work.config
    recipe, start, examples = work.trained[job.kind]
    fold = task.folds[job.fold]
    check_fold(fold, task.expressions)
    seed = _seed(job.seed, fold.name)
    labels = task.labels
    if job.kind == SHUFFLED:
        labels = shuffled_labels(labels, fold.train, seed)
        examples = examples._replace(labels=positions(labels, task.classes))
    recognizer = recipe.build(start, task.classes, seed=seed).to(work.device)
    train, test = list(fold.train), list(fold.test)

    def predict(chosen: list[int]) -> Tensor:
        return logits_of(
            recognizer,
            examples.at(chosen).values,
            embedded=examples.embedded,
            precision=recipe.inference_precision,
        )

    best = None
    if config.leaky_best_epoch:
        best = _BestEpoch(predict, labels, task.classes, test, test)
    elif config.selection == "inner":
        inner = inner_split(task.expressions, labels, train, seed=seed)
        train = list(inner.train)
        best = _BestEpoch(predict, labels, task.classes, list(inner.test), test)
    recipe.fit(
        recognizer, examples.at(train), seed=seed, on_epoch=best if best is not None else lambda epoch: None
    )
    logits = predict(test) if best is None or best.logits is None else best.logits
    rows = zip(test, logits.tolist(), logits.argmax(1).tolist(), strict=True)
    predictions = [
        Prediction(
            e.dataset, e.subject, e.name, task.labels[i], task.classes[predicted], tuple(values), fold.name,
            job.seed, config.stamp,
        )
        for i, values, predicted in rows
        for e in [task.expressions[i]]
    ]  # fmt: skip
    adapted = []
    if config.adapt and job.kind in ADAPTING:
        adapted = predict_adapted(
            recipe, recognizer, examples, task, fold, config, seed=seed, job_seed=job.seed
        )
    return Outcome(predictions, recognizer.history, adapted)


_work: Work


def _start_worker(work: Work, devices: torch.multiprocessing.SimpleQueue, chosen: dict[str, str]) -> None:
    global _work
    products.use(chosen, "chosen by the process that shares out the folds")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends them
    end_with_parent()
    torch.set_num_threads(1)
    _work = replace(work, device=devices.get())


def _train_in_worker(job: Job) -> tuple[Job, Outcome]:
    return job, train_fold(_work, job)


def train_all(
    work: Work, jobs: Sequence[Job], devices: Sequence[str], workers: int
) -> Iterator[tuple[Job, Outcome]]:
    """Folds as they are finished; each process keeps to one device."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from ((job, train_fold(work, job)) for job in jobs)
        return
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for i in range(workers):
        queue.put(devices[i % len(devices)])
    chosen = products.choices(all=True) if "cpu" in devices else {}
    with ProcessPoolExecutor(workers, context, _start_worker, (work, queue, chosen)) as pool:
        try:
            for future in as_completed([pool.submit(_train_in_worker, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise RuntimeError(
                "a process that trained folds was killed, perhaps for want of memory; finished folds are kept, and the "
                "same command with fewer --workers does the rest"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def path_of(out: Path, job: Job, task: Task, what: str = "folds") -> Path:
    """The csv of a fold's predictions, or, among the "epochs", of what its training measured, or, among the "adapted",
    of its predictions by the other protocol."""
    fold = task.folds[job.fold].name.replace("/", "-")
    return out / what / f"{slug(job.kind)}-{job.seed}" / f"{fold}.csv"


def adapted_in(out: Path, job: Job, task: Task, config: EvaluateConfig) -> list[Prediction]:
    """What a fold that was done before gave by the other protocol.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there is not of this fold, or not all of it.
    """
    fold = task.folds[job.fold]
    tested = [i for subject in draw(task, fold, config.adapt, job.seed) for i in subject.tested]
    if not tested:
        return []
    path = path_of(out, job, task, "adapted")
    _, rows = read_rows(path, task.classes)
    expected = {
        (task.expressions[i].name, setting.selection) for i in tested for setting in settings_of(config)
    }
    if {(row.clip, row.selection) for row in rows} != expected or {row.seed for row in rows} != {job.seed}:
        raise ValueError(
            f"{path}: holds other clips than fold {fold.name} adapts to; delete it to do the fold again"
        )
    return list(rows)


def finished(out: Path, job: Job, task: Task, config: EvaluateConfig) -> list[Prediction] | None:
    """The predictions of a fold that was done before, if it was.

    Raises:
        ValueError: what is there is not of this fold, or not all of it.
    """
    path = path_of(out, job, task)
    try:
        predictions = read_predictions(path, task.classes)
        if config.adapt and job.kind in ADAPTING:
            adapted_in(out, job, task, config)
    except FileNotFoundError:
        return None
    fold = task.folds[job.fold]
    expressions = [(task.expressions[i], task.labels[i]) for i in fold.test]
    expected = {(e.dataset, e.subject, e.name, label) for e, label in expressions}
    found = [(row.dataset, row.subject, row.clip, row.truth) for row in predictions.rows]
    different = [
        f"{name} {value!r}"
        for row in predictions.rows
        for name, value, wanted in (
            ("fold", row.fold, fold.name), ("seed", row.seed, job.seed), ("selection", row.selection, config.stamp)
        )
        if value != wanted
    ]  # fmt: skip
    if (
        len(found) != len(expected)
        or set(found) != expected
        or predictions.classes != task.classes
        or different
    ):
        reason = different[0] if different else "other clips, classes or truths"
        raise ValueError(
            f"{path}: holds {reason}, not those of fold {fold.name}, seed {job.seed}; delete it to do the fold again"
        )
    return list(predictions.rows)
