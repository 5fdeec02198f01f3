"""What is training on movement worth to recognition, where light, head, noise and compression disturb the clips?

    python bench/experiments/localisation.py --train --only movement "movement, flow"
    python bench/experiments/movement_recognition.py

Frozen features of models that localisation.py trained, and of the same networks untrained, on faces that no training
saw: five classes, leave one face out, one linear layer (logistic regression). Writes movement_recognition.md beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from localisation import MODELS, OPTIONS, SIZE, UNSEEN, VARIANTS, UnseenClip, model_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from micron_model import MicronBERT
from micron_model.data.clips.flow import flow_less_median
from micron_model.data.clips.nuisances import LEVELS, disturb
from micron_model.data.clips.stabilize import stabilized
from micron_model.evaluation.metrics import confusion_matrix, resample_subjects, uf1
from micron_model.recognizers.micron_bert import MicronBERTRecognizer

CLASSES = ("happiness", "disgust", "surprise", "sadness", "contempt")
SEEDS = (0, 1, 2)
SHOWN = ("none", "light", "all")


def pairs_of(level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (B, 2, 3, S, S), uint8, the apex laid over the onset; their classes; the faces."""
    rng = np.random.default_rng(100 + list(LEVELS).index(level))
    clips = [
        UnseenClip(3000 + VARIANTS * i + variant, label, face=face)
        for i, face in enumerate(UNSEEN)
        for variant in range(VARIANTS)
        for label in CLASSES
    ]
    pairs = [stabilized(disturb(c.read([c.onset, c.apex], SIZE), level, rng))[0] for c in clips]
    return np.stack(pairs), np.array([c.label for c in clips]), np.array([c.face for c in clips])


def flow_features(pairs: np.ndarray) -> np.ndarray:
    """Flow less its median, the mean over 8 × 8 parts."""
    flows = torch.from_numpy(np.stack([flow_less_median(*pair) for pair in pairs]))
    return torch.nn.functional.adaptive_avg_pool2d(flows, 8).flatten(1).numpy()


@torch.no_grad()
def features_of(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    recognizer = MicronBERTRecognizer.from_pretrained_backbone(model, CLASSES).eval()
    return recognizer.embed(torch.from_numpy(pairs)).numpy()


def confusions(features: np.ndarray, labels: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A matrix for each face (S, C, C), of a classifier that was fitted on the others."""
    found = []
    for face in UNSEEN:
        test = faces == face
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        classifier.fit(features[~test], labels[~test])
        found.append(confusion_matrix(labels[test], classifier.predict(features[test]), CLASSES))
    return np.stack(found)


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
    data = {level: pairs_of(level) for level in SHOWN}
    lines = ["| frozen features | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, of_seeds in methods.items():
        cells = [
            cell([confusions(make(pairs), labels, faces) for make in of_seeds])
            for pairs, labels, faces in data.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    about = (
        f"UF1 of {len(CLASSES)} classes ({', '.join(CLASSES)}) on {len(UNSEEN) * VARIANTS * len(CLASSES)} synthetic "
        f"clips of {len(UNSEEN)} faces in {VARIANTS} variants each, none seen in training; leave one face out; the "
        f"apex laid over the onset; frozen features and logistic regression (C 0.01); seeds {SEEDS} of networks, mean "
        "± standard deviation, and the 95 % interval of a bootstrap over faces."
    )
    Path(__file__).with_suffix(".md").write_text("\n".join([about, "", *lines, ""]))


if __name__ == "__main__":
    main()
