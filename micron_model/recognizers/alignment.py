"""The auxiliary loss, which holds features of micro- and macro-expressions together.

It is the one of MiMaNet's (Xia, Wang: Micro-Expression Recognition Enhanced by Macro-Expression from Spatial-Temporal
Domain, IJCAI 2021) that pulls the features of one emotion together, in a form of ours.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Contrastive(nn.Module):
    """Micro clips x and macro clips m of one emotion are pulled together, of different emotions pushed apart:

        −mean_x mean_{m of x's emotion} log( exp(z_x·z_m/τ) / Σ_m' exp(z_x·z_m'/τ) ),   z = g f / ‖g f‖,   τ = 0.1

    with features f and a projection g: the supervised contrastive loss (Khosla et al., NeurIPS 2020) with micro clips
    as anchors and macro clips as what they are compared with. Micro clips of an emotion that no macro clip has play no
    part.
    """

    temperature = 0.1

    def __init__(self, features: int, hidden: int = 128, out: int = 64):
        super().__init__()
        self.projection = nn.Sequential(
            nn.LayerNorm(features, elementwise_affine=False),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, out),
        )

    def forward(self, micro: Tensor, labels: Tensor, macro: Tensor, macro_labels: Tensor) -> Tensor:
        """The loss of features (B, F) of micro clips with labels (B,), and (A, F) of macro clips with labels (A,)."""
        z, w = (F.normalize(self.projection(x), dim=1) for x in (micro, macro))
        log_share = (z @ w.t() / self.temperature).log_softmax(1)
        same = (labels[:, None] == macro_labels).to(log_share.dtype)
        positives = same.sum(1)
        of_anchor = -(same * log_share).sum(1) / positives.clamp(min=1)
        return of_anchor.sum() / (positives > 0).sum().clamp(min=1)
