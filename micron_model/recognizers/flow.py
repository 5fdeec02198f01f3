"""Plain means: optical flow and one linear layer. What a network has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.clips.faces import Box, inside_outline
from ..data.clips.flow import OnsetApexFlow
from .base import Examples, Recipe, Recognizer, RecognizerConfig, Start
from .fitting import class_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Bias of a class that no training clip has.
_NEVER = -100.0


@dataclass
class FlowRecognizerConfig(RecognizerConfig):
    """Settings of a recognizer by flow."""

    recognizer: str = "flow"
    size: int = 128
    """Side of the faces in pixels."""
    parts: int = 8
    """Flow is pooled over parts × parts squares of the face."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.size, self.parts)


def _check(size: int, parts: int) -> None:
    if size < 32:
        raise ValueError(f"size={size}; flow needs faces of at least 32 pixels")
    if not 1 <= parts <= size:
        raise ValueError(f"parts={parts}; it must lie in [1, {size}], the side of the faces in pixels")


class FlowRecognizer(Recognizer):
    """Flow from onset to apex less its median, pooled over parts of the face, standardised, and one linear layer."""

    config: FlowRecognizerConfig
    picture_note = (
        "Arrows: the mean flow of each part, less the median of the face. Colour: how far a pixel moves."
    )
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: FlowRecognizerConfig):
        super().__init__(config)
        features = 2 * config.parts**2
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.head = nn.Linear(features, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def clip_input(self) -> OnsetApexFlow:
        return OnsetApexFlow(self.config.size)

    def embed(self, values: Tensor) -> Tensor:
        """Mean flow (B, 2·parts²) of each part, of flow (B, 2, H, W)."""
        return F.adaptive_avg_pool2d(values, self.config.parts).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.head((features - self.mean) / self.deviation)

    def picture(self, values: Tensor, labels: Sequence[str], place: Box | None = None) -> Figure:
        """The flow of each clip."""
        from matplotlib.figure import Figure

        from ..visualize import MAP_COLOURS

        parts, side = self.config.parts, values.shape[-1]
        figure = Figure(figsize=(2.2 * len(values), 2.6), layout="constrained")
        places = (np.arange(parts) + 0.5) * side / parts - 0.5
        shown = np.ones((side, side), bool) if place is None else inside_outline(place, side, 1).numpy()
        of_parts = shown[np.ix_(places.round().astype(int), places.round().astype(int))]
        for axes, flow, label in zip(
            np.ravel(figure.subplots(1, len(values), squeeze=False)), values, labels, strict=True
        ):
            axes.imshow(np.where(shown, flow.norm(dim=0).numpy(), np.nan), cmap=MAP_COLOURS)
            right, down = np.where(of_parts, F.adaptive_avg_pool2d(flow, parts).numpy(), np.nan)
            axes.quiver(places, places, right, -down, color="white", width=0.008)
            axes.set_title(label, fontsize=8)
            axes.set_axis_off()
        return figure


@dataclass
class FlowRecipe(Recipe):
    """Farnebäck flow from onset to apex less its median, pooled, standardised by the training clips alone, and
    multinomial logistic regression with balanced classes, solved to its one optimum."""

    name: ClassVar[str] = "flow"
    recognizer = FlowRecognizer
    seeded: ClassVar[bool] = False

    size: int = 128
    """Side of the faces in pixels."""
    parts: int = 8
    """Flow is pooled over parts × parts squares of the face."""
    penalty: float = 1.0
    """Of half the sum of the squared weights, beside the sum of the clips' losses."""

    def __post_init__(self) -> None:
        _check(self.size, self.parts)
        if not self.penalty > 0:
            raise ValueError(f"penalty={self.penalty}; it must be positive, or there may be no optimum")

    @property
    def embeds_once(self) -> bool:
        return True

    def clip_input(self, start: Start) -> OnsetApexFlow:
        return OnsetApexFlow(self.size)

    def build(self, start: Start, classes: Sequence[str], *, seed: int) -> FlowRecognizer:
        return FlowRecognizer(FlowRecognizerConfig(tuple(classes), size=self.size, parts=self.parts))

    def learn(
        self, recognizer: Recognizer, train: Examples, seed: int, on_epoch: Callable[[int], object]
    ) -> None:
        """The optimum in fp64, by L-BFGS."""
        assert isinstance(recognizer, FlowRecognizer)
        features = train.values[:].double()
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)  # a part that never moves
        weight, bias = _logistic_regression((features - mean) / deviation, train.labels, self.penalty)
        present = (
            train.labels.unique()
        )  # the others keep weights of 0 and a bias with which they are never said
        head = recognizer.head
        head.bias.data.fill_(_NEVER)
        for there, found in ((recognizer.mean, mean), (recognizer.deviation, deviation)):
            there.copy_(found)
        head.weight.data[present], head.bias.data[present] = weight.to(head.weight), bias.to(head.bias)
        recognizer.eval()
        on_epoch(1)


def _logistic_regression(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights (C, F) and biases (C,) of the classes that are there, ascending: the minimum of the losses' sum, classes
    balanced, and penalty·‖weights‖²/2."""
    present, truth = labels.unique(return_inverse=True)
    balance = class_weights(truth, len(present)).to(features)
    weight = features.new_zeros(len(present), features.shape[1], requires_grad=True)
    bias = features.new_zeros(len(present), requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        solver.zero_grad()
        losses = F.cross_entropy(F.linear(features, weight, bias), truth, balance, reduction="sum")
        loss = losses + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()
