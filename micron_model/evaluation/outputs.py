"""All that an evaluation writes, for others to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import html_page
from ..recognizers.base import Recipe, Start, name_of
from .adaptation import without_clips
from .adaptation_outputs import write_adapted
from .evaluator import EvaluateConfig, Evaluation, features_in
from .folds import MODEL
from .history import figure_of_histories, read_histories
from .megc_log import write_megc_log
from .predictions import LEAKY, Predictions
from .protocols import training_of_parts
from .published import Published
from .report import Features, Picture, write_report
from .task import Task, refuse_overlap

#: Clips of which heat maps are shown, the best and as many of the worst.
_SHOWN = 4


def write_outputs(
    out: Path,
    task: Task,
    recipe: Recipe,
    start: Start,
    evaluation: Evaluation,
    config: EvaluateConfig,
    *,
    about: Mapping[str, str],
    published: Sequence[Published] = (),
) -> Path:
    """Write report, csv files and, for the classes of MEGC 2019, its logs.

    Args:
        out: the folder that ``evaluate`` wrote its folds to.
        task, recipe, start, config: what it was given.
        evaluation: what it gave.
        about: what the report says, beside what task and start say of themselves.
        published: what others report on this task.

    Returns:
        The path of the report's page.
    """
    predictions = evaluation.predictions
    values = features_in(out)
    features = None
    if values is not None:
        features = Features(values, task.labels, [e.dataset for e in task.expressions])
    named = [task.about[key] for key in ("dataset",) if key in task.about] + list(about.values())
    path = write_report(
        out,
        title=f"Micro-expression recognition: {', '.join([*named, name_of(recipe)])}",
        predictions=predictions,
        baselines=evaluation.baselines,
        settings={
            **task.about,
            **about,
            "recognizer": {"name": name_of(recipe), **recipe.settings()},
            "evaluation": asdict(config),
            **start.about,
        },
        published=published,
        features=features,
        pictures=[*_training(out), *_pictures(task, recipe, start, predictions)],
        stamps=[*task.stamps, *refuse_overlap(start.corpus, task.expressions, allow=True)],
        parts=training_of_parts(task.folds, task.expressions),
        further=[write_adapted(out, evaluation.adapted, without_clips(task, recipe, config))]
        if evaluation.adapted
        else [],
    )
    if set(predictions.classes) == {"negative", "positive", "surprise"} and config.stamp != LEAKY:
        for seed in predictions.seeds:
            write_megc_log(out / "megc" / f"seed-{seed}.txt", predictions, seed)
    return path


def _training(out: Path) -> list[Picture]:
    """What the model's trainings measured from epoch to epoch, if they did."""
    histories = [
        h for folder in sorted((out / "epochs").glob(f"{MODEL}-[0-9]*")) for h in read_histories(folder)
    ]
    if not histories:
        return []
    caption = f"Mean over the {len(histories)} trainings, and where 80 % of them lie."
    cosines = [h["gradient cosine"].mean() for h in histories if "gradient cosine" in h]
    if cosines:
        caption += (
            " Where the cosine is below 0, the gradients of the auxiliary and the primary loss point against one "
            f"another; on average over its epochs that was so in {sum(x < 0 for x in cosines)} of {len(cosines)} "
            "trainings."
        )
    return [Picture("Training", caption, html_page.png(figure_of_histories(histories)))]


def _truth_probabilities(task: Task, predictions: Predictions) -> np.ndarray:
    """(n,): what the model gave the true class of each clip, mean over seeds."""
    position = {(e.dataset, e.name): i for i, e in enumerate(task.expressions)}
    sums, counts = np.zeros(len(position)), np.zeros(len(position))
    for row in predictions.rows:
        probability = torch.tensor(row.logits).softmax(0)[predictions.classes.index(row.truth)]
        sums[position[row.dataset, row.clip]] += float(probability)
        counts[position[row.dataset, row.clip]] += 1
    return sums / counts


def _pictures(task: Task, recipe: Recipe, start: Start, predictions: Predictions) -> list[Picture]:
    """Of the clips whose true class was given most and least, as the recognizer sees them before it is trained."""
    given = _truth_probabilities(task, predictions)
    order = np.argsort(given, kind="stable")
    count = min(_SHOWN, len(order) // 2)
    values = task.values_of(recipe.clip_input(start))
    recognizer = recipe.build(start, task.classes, seed=0).eval()
    pictures = []
    for title, chosen in (("Best clips", order[::-1][:count]), ("Worst clips", order[:count])):
        labels = [f"{task.expressions[i].name}\n{task.labels[i]} {given[i]:.2f}" for i in chosen]
        figure = recognizer.picture(values[chosen.tolist()], labels)
        if figure is None:
            return []
        caption = (
            "Named: clip, true class, and the probability that the model gave it, mean over seeds. "
            + recognizer.picture_note
        )
        pictures.append(Picture(title, caption, html_page.png(figure)))
    return pictures
