"""All that an evaluation writes, for others to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import html_page
from ..models.micron_bert import MicronBERT
from ..visualize import change_maps, figure_of_pairs
from .evaluator import EvaluateConfig, Evaluation, Task, features_in
from .megc_log import write_megc_log
from .predictions import LEAKY, Predictions
from .published import Published
from .report import Features, Picture, write_report

#: Clips of which heat maps are shown, the best and as many of the worst.
_SHOWN = 4


def write_outputs(
    out: Path,
    task: Task,
    pairs: Tensor,
    backbone: MicronBERT,
    evaluation: Evaluation,
    config: EvaluateConfig,
    *,
    about: Mapping[str, str],
    published: Sequence[Published],
    stamps: Sequence[str],
) -> Path:
    """Write report, csv files and, for the classes of MEGC 2019, its logs.

    Args:
        out: the folder that ``evaluate`` wrote its folds to.
        task, pairs, backbone, config: what it was given.
        evaluation: what it gave.
        about: what the report says of data, protocol and model.
        published: what others report on this task.
        stamps: what must be said on top of everything.

    Returns:
        The path of the report's page.
    """
    predictions = evaluation.predictions
    values = features_in(out)
    features = None
    if values is not None:
        features = Features(values, task.labels, [e.dataset for e in task.expressions])
    path = write_report(
        out,
        title=f"Micro-expression recognition: {about['dataset']}, {about['protocol']}",
        predictions=predictions,
        baselines=evaluation.baselines,
        settings={**about, "evaluation": asdict(config), "model": asdict(backbone.config)},
        published=published,
        features=features,
        pictures=_heat_maps(task, pairs, backbone, predictions),
        stamps=stamps,
    )
    if set(predictions.classes) == {"negative", "positive", "surprise"} and config.stamp != LEAKY:
        for seed in predictions.seeds:
            write_megc_log(out / "megc" / f"seed-{seed}.txt", predictions, seed)
    return path


def _truth_probabilities(task: Task, predictions: Predictions) -> np.ndarray:
    """(n,): what the model gave the true class of each clip, mean over seeds."""
    position = {(e.dataset, e.name): i for i, e in enumerate(task.expressions)}
    sums, counts = np.zeros(len(position)), np.zeros(len(position))
    for row in predictions.rows:
        probability = torch.tensor(row.logits).softmax(0)[predictions.classes.index(row.truth)]
        sums[position[row.dataset, row.clip]] += float(probability)
        counts[position[row.dataset, row.clip]] += 1
    return sums / counts


def _heat_maps(task: Task, pairs: Tensor, backbone: MicronBERT, predictions: Predictions) -> list[Picture]:
    """Of the clips whose true class was given most and least."""
    given = _truth_probabilities(task, predictions)
    order = np.argsort(given, kind="stable")
    count = min(_SHOWN, len(order) // 2)
    pictures = []
    for title, chosen in (("Best clips", order[::-1][:count]), ("Worst clips", order[:count])):
        onset, apex = pairs[chosen.tolist()].unbind(1)
        labels = [f"{task.expressions[i].name}\n{task.labels[i]} {given[i]:.2f}" for i in chosen]
        figure = figure_of_pairs(onset, apex, change_maps(backbone, onset, apex), labels=labels)
        caption = (
            "Named: clip, true class, and the probability that the model gave it, mean over seeds. The maps are those "
            "of the pre-trained model that every fold starts from."
        )
        pictures.append(Picture(title, caption, html_page.png(figure)))
    return pictures
