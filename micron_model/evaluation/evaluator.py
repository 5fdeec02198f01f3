"""Train and test recognizers fold by fold, over processes, devices and machines."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ..data.clips.inputs import ClipInput, StoredValues, Values
from ..limits import read_json
from ..models import products
from ..plain_text import say
from ..progress import progress_bar
from ..recognizers.base import Examples, Recipe, Start, name_of, recipe_class
from ..recognizers.fitting import features_of, logits_of
from ..resumable import claimed
from ..whole_file import whole_file, write_whole
from .baselines import majority_class, shuffled_labels
from .metrics import confusion_matrix, uf1
from .predictions import LEAKY, Prediction, Predictions, read_predictions, write_predictions
from .protocols import check_fold, inner_split
from .task import Task, positions, refuse_overlap

_MODEL, _SHUFFLED = "model", "shuffled"


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
    baselines: tuple[str, ...] = ("flow",)
    """Recognizers that are trained beside this one, with their default settings, for a row each in the report."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}; at least 1 training of each fold is needed")
        if self.leaky_best_epoch and self.selection != "last":
            raise ValueError("leaky_best_epoch chooses the epoch itself; selection must stay 'last'")
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"baselines={self.baselines}; one is there twice")

    @property
    def stamp(self) -> str:
        """What a prediction says of how its epoch was chosen."""
        return LEAKY if self.leaky_best_epoch else self.selection


class Entrant(NamedTuple):
    """A recognizer that takes part."""

    recipe: Recipe
    start: Start

    @property
    def clip_input(self) -> ClipInput:
        return self.recipe.clip_input(self.start)


def entrants(recipe: Recipe, start: Start, config: EvaluateConfig) -> dict[str, Entrant]:
    """Who takes part, by name: "model", and the baselines other than it.

    Raises:
        ValueError: there is no baseline of a name.
    """
    found = {_MODEL: Entrant(recipe, start)}
    for name in config.baselines:
        if name == name_of(recipe):
            continue
        baseline = recipe_class(name)()
        found[name] = Entrant(baseline, baseline.start())
    return found


def inputs_of(recipe: Recipe, start: Start, config: EvaluateConfig) -> list[ClipInput]:
    """What a task must be loaded with: the inputs of a recipe and of its baselines."""
    return [entrant.clip_input for entrant in entrants(recipe, start, config).values()]


class Evaluation(NamedTuple):
    """Predictions of the model, and of what it has to beat."""

    predictions: Predictions
    baselines: dict[str, Predictions]


class _Job(NamedTuple):
    kind: str
    """"model", "shuffled" or the name of a baseline."""
    seed: int
    fold: int


class _Trained(NamedTuple):
    """What is trained in every fold."""

    recipe: Recipe
    start: Start
    examples: Examples
    """Of all clips, with the true labels; embedded where that is the same in every fold."""


@dataclass(frozen=True)
class _Work:
    """All that a process needs to train any fold."""

    trained: dict[str, _Trained]
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


def _train_fold(work: _Work, job: _Job) -> list[Prediction]:
    """Train one fold and predict its test side."""
    task, config = work.task, work.config
    recipe, start, examples = work.trained[job.kind]
    fold = task.folds[job.fold]
    check_fold(fold, task.expressions)
    seed = _seed(job.seed, fold.name)
    labels = task.labels
    if job.kind == _SHUFFLED:
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
    return [
        Prediction(
            e.dataset, e.subject, e.name, task.labels[i], task.classes[predicted], tuple(values), fold.name,
            job.seed, config.stamp,
        )
        for i, values, predicted in rows
        for e in [task.expressions[i]]
    ]  # fmt: skip


_work: _Work


