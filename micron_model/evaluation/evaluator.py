"""An evaluation: who takes part, what is computed once for all folds, which folds are left, and what came of all."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from rich.console import Console
from torch import Tensor

from ..data.clips.inputs import ClipInput, StoredValues, Values
from ..limits import check_shared_memory, read_file, read_json, read_npy
from ..plain_text import say
from ..progress import ProgressBar
from ..recognizers.base import Examples, Recipe, Start, name_of, recipe_class
from ..recognizers.fitting import features_of
from ..resumable import claimed
from ..whole_file import remove_partial, whole_file, write_whole
from .adaptation import Setting, by_setting, without_clips
from .baselines import majority_class
from .config import EvaluateConfig as EvaluateConfig
from .folds import (
    ADAPTING,
    MODEL,
    ORDINARY,
    SHUFFLED,
    Job,
    Trained,
    Work,
    adapted_in,
    finished,
    path_of,
    slug,
    train_all,
)
from .history import write_history
from .predictions import Prediction, Predictions, write_predictions, write_rows
from .task import Task, refuse_overlap


class Entrant(NamedTuple):
    """A recognizer that takes part."""

    recipe: Recipe
    start: Start

    @property
    def clip_input(self) -> ClipInput:
        return self.recipe.clip_input(self.start)


def entrants(recipe: Recipe, start: Start, config: EvaluateConfig) -> dict[str, Entrant]:
    """Who takes part, by name: "model", what it is adapted beside, and the baselines other than it.

    Raises:
        ValueError: there is no baseline of a name.
    """
    found = {MODEL: Entrant(recipe, start)}
    if config.adapt and recipe.ordinary is not None:
        found[ORDINARY] = Entrant(recipe.ordinary, start)
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
    adapted: Mapping[str, Mapping[Setting, Predictions]] = {}
    """By the other protocol (``adaptation``), if it was asked for: of the model, and of what it is compared with."""


def _digest(parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in parts:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_of(values: Values) -> str:
    parts = (values[i : i + 1] for i in range(len(values))) if isinstance(values, StoredValues) else [values]
    return _digest(parts)


def _described(entrant: Entrant, examples: Examples) -> dict[str, Any]:
    """All that decides what an entrant learns of any fold."""
    weights, macro = entrant.start.weights, examples.macro
    described = {
        "recognizer": name_of(entrant.recipe),
        "settings": entrant.recipe.settings(),
        "input": entrant.clip_input.key,
        "values": _digest_of(examples.values),
        "start": None if weights is None else _digest(weights.state_dict().values()),
    }
    if macro is not None:
        described["macro"] = f"{_digest_of(macro.values)} {_digest([macro.labels])}"
    return described


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
    if config.adapt:
        without_clips(task, recipe, config)
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
    given = {kind: task.examples(entrant.recipe, entrant.start) for kind, entrant in entered.items()}
    _claim(out, _settings(task, entered, given, config))
    for kind, entrant in entered.items():
        for line in entrant.recipe.remarks(given[kind]):
            say(console, line)
    remove_partial(out / "folds")  # into which several parts write, each with a lock elsewhere
    with ProgressBar(console=console) as progress:
        trained = {}
        for kind, entrant in entered.items():
            examples = given[kind]
            if entrant.recipe.embeds_once:
                features = _cached_features(out, kind, entrant, task, examples.values, devices[0], progress)
                examples = examples._replace(values=features, embedded=True)
            if workers > 1:
                examples = _in_shared_memory(examples)
            trained[kind] = Trained(entrant.recipe, _shared(entrant.start), examples)
        if config.shuffled:
            trained[SHUFFLED] = trained[MODEL]
        work = Work(trained, task._replace(values={}, macro={}), config, devices[0])
        jobs = [
            Job(kind, seed, fold)
            for kind in sorted(trained, key=[MODEL, SHUFFLED, *entered].index)
            for seed in range(config.seeds if kind == SHUFFLED or trained[kind].recipe.seeded else 1)
            for fold in range(len(task.folds))
        ]
        rows = {job: found for job in jobs if (found := finished(out, job, task, config)) is not None}
        mine = jobs[part[0] - 1 :: part[1]]
        remaining = [job for job in mine if job not in rows]
        shown = progress.add_task("folds", total=len(mine), completed=len(mine) - len(remaining))
        for job, (predicted, history, adapted) in train_all(work, remaining, devices, workers):
            if history:
                write_history(path_of(out, job, task, "epochs"), history)
            if adapted:
                write_rows(path_of(out, job, task, "adapted"), task.classes, adapted)
            path = path_of(out, job, task)  # written last: it says that the fold is done
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, Predictions(task.classes, tuple(predicted)))
            rows[job] = predicted
            progress.update(shown, advance=1)
    return _collect(out, task, config, jobs, rows, console)


def _collect(
    out: Path,
    task: Task,
    config: EvaluateConfig,
    jobs: list[Job],
    rows: dict[Job, list[Prediction]],
    console: Console,
) -> Evaluation | None:
    """All predictions, once those of the other parts are there too."""
    for job in jobs:
        if job not in rows and (found := finished(out, job, task, config)) is not None:
            rows[job] = found
    missing = len(jobs) - len(rows)
    if missing:
        console.print(f"{missing} of {len(jobs)} folds are still to come from other parts", highlight=False)
        return None
    together: dict[str, list[Prediction]] = {}
    for job in jobs:
        together.setdefault(job.kind, []).extend(rows[job])
    model = together.pop(MODEL)
    majority = [
        row
        for fold in task.folds
        for row in majority_class(fold, task.expressions, task.labels, task.classes)
    ]
    baselines = {"majority class": majority}
    if SHUFFLED in together:
        baselines["shuffled labels"] = together.pop(SHUFFLED)
    return Evaluation(
        Predictions(task.classes, tuple(model)),
        {name: Predictions(task.classes, tuple(of)) for name, of in (baselines | together).items()},
        _collect_adapted(out, task, config, jobs) if config.adapt else {},
    )


def _collect_adapted(
    out: Path, task: Task, config: EvaluateConfig, jobs: list[Job]
) -> dict[str, dict[Setting, Predictions]]:
    rows: dict[str, list[Prediction]] = {}
    for job in jobs:
        if job.kind in ADAPTING:
            rows.setdefault(job.kind, []).extend(adapted_in(out, job, task, config))
    return {
        kind: {s: Predictions(task.classes, tuple(found)) for s, found in by_setting(of_kind, config).items()}
        for kind, of_kind in rows.items()
    }


def _settings(
    task: Task, entered: dict[str, Entrant], given: dict[str, Examples], config: EvaluateConfig
) -> dict[str, Any]:
    described = [(e.dataset, e.subject, e.name, e.onset, e.apex) for e in task.expressions]
    return {
        "evaluation": asdict(config),
        "classes": task.classes,
        "folds": [fold.name for fold in task.folds],
        "clips": f"{len(described)} {hashlib.sha256(repr((described, task.labels)).encode()).hexdigest()[:16]}",
        **{kind: _described(entrant, given[kind]) for kind, entrant in entered.items()},
    }


def _shared(start: Start) -> Start:
    if start.weights is None:
        return start
    return start._replace(weights=copy.deepcopy(start.weights).cpu().share_memory())


def _in_shared_memory(examples: Examples) -> Examples:
    for values in (examples.values, None if examples.macro is None else examples.macro.values):
        if isinstance(values, Tensor) and not values.is_shared():
            size = values.numel() * values.element_size()
            check_shared_memory(size, f"the inputs of {len(values)} clips", "--workers 1 shares nothing")
            values.share_memory_()
    return examples


def _features_path(out: Path, kind: str) -> Path:
    return out / ("features.npy" if kind == MODEL else f"features-{slug(kind)}.npy")


def _cached_features(
    out: Path, kind: str, entrant: Entrant, task: Task, values: Values, device: str, progress: ProgressBar
) -> Tensor:
    """Features of all clips, computed once: nothing in them was fitted to any clip."""
    path = _features_path(out, kind)
    stored = features_in(out, kind)
    if stored is not None:
        said = b""
        with contextlib.suppress(OSError, ValueError):
            said = read_file(path.with_suffix(".sha256"), 1000)
        features = torch.from_numpy(stored)
        if (
            len(features) == len(values)
            and said == _digest([features]).encode()
            and features.isfinite().all()
        ):
            return features
        say(progress.console, f"{path}: is not what was written there; the features are computed again")
    recognizer = entrant.recipe.build(entrant.start, task.classes, seed=0).to(device).eval()
    shown = progress.add_task("features", total=len(values))
    features = features_of(
        recognizer, values, precision=entrant.recipe.inference_precision,
        advance=lambda n: progress.update(shown, advance=n),
    )  # fmt: skip
    with whole_file(path) as file:
        np.save(file, features.numpy(), allow_pickle=False)
    write_whole(path.with_suffix(".sha256"), _digest([features]))
    return features


def features_in(out: Path, kind: str = MODEL) -> np.ndarray | None:
    """The features (n, F) that an evaluation left in its folder, where embedding is the same in every fold."""
    path = _features_path(out, kind)
    with contextlib.suppress(OSError, ValueError):
        found = read_npy(path)
        if found.ndim == 2 and found.dtype == np.float32:
            return np.array(found)
    return None
