"""What is training on movement worth to recognition, where light, head, noise and compression disturb the clips?

    python bench/experiments/localisation.py --train --only movement "movement, flow"
    python bench/experiments/movement_recognition.py

Frozen features of models that localisation.py trained, and of the same networks untrained, by one linear layer
(logistic regression): on faces that no training saw, five classes, leave one face out; and on the hard look-alikes of
slstt.py, three classes, in its groups of subjects. Features are the latent pooled over parts of the face, as the
recognizer has it, or the map: how much each patch changed, and nothing else. Writes movement_recognition.md beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from localisation import MODELS, OPTIONS, SIZE, UNSEEN, VARIANTS, UnseenClip, model_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from slstt import HARD, TITLES, task_of

from micron_model import MicronBERT
from micron_model.data.clips.flow import flow_less_median
from micron_model.data.clips.inputs import OnsetApex
from micron_model.data.clips.nuisances import LEVELS, disturb
from micron_model.data.clips.stabilize import stabilized
from micron_model.evaluation.localisation import micro_attention
from micron_model.evaluation.metrics import confusion_matrix, resample_subjects, uf1
from micron_model.recognizers.micron_bert import MicronBERTRecognizer

CLASSES = ("happiness", "disgust", "surprise", "sadness", "contempt")
SEEDS = (0, 1, 2)
SHOWN = ("none", "light", "all")


class Data(NamedTuple):
    """Pairs to recognise."""

    pairs: np.ndarray
    """(B, 2, 3, S, S), uint8."""
    labels: np.ndarray
    subjects: np.ndarray
    tested: list[np.ndarray]
    """Positions of each fold's test side."""


def unseen(level: str) -> Data:
    """Faces that no training saw, the apex laid over the onset; one face left out at a time."""
    rng = np.random.default_rng(100 + list(LEVELS).index(level))
    clips = [
        UnseenClip(3000 + VARIANTS * i + variant, label, face=face)
        for i, face in enumerate(UNSEEN)
        for variant in range(VARIANTS)
        for label in CLASSES
    ]
    pairs = [stabilized(disturb(c.read([c.onset, c.apex], SIZE), level, rng))[0] for c in clips]
    faces = np.array([c.face for c in clips])
    tested = [np.flatnonzero(faces == face) for face in UNSEEN]
    return Data(np.stack(pairs), np.array([c.label for c in clips]), faces, tested)


def lookalike(name: str) -> Data:
    """A look-alike of slstt.py, as it is."""
    task = task_of(name, [OnsetApex(SIZE)])
    pairs = task.values_of(OnsetApex(SIZE))[list(range(len(task.labels)))].numpy()
    subjects = np.array([expression.subject for expression in task.expressions])
    return Data(pairs, np.array(task.labels), subjects, [np.array(fold.test) for fold in task.folds])


def flow_features(pairs: np.ndarray) -> np.ndarray:
    """Flow less its median, the mean over 8 × 8 parts."""
    flows = torch.from_numpy(np.stack([flow_less_median(*pair) for pair in pairs]))
    return torch.nn.functional.adaptive_avg_pool2d(flows, 8).flatten(1).numpy()


@torch.no_grad()
def features_of(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    recognizer = MicronBERTRecognizer.from_pretrained_backbone(model, CLASSES).eval()
    return recognizer.embed(torch.from_numpy(pairs)).numpy()


def confusions(features: np.ndarray, data: Data) -> np.ndarray:
    """A matrix for each subject (S, C, C), of a classifier that was fitted on the others."""
    predicted = np.empty_like(data.labels)
    for test in data.tested:
        train = np.setdiff1d(np.arange(len(data.labels)), test)
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced")
        )
        classifier.fit(features[train], data.labels[train])
        predicted[test] = classifier.predict(features[test])
    classes = sorted(set(data.labels.tolist()))
    return np.stack([
        confusion_matrix(data.labels[data.subjects == s], predicted[data.subjects == s], classes)
        for s in dict.fromkeys(data.subjects.tolist())
    ])  # fmt: skip


def cell(of_seeds: list[np.ndarray]) -> str:
    """UF1 pooled over the faces, mean ± sd over seeds, and its 95 % interval of a bootstrap over faces."""
    scores = [float(uf1(c.sum(0))) for c in of_seeds]
    drawn = np.mean([uf1(resample_subjects(c, 2000, 0)) for c in of_seeds], 0)
    low, high = np.quantile(drawn, (0.025, 0.975))
    spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread} [{low:.3f}, {high:.3f}]"


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    methods: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {"flow, 8 × 8 parts": [flow_features]}
    for option, (_, of_training) in OPTIONS.items():
        if option.startswith("movement"):
            folders = [MODELS / f"{option.replace(', ', '-')}-{seed}" for seed in SEEDS]
            if of_training is not None and not all(folder.is_dir() for folder in folders):
                continue
            models = [model_of(option, seed) for seed in SEEDS]
            methods[f"μ-BERT, {option}"] = [lambda pairs, m=model: features_of(m, pairs) for model in models]
            methods[f"μ-BERT, {option}: map"] = [
                lambda pairs, m=model: micro_attention(m, pairs) for model in models
            ]
    data = {level: unseen(level) for level in SHOWN} | {TITLES[name]: lookalike(name) for name in HARD}
    lines = ["| frozen features | " + " | ".join(data) + " |", "|---" * (len(data) + 1) + "|"]
    for name, of_seeds in methods.items():
        cells = [cell([confusions(make(d.pairs), d) for make in of_seeds]) for d in data.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    about = (
        f"UF1 of frozen features and balanced logistic regression (C 0.01); seeds {SEEDS} of networks, mean ± standard "
        "deviation, and the 95 % interval of a bootstrap over faces or subjects. "
        f"{', '.join(SHOWN)}: {len(CLASSES)} classes ({', '.join(CLASSES)}), "
        f"{len(UNSEEN) * VARIANTS * len(CLASSES)} synthetic clips of {len(UNSEEN)} faces in {VARIANTS} variants each, "
        "none seen in training, leave one face out, the apex laid over the onset. The others: look-alikes of slstt.py, "
        "three classes, three groups of subjects; their faces are the photographs of the training under other warps."
    )
    Path(__file__).with_suffix(".md").write_text("\n".join([about, "", *lines, ""]))


if __name__ == "__main__":
    main()
