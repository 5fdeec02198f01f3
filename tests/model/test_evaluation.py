import numpy as np
import pytest
import torch

from micron_model import MicronBERT
from micron_model.evaluation import auroc, swap_auroc


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(60)))


def test_swap_auroc_tells_an_oracle_from_chance(small, pair):
    frames, later = pair
    moved = torch.rand(4, 16)
    model = small()

    class Oracle(MicronBERT):
        """Micro-attention that compares the pixels themselves."""

        def encode(self, x):
            patches = self.patchify(self.normalize(x))
            return super().encode(x)._replace(patches=patches)

        def forward_micro_attention(self, swapped, later, scores=None):
            return None, torch.exp(-(swapped - later).square().mean(2))

    def blind(swapped, later, scores=None):
        return None, torch.rand(4, 16)

    oracle = Oracle(model.config)
    assert swap_auroc(oracle, frames, later, moved)["auroc_all"] > 0.99
    model.forward_micro_attention = blind
    assert abs(swap_auroc(model, frames, later, moved)["auroc_all"] - 0.5) < 0.1
