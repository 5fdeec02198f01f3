"""Expressions and predictions of no real face, for the tests."""

from pathlib import Path

import numpy as np

from micron_model.data.databases.expressions import Expression
from micron_model.evaluation.predictions import Prediction, Predictions
from micron_model.evaluation.protocols import loso

CLASSES = ("negative", "positive", "surprise")

#: Clips of each class, subjects, and how the database writes them: the MEGC 2019 composite.
COMPOSITE = {
    "casme2": ((88, 32, 25), 24, "sub{:02d}"),
    "samm": ((92, 26, 15), 28, "{:03d}"),
    "smic": ((70, 51, 43), 16, "s{}"),
}


def expression(dataset="casme2", subject="sub01", name="EP01_01", emotion="happiness"):
    frames = tuple((number, Path(f"{name}/img{number}.png")) for number in range(1, 10))
    return Expression(dataset, subject, name, emotion, 200.0, frames, 1, 5, 9)


def composite():
    """442 expressions of 68 subjects, and their classes."""
    expressions, labels = [], []
    for dataset, (counts, subjects, form) in COMPOSITE.items():
        for i, label in enumerate(np.repeat(CLASSES, counts).tolist()):
            # Some subjects have many clips and some few, and not all have every class.
            number = 1 + (i * i + i // 7) % subjects if i >= subjects else 1 + i
            expressions.append(expression(dataset, form.format(number), f"clip{i:03d}", label))
            labels.append(label)
    return expressions, labels


def predictions_of(
    expressions, labels, predict, *, folds=None, classes=CLASSES, seeds=range(5), selection="last"
):
    """``predict(rng, label)`` gives logits."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for fold in folds or loso(expressions):
            for i in fold.test:
                logits = tuple(map(float, predict(rng, labels[i])))
                said = classes[int(np.argmax(logits))]
                e = expressions[i]
                rows.append(
                    Prediction(
                        e.dataset, e.subject, e.name, labels[i], said, logits, fold.name, seed, selection
                    )
                )
    return Predictions(tuple(classes), tuple(rows))


def with_skill(skill, classes=CLASSES):
    """Logits that favour the truth by ``skill`` standard deviations."""
    return lambda rng, label: rng.normal(size=len(classes)) + skill * (np.array(classes) == label)


def constant(said, classes=CLASSES):
    return lambda rng, label: [float(name == said) for name in classes]


def from_pairs(pairs, classes=CLASSES, **changes):
    """Predictions of (dataset, subject number, truth, prediction), a clip a pair, a fold a subject."""
    rows = [
        Prediction(
            dataset,
            f"{dataset}/{subject}",
            f"clip{i}",
            truth,
            said,
            tuple(float(name == said) for name in classes),
            f"{dataset}/{subject}",
            **{"seed": 0, "selection": "last"} | changes,
        )
        for i, (dataset, subject, truth, said) in enumerate(pairs)
    ]
    return Predictions(tuple(classes), tuple(rows))
