"""Training of a recognizer by gradient, and what a recognizer makes of clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.clips.inputs import Values
from ..training.config import warm_cosine
from ..training.device_input import autocast
from .base import Examples, Recipe, Recognizer
from .meta import LAST_LAYERS, adapted


@dataclass
class Fitting(Recipe):
    """How to train by AdamW, beside what a recognizer has of its own. All choices are ours."""

    epochs: int = 30
    """Passes over the training clips."""
    batch_size: int = 32
    """Clips a step."""
    learning_rate: float = 1e-3
    """Peak rate; a cosine takes it to 0."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises linearly."""
    weight_decay: float = 0.05
    """Of matrices."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None for any."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    balance: Literal["loss", "sampling", "off"] = "loss"
    """Against unequal classes, counted on the training clips alone: weigh the loss by 1/count, or draw clips so that
    classes come equally often."""
    adapt_rate: float = 1e-3
    """Of the steps that adapt it to labelled clips of a person: plain gradient descent on the classifier and the last
    block."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must lie in [0, 1]")
        if not 0 < self.adapt_rate < math.inf:
            raise ValueError(f"adapt_rate={self.adapt_rate}; it must be positive and finite")

    @property
    def inference_precision(self) -> Literal["auto", "fp32", "bf16"]:
        return self.precision

    def groups(self, recognizer: Recognizer) -> list[dict[str, Any]]:
        """Groups of the optimiser, each with its peak ``rate``: one rate, and weight decay for matrices only."""
        trained = [p for p in recognizer.parameters() if p.requires_grad]
        return [
            {"params": parameters, "rate": self.learning_rate, "weight_decay": decay}
            for parameters, decay in (
                ([p for p in trained if p.dim() >= 2], self.weight_decay),
                ([p for p in trained if p.dim() < 2], 0.0),
            )
            if parameters
        ]

    def optimizer_of(self, recognizer: Recognizer) -> Optimizer:
        """AdamW on :meth:`groups`."""
        return torch.optim.AdamW(
            self.groups(recognizer), lr=0.0, fused=recognizer.device.type in ("cpu", "cuda")
        )

    def schedule(self, step: int, steps: int) -> float:
        """Factor of the rates: a warm-up and a cosine."""
        return warm_cosine(step, steps, self.warmup)

    def augment(self, recognizer: Recognizer, values: Tensor, generator: torch.Generator) -> Tensor:
        """A batch of what the input encodes, changed at random; the generator is on the CPU."""
        return values

    def learn(
        self, recognizer: Recognizer, train: Examples, seed: int, on_epoch: Callable[[int], object]
    ) -> None:
        fit_by_gradient(recognizer, train, self, seed=seed, on_epoch=on_epoch)

    def adapt(self, recognizer: Recognizer, few: Examples, *, steps: int, seed: int) -> Recognizer:
        """Plain gradient descent of rate ``adapt_rate`` on the mean cross-entropy, on the layers that inner steps of
        ``lightman`` change by default, so that the two can be compared."""
        rates = [self.adapt_rate] * (1 if few.embedded else LAST_LAYERS)
        return adapted(recognizer, few, rates, steps=steps, precision=self.precision)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) in inverse proportion to the counts among ``labels``; 0 for a class that is not there."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def _order(labels: Tensor, config: Fitting, classes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The batches of an epoch, as positions."""
    if config.balance == "sampling":
        chances = class_weights(labels, classes)[labels]
        order = torch.multinomial(chances, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator, device="cpu")
    yield from order.split(config.batch_size)


def fit_by_gradient(
    recognizer: Recognizer,
    train: Examples,
    config: Fitting,
    *,
    seed: int = 0,
    on_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Train what requires a gradient, in place, on the device it is on; deterministic given ``seed`` (and the number
    of threads).

    Args:
        recognizer: starts from what it is; it is left in evaluation mode.
        train: the training clips; if they are embedded, ``classify`` alone is run.
        config: how.
        seed: of the order and of augmentation.
        on_epoch: called after each epoch with its number, from 1 on.

    Raises:
        ValueError: there is no clip, or not as many labels.
    """
    values, labels = train.values, train.labels
    if len(values) != len(labels) or not len(labels):
        raise ValueError(
            f"{len(values)} clips and {len(labels)} labels; one label a clip, at least one, is needed"
        )
    device, classes = recognizer.device, len(recognizer.classes)
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in recognizer.parameters() if p.requires_grad]
    optimizer = config.optimizer_of(recognizer)
    weights = class_weights(labels, classes).to(device) if config.balance == "loss" else None
    steps, step = config.epochs * -(-len(labels) // config.batch_size), 0
    for epoch in range(config.epochs):
        recognizer.train()
        for chosen in _order(labels, config, classes, generator):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * config.schedule(step, steps)
            batch, truth = values[chosen].to(device), labels[chosen].to(device)
            with autocast(config.precision, device):
                if train.embedded:
                    logits = recognizer.classify(batch)
                else:
                    logits = recognizer(config.augment(recognizer, batch, generator))
            loss = F.cross_entropy(logits.float(), truth, weights, label_smoothing=config.label_smoothing)
            loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        recognizer.eval()
        on_epoch(epoch + 1)


def _batches(values: Values, size: int) -> Iterator[Tensor]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


@torch.no_grad()
def logits_of(
    recognizer: Recognizer,
    values: Values,
    *,
    embedded: bool = False,
    precision: str = "auto",
    batch_size: int = 64,
) -> Tensor:
    """Logits (n, classes), fp32 on the CPU, of what the input encodes (n, …), or of features (n, F) if ``embedded``."""
    logits = []
    for batch in _batches(values, batch_size):
        batch = batch.to(recognizer.device)
        with autocast(precision, recognizer.device):
            result = recognizer.classify(batch) if embedded else recognizer(batch)
        logits.append(result.float().cpu())
    return torch.cat(logits)


@torch.no_grad()
def features_of(
    recognizer: Recognizer,
    values: Values,
    batch_size: int = 16,
    *,
    precision: str = "fp32",
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """Features (n, F), fp32 on the CPU, of what the input encodes (n, …)."""
    features = []
    for batch in _batches(values, batch_size):
        with autocast(precision, recognizer.device):
            embedded = recognizer.embed(batch.to(recognizer.device))
        features.append(embedded.float().cpu())
        advance(len(batch))
    return torch.cat(features)
