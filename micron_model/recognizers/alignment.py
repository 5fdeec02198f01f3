"""Auxiliary losses that hold features of micro- and macro-expressions together.

They are those of MiMaNet (Xia, Wang: Micro-Expression Recognition Enhanced by Macro-Expression from Spatial-Temporal
Domain, IJCAI 2021), in a form of ours. g is the projection, x a micro clip, m a macro clip, f the features.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Align = Literal["contrastive", "adversarial", "interval", "off"]


class Projection(nn.Sequential):
    """g: features (B, F) to (B, out)."""

    def __init__(self, features: int, out: int, hidden: int = 128):
        super().__init__(
            nn.LayerNorm(features, elementwise_affine=False),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, out),
        )


class Alignment(nn.Module):
    """What is embedded beside the clips of the primary loss, and the loss of their features."""

    def beside(
        self, micro: Tensor, macro: Tensor, macro_labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Values (A, …) to be embedded beside those of the micro clips, and a target (A,) of each."""
        return macro, macro_labels

    def forward(self, features: Tensor, labels: Tensor, beside: Tensor, targets: Tensor) -> Tensor:
        """The loss of features (B, F) of micro clips with labels (B,), and of (A, F) beside them with targets (A,)."""
        raise NotImplementedError


class Contrastive(Alignment):
    """Micro and macro clips of one emotion are pulled together, of different emotions pushed apart:

        −mean_x mean_{m of x's emotion} log( exp(z_x·z_m/τ) / Σ_m' exp(z_x·z_m'/τ) ),   z = g f / ‖g f‖,   τ = 0.1

    the supervised contrastive loss (Khosla et al., NeurIPS 2020) with micro clips as anchors and macro clips as what
    they are compared with. Micro clips of an emotion that no macro clip has play no part.
    """

    temperature = 0.1

    def __init__(self, features: int):
        super().__init__()
        self.projection = Projection(features, 64)

    def forward(self, features: Tensor, labels: Tensor, beside: Tensor, targets: Tensor) -> Tensor:
        micro, macro = (F.normalize(self.projection(x), dim=1) for x in (features, beside))
        log_share = (micro @ macro.t() / self.temperature).log_softmax(1)
        same = (labels[:, None] == targets).to(log_share.dtype)
        positives = same.sum(1)
        of_anchor = -(same * log_share).sum(1) / positives.clamp(min=1)
        return of_anchor.sum() / (positives > 0).sum().clamp(min=1)


class Adversarial(Alignment):
    """A discriminator d tells micro from macro clips, and the features learn to deceive it:

        mean over x and m of −log σ(±d g R f),   + for macro clips;   R(f) = f, ∂R/∂f = −1

    by reversal of the gradient (Ganin, Lempitsky, ICML 2015). Emotions play no part.
    """

    def __init__(self, features: int):
        super().__init__()
        self.discriminator = Projection(features, 1)

    def forward(self, features: Tensor, labels: Tensor, beside: Tensor, targets: Tensor) -> Tensor:
        both = torch.cat([features, beside])
        reversed_gradient = 2 * both.detach() - both
        is_macro = torch.cat([torch.zeros_like(features[:, 0]), torch.ones_like(beside[:, 0])])
        said = self.discriminator(reversed_gradient)[:, 0]
        sides = F.binary_cross_entropy_with_logits(said, is_macro, reduction="none").split(
            [len(features), len(beside)]
        )
        return torch.stack([side.mean() for side in sides]).mean()


class Interval(Alignment):
    """One classifier tells the interval between first and last frame, of micro and of macro clips alike:

        mean over x and m of −log softmax(g f(frames at k))_k,   k of −1, 0, 1, each clip's at random

    where k = 1 takes the frames as they are, −1 in reverse, 0 the first alone: what is left of MiMaNet's temporal
    relation where a recognizer is given two frames. For inputs (n, T, 3, S, S).
    """

    def __init__(self, features: int):
        super().__init__()
        self.classifier = Projection(features, 3)

    def beside(
        self, micro: Tensor, macro: Tensor, macro_labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        clips = torch.cat([micro, macro])
        intervals = torch.randint(3, (len(clips),), generator=generator, device="cpu").to(clips.device)
        place = intervals[
            (...,) + (None,) * (clips.dim() - 1)
        ]  # 0: in reverse, 1: the first alone, 2: as they are
        still = clips[:, :1].expand_as(clips)
        return torch.where(place == 0, clips.flip(1), torch.where(place == 1, still, clips)), intervals

    def forward(self, features: Tensor, labels: Tensor, beside: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.classifier(beside), targets)


ALIGNMENTS: dict[str, type[Alignment]] = {
    "contrastive": Contrastive,
    "adversarial": Adversarial,
    "interval": Interval,
}