def _start_worker(work: _Work, devices: torch.multiprocessing.SimpleQueue, chosen: dict[str, str]) -> None:
    global _work
    products.use(chosen, "chosen by the process that shares out the folds")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends them
    torch.set_num_threads(1)
    _work = replace(work, device=devices.get())


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
    chosen = products.choices(all=True) if "cpu" in devices else {}
    with ProcessPoolExecutor(workers, context, _start_worker, (work, queue, chosen)) as pool:
        try:
            for future in as_completed([pool.submit(_train_in_worker, job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _digest(parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in parts:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _described(entrant: Entrant, values: Values) -> dict[str, Any]:
    """All that decides what an entrant learns of any fold."""
    weights = entrant.start.weights
    parts = (values[i : i + 1] for i in range(len(values))) if isinstance(values, StoredValues) else [values]
    return {
        "recognizer": name_of(entrant.recipe),
        "settings": entrant.recipe.settings(),
        "input": entrant.clip_input.key,
        "values": _digest(parts),
        "start": None if weights is None else _digest(weights.state_dict().values()),
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make ``out`` the folder of this evaluation, or go on with it.

    Raises:
        ValueError: it holds another.
    """
    path = out / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = dict(read_json(path))
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
    recipe: Recipe,
    start: Start,
    config: EvaluateConfig,
    out: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    workers: int | None = None,
    part: tuple[int, int] = (1, 1),
    allow_overlap: bool = False,
    console: Console | None = None,
) -> Evaluation | None:
    """Train and test every fold, with every seed; a fold that is finished is not done again.

    Args:
        task: what is to be learned, with the values of every entrant's input.
        recipe: builds and trains a recognizer for every fold.
        start: where every fold starts from; it is not changed.
        config: how.
        out: a folder; ``folds/`` in it has a csv a fold, so that the same call goes on after it was stopped.
        devices: which the processes share out among themselves.
        workers: processes; as many as GPUs, or as processors. 1 trains in this one.
        part: (i, n): of n calls that share the folds out, in one folder that all of them see, the i-th, from 1 on.
        allow_overlap: go on although what a recognizer starts from has seen subjects that it is tested on, or does not
            say whom it has seen.
        console: where progress is shown; standard error by default.

    Returns:
        The predictions; None if folds of other parts are still missing.

    Raises:
        ValueError: ``out`` holds another evaluation, the task lacks an input, ``part`` is none, a subject is on both
            sides of a fold, or was seen before and that is not allowed.
        Claimed: another process writes to ``out``, or is this part.
    """
    console = console or Console(stderr=True)
    index, parts = part
    if not 1 <= index <= parts:
        raise ValueError(f"part={index}/{parts}; it must lie in 1/{parts} to {parts}/{parts}")
    for entrant in entrants(recipe, start, config).values():
        refuse_overlap(entrant.start.corpus, task.expressions, allow=allow_overlap)
    if workers is None:
        workers = (os.cpu_count() or 1) if devices[0] == "cpu" else len(devices)
    with claimed(out if parts == 1 else out / "parts" / f"{index}-of-{parts}"):
        return _evaluate(task, recipe, start, config, out, devices, workers, part, console)


def _evaluate(
    task: Task,
    recipe: Recipe,
    start: Start,
    config: EvaluateConfig,
    out: Path,
    devices: Sequence[str],
    workers: int,
    part: tuple[int, int],
    console: Console,
) -> Evaluation | None:
    entered = entrants(recipe, start, config)
    values = {kind: task.values_of(entrant.clip_input) for kind, entrant in entered.items()}
    _claim(out, _settings(task, entered, values, config))
    with progress_bar(console) as progress:
        trained = {}
        for kind, entrant in entered.items():
            examples = Examples(
                values[kind], positions(task.labels, task.classes), [e.subject for e in task.expressions]
            )
            if entrant.recipe.embeds_once:
                features = _cached_features(out, kind, entrant, task, values[kind], devices[0], progress)
                examples = examples._replace(values=features, embedded=True)
            trained[kind] = _Trained(entrant.recipe, _shared(entrant.start), _in_shared_memory(examples))
        if config.shuffled:
            trained[_SHUFFLED] = trained[_MODEL]
        work = _Work(trained, task._replace(values={}), config, devices[0])
        jobs = [
            _Job(kind, seed, fold)
            for kind in sorted(trained, key=[_MODEL, _SHUFFLED, *entered].index)
            for seed in range(config.seeds if kind == _SHUFFLED or trained[kind].recipe.seeded else 1)
            for fold in range(len(task.folds))
        ]
        rows = {job: found for job in jobs if (found := _finished(out, job, task, config)) is not None}
        mine = jobs[part[0] - 1 :: part[1]]
        remaining = [job for job in mine if job not in rows]
        shown = progress.add_task("folds", total=len(mine), completed=len(mine) - len(remaining))
        for job, predicted in _train_all(work, remaining, devices, workers):
            path = _path(out, job, task)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, Predictions(task.classes, tuple(predicted)))
            rows[job] = predicted
            progress.update(shown, advance=1)
    return _collect(out, task, config, jobs, rows, console)


def _collect(
    out: Path,
    task: Task,
    config: EvaluateConfig,
    jobs: list[_Job],
    rows: dict[_Job, list[Prediction]],
    console: Console,
) -> Evaluation | None:
    """All predictions, once those of the other parts are there too."""
    for job in jobs:
        if job not in rows and (found := _finished(out, job, task, config)) is not None:
            rows[job] = found
    missing = len(jobs) - len(rows)
    if missing:
        console.print(f"{missing} of {len(jobs)} folds are still to come from other parts", highlight=False)
        return None
    together: dict[str, list[Prediction]] = {}
    for job in jobs:
        together.setdefault(job.kind, []).extend(rows[job])
    model = together.pop(_MODEL)
    majority = [
        row
        for fold in task.folds
        for row in majority_class(fold, task.expressions, task.labels, task.classes)
    ]
    baselines = {"majority class": majority}
    if _SHUFFLED in together:
        baselines["shuffled labels"] = together.pop(_SHUFFLED)
    return Evaluation(
        Predictions(task.classes, tuple(model)),
        {name: Predictions(task.classes, tuple(of)) for name, of in (baselines | together).items()},
    )


def _settings(
    task: Task, entered: dict[str, Entrant], values: dict[str, Values], config: EvaluateConfig
) -> dict[str, Any]:
    described = [(e.dataset, e.subject, e.name, e.onset, e.apex) for e in task.expressions]
    return {
        "evaluation": asdict(config),
        "classes": task.classes,
        "folds": [fold.name for fold in task.folds],
        "clips": f"{len(described)} {hashlib.sha256(repr((described, task.labels)).encode()).hexdigest()[:16]}",
        **{kind: _described(entrant, values[kind]) for kind, entrant in entered.items()},
    }


def _shared(start: Start) -> Start:
    if start.weights is None:
        return start
    return start._replace(weights=copy.deepcopy(start.weights).cpu().share_memory())


def _in_shared_memory(examples: Examples) -> Examples:
    if isinstance(examples.values, Tensor):
        examples.values.share_memory_()
    return examples


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def _path(out: Path, job: _Job, task: Task) -> Path:
    fold = task.folds[job.fold].name.replace("/", "-")
    return out / "folds" / f"{_slug(job.kind)}-{job.seed}" / f"{fold}.csv"


def _finished(out: Path, job: _Job, task: Task, config: EvaluateConfig) -> list[Prediction] | None:
    """The predictions of a fold that was done before, if it was.

    Raises:
        ValueError: what is there is not of this fold, or not all of it.
    """
    path = _path(out, job, task)
    try:
        predictions = read_predictions(path, task.classes)
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


def _features_path(out: Path, kind: str) -> Path:
    return out / ("features.npy" if kind == _MODEL else f"features-{_slug(kind)}.npy")


def _cached_features(
    out: Path, kind: str, entrant: Entrant, task: Task, values: Values, device: str, progress: Progress
) -> Tensor:
    """Features of all clips, computed once: nothing in them was fitted to any clip."""
    path = _features_path(out, kind)
    stored = features_in(out, kind)
    if stored is not None:
        said = path.with_suffix(".sha256")
        if (
            len(stored) == len(values)
            and said.is_file()
            and said.read_text() == _digest([torch.from_numpy(stored)])
        ):
            return torch.from_numpy(stored)
        say(progress.console, f"{path}: is not what was written there; the features are computed again")
    recognizer = entrant.recipe.build(entrant.start, task.classes, seed=0).to(device).eval()
    shown = progress.add_task("features", total=len(values))
    features = features_of(recognizer, values, advance=lambda n: progress.update(shown, advance=n))
    with whole_file(path) as file:
        np.save(file, features.numpy(), allow_pickle=False)
    write_whole(path.with_suffix(".sha256"), _digest([features]))
    return features


def features_in(out: Path, kind: str = _MODEL) -> np.ndarray | None:
    """The features (n, F) that an evaluation left in its folder, where embedding is the same in every fold."""
    with contextlib.suppress(OSError, ValueError, EOFError, SyntaxError):
        # Mapped first: a header may state more than there is.
        mapped = np.load(_features_path(out, kind), mmap_mode="r", allow_pickle=False)
        if mapped.ndim == 2 and mapped.dtype == np.float32:
            return np.array(mapped)
    return None
