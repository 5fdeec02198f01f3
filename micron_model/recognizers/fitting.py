"""Fine-tuning of a recognizer on labelled onset–apex pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.config import warm_cosine
from ..training.device_input import autocast
from .micron_bert import Recognizer


@dataclass
class FinetuneConfig:
    """How to fine-tune. The authors' way is not published: all choices are ours."""

    epochs: int = 30
    """Passes over the training clips."""
    batch_size: int = 32
    """Pairs a step."""
    learning_rate: float = 1e-3
    """Peak rate of the classifier; a cosine takes it to 0."""
    layer_decay: float = 0.75
    """Factor of the rate from each layer to the one below: classifier, micro-attention, blocks from the last to the
    first, patch embedding."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises linearly."""
    weight_decay: float = 0.05
    """Of matrices."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    balance: Literal["loss", "sampling", "off"] = "loss"
    """Against unequal classes, counted on the training clips alone: weigh the loss by 1/count, or draw clips so that
    classes come equally often."""
    freeze: Literal["none", "encoder"] = "none"
    """"encoder": train the classifier alone, on features of the unchanged model, computed once."""
    flip: bool = True
    """Mirror half of the pairs."""
    shift: float = 0.03
    """Largest shift of a pair, as a share of its side."""
    brightness: float = 0.1
    """Largest change of a pair's brightness, as a share."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        for name in ("warmup", "layer_decay", "label_smoothing", "shift", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must lie in [0, 1]")


def parameter_groups(model: Recognizer, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Groups of an optimiser: ``rate``, the peak rate of the group's layer, and weight decay for matrices only."""
    depth = model.config.model.depth
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        block = re.match(r"backbone\.encoder\.blocks\.(\d+)\.", name)
        if not name.startswith("backbone."):
            below = 0
        elif block:
            below = 1 + depth - int(block[1])
        else:
            below = (
                1 if name.startswith(("backbone.micro_attention.", "backbone.encoder.norm.")) else depth + 2
            )
        groups.setdefault((below, parameter.dim() == 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "rate": config.learning_rate * config.layer_decay**below,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (below, is_matrix), parameters in groups.items()
    ]


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) in inverse proportion to the counts among ``labels``; 0 for a class that is not there."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def augment(model: Recognizer, pairs: Tensor, config: FinetuneConfig, generator: torch.Generator) -> Tensor:
    """Pairs (B, 2, 3, S, S), uint8, normalised; mirrored, shifted and brightened, both frames of a pair alike."""
    count, side = len(pairs), pairs.shape[-1]
    if config.flip:
        mirrored = torch.rand(count, generator=generator, device="cpu") < 0.5
        pairs = torch.where(mirrored.to(pairs.device)[:, None, None, None, None], pairs.flip(-1), pairs)
    reach = int(config.shift * side)
    frames = pairs.flatten(1, 2).float()
    if reach:
        padded = F.pad(frames, (reach,) * 4, mode="replicate")
        starts = torch.randint(2 * reach + 1, (count, 2), generator=generator, device="cpu").tolist()
        frames = torch.stack(
            [x[:, r : r + side, c : c + side] for x, (r, c) in zip(padded, starts, strict=True)]
        )
    gain = 1 + config.brightness * (2 * torch.rand(count, generator=generator, device="cpu") - 1)
    frames = (frames * gain.to(frames.device)[:, None, None, None]).clamp(0, 255).unflatten(1, (2, 3))
    backbone = model.backbone
    return (frames / 255 - backbone.mean[:, None, None]) / backbone.std[:, None, None]


def _order(
    labels: Tensor, config: FinetuneConfig, classes: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The batches of an epoch, as positions."""
    if config.balance == "sampling":
        chances = class_weights(labels, classes)[labels]
        order = torch.multinomial(chances, len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator, device="cpu")
    yield from order.split(config.batch_size)


def fit(
    model: Recognizer,
    inputs: Tensor,
    labels: Tensor,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    on_epoch: Callable[[int], object] = lambda epoch: None,
) -> Recognizer:
    """Train ``model`` in place, on the device it is on; deterministic given ``seed`` (and the number of threads).

    Args:
        model: starts from what it is.
        inputs: the training clips: pairs (n, 2, 3, S, S), uint8; or, with ``freeze="encoder"``, their features
            (n, F) as ``model.features`` gives them.
        labels: (n,) int64, positions in ``model.config.classes``.
        config: how.
        seed: of the order and of augmentation.
        on_epoch: called after each epoch with its number, from 1 on.

    Returns:
        ``model``, in evaluation mode.
    """
    frozen = config.freeze == "encoder"
    if (inputs.dim() == 2) != frozen or len(inputs) != len(labels) or not len(labels):
        kind = "features (n, F)" if frozen else "pairs (n, 2, 3, S, S)"
        raise ValueError(
            f"inputs={tuple(inputs.shape)} and labels={tuple(labels.shape)}; freeze={config.freeze!r} needs {kind} and "
            "as many labels"
        )
    device, classes = model.head.weight.device, len(model.config.classes)
    generator = torch.Generator().manual_seed(seed)
    model.backbone.requires_grad_(not frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [g for g in parameter_groups(model, config) if g["params"][0].requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=device.type in ("cpu", "cuda"))
    weights = class_weights(labels, classes).to(device) if config.balance == "loss" else None
    steps, step = config.epochs * -(-len(labels) // config.batch_size), 0
    for epoch in range(config.epochs):
        model.train()
        for chosen in _order(labels, config, classes, generator):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * warm_cosine(step, steps, config.warmup)
            batch, truth = inputs[chosen].to(device), labels[chosen].to(device)
            with autocast(config.precision, device):
                if frozen:
                    logits = model.classify(batch)
                else:
                    onset, apex = augment(model, batch, config, generator).unbind(1)
                    logits = model(onset, apex)
            loss = F.cross_entropy(logits.float(), truth, weights, label_smoothing=config.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        model.eval()
        on_epoch(epoch + 1)
    return model.eval()


@torch.no_grad()
def logits_of(model: Recognizer, inputs: Tensor, batch_size: int = 64, precision: str = "auto") -> Tensor:
    """Logits (n, classes), fp32 on the CPU, of pairs (n, 2, 3, S, S) or of features (n, F)."""
    device = model.head.weight.device
    logits = []
    for batch in inputs.split(batch_size):
        batch = batch.to(device)
        with autocast(precision, device):
            result = model.classify(batch) if batch.dim() == 2 else model(*batch.unbind(1))
        logits.append(result.float().cpu())
    return torch.cat(logits)


@torch.no_grad()
def features_of(
    model: Recognizer,
    pairs: Tensor,
    batch_size: int = 16,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """Features (n, F), fp32 on the CPU, of pairs (n, 2, 3, S, S)."""
    device = model.head.weight.device
    features = []
    for batch in pairs.split(batch_size):
        features.append(model.features(*batch.to(device).unbind(1)).float().cpu())
        advance(len(batch))
    return torch.cat(features)
