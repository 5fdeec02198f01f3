"""A recognizer of your own, on a page: a small convolutional network on optical flow, leave one subject out.

python examples/own_recognizer.py                                                # on a look-alike of CASME II
cd examples
micron evaluate casme2 /data/CASME2 --recognizer own_recognizer:Convolutional    # its settings: add --help
micron evaluate casme2 /data/CASME2 --baselines flow own_recognizer:Convolutional    # a row beside another
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from micron_model.data.clips.flow import OnsetApexFlow
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate, inputs_of
from micron_model.evaluation.metrics import score
from micron_model.evaluation.outputs import write_outputs
from micron_model.evaluation.task import load_task
from micron_model.recognizers import Fitting, Recognizer, RecognizerConfig, Start

FLOW = OnsetApexFlow(64)  # from onset to apex, of the face, (2, 64, 64)


class ConvNet(Recognizer):
    def __init__(self, config: RecognizerConfig):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 16, 5, stride=2, padding=2), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(32 * 4 * 4, len(self.classes))

    clip_input = FLOW

    def embed(self, values):  # (B, 2, 64, 64) -> (B, 512)
        return self.layers(values)

    def classify(self, features):  # (B, 512) -> (B, classes)
        return self.head(features)


@dataclass
class Convolutional(Fitting):
    """A convolutional network of two layers on flow from onset to apex."""

    recognizer = ConvNet
    epochs: int = 20

    def clip_input(self, start):
        return FLOW

    def build(self, start, classes, *, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ConvNet(RecognizerConfig(tuple(classes), recognizer="own_recognizer:Convolutional"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out/own_recognizer"))
    parser.add_argument("--subjects", type=int, default=8)
    options = parser.parse_args()
    recipe, start, config = Convolutional(), Start(), EvaluateConfig(seeds=1)
    with tempfile.TemporaryDirectory() as root:
        make_lookalike("casme2", root, LookalikeConfig(subjects=options.subjects, clips=7))
        inputs = inputs_of(recipe, start, config)
        task = load_task("casme2", root, inputs, scheme="3", allow_differences=True)
        evaluation = evaluate(task, recipe, start, config, options.out, workers=1)
    for name, found in {"this network": evaluation.predictions, **evaluation.baselines}.items():
        print(f"{name:<16} UF1 {score(found).full.uf1}")
    print(write_outputs(options.out, task, recipe, start, evaluation, config, about={"protocol": "loso"}))
