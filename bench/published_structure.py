"""The pre-training step as the published code is built: what a user would otherwise run.

Written from the description in the paper and the structure of the authors' inference code: the views go through
the encoder one after the other, every attention stores its matrix, micro-attention computes the whole N×N softmax
for its diagonal, patches are swapped by a loop in Python, frames are normalised by an operation a step. The
weights are those of a :class:`MicronBERT` and the losses are the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micron_model import MicronBERT
from micron_model.models.patch_of_interest import crop_size, random_resized_crop
from micron_model.models.vit import Attention, Block, Decoder, Encoder, patchify


def plain(module: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer as torch runs it, whatever ``module`` would do."""
    return F.linear(x, module.weight, module.bias)


def attention(module: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-head attention with its matrix (B, H, N, N)."""
    batch, length, width = x.shape
    heads = module.num_heads
    qkv = plain(module.qkv, x).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    weights = (q @ k.transpose(-2, -1)) * (width // heads) ** -0.5
    weights = weights.softmax(dim=-1)
    x = (weights @ v).transpose(1, 2).reshape(batch, length, width)
    return plain(module.proj, x), weights


def block(module: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    attended, weights = attention(module.attn, module.norm1(x))
    x = x + attended
    hidden = F.gelu(plain(module.mlp.fc1, module.norm2(x)))
    return x + plain(module.mlp.fc2, hidden), weights


def encode(module: Encoder, frames: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(contextual token, patches, scores of the Patch of Interest) of one view."""
    x = plain(module.patch_embed, patchify(frames, module.patch_size)) + positions
    x = torch.cat((module.contextual.expand(x.shape[0], -1, -1), x), dim=1)
    for layer in module.blocks:
        x, weights = block(layer, x)
    x = module.norm(x)
    return x[:, 0], x[:, 1:], weights[:, :, 0, 1:].mean(1)


def decode(module: Decoder, latent: Tensor) -> Tensor:
    x = plain(module.embed, latent) + module.positions
    for layer in module.blocks:
        x, _ = block(layer, x)
    return plain(module.pred, module.norm(x))


Rectangle = tuple[int, int, int, int]


def rectangles(swap: Tensor, columns: int) -> list[list[Rectangle]]:
    """For each mask (N,) of ``swap`` the rectangles (top, left, bottom, right) of patches that cover it."""
    found = []
    for mask in swap.unflatten(1, (-1, columns)).tolist():
        closed: list[Rectangle] = []
        growing: dict[tuple[int, int], int] = {}  # a span of columns and the row in which it began
        for row, line in enumerate([*mask, [False] * columns]):
            edges = [c for c in range(columns + 1) if (c < columns and line[c]) != (c > 0 and line[c - 1])]
            spans = set(zip(edges[::2], edges[1::2], strict=True))
            closed += [
                (top, left, row, right)
                for (left, right), top in growing.items()
                if (left, right) not in spans
            ]
            growing = {span: growing.get(span, row) for span in spans}
        found.append(closed)
    return found


def swap_blocks(frames: Tensor, later: Tensor, blocks: list[list[Rectangle]], patch_size: int) -> Tensor:
    """``frames`` with rectangles of patches from ``later``, one after the other."""
    swapped = frames.clone()
    for sample, of_sample in enumerate(blocks):
        for block in of_sample:
            top, left, bottom, right = (edge * patch_size for edge in block)
            swapped[sample, :, top:bottom, left:right] = later[sample, :, top:bottom, left:right]
    return swapped


class PublishedStructure(nn.Module):
    """A :class:`MicronBERT` (roles of the paper, soft Patch of Interest, L_agg by MSE) run as described above."""

    def __init__(self, model: MicronBERT):
        super().__init__()
        self.model = model

    def normalize(self, frames: Tensor) -> Tensor:
        frames = frames.float()
        frames = frames / 255
        frames = frames - self.model.mean[:, None, None]
        return frames / self.model.std[:, None, None]

    def _micro_attention(self, swapped: Tensor, later: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(latent (B, N, D), diagonal (B, N)), from the whole matrix."""
        micro = self.model.micro_attention
        q, k, v = plain(micro.to_q, later), plain(micro.to_k, swapped), plain(micro.to_v, swapped)
        weights = ((q @ k.transpose(-2, -1)) * micro.scale).softmax(dim=-1)
        diagonal = torch.diagonal(weights, dim1=-2, dim2=-1)
        weighted = diagonal * scores * scores.shape[1]
        return plain(micro.proj, weighted.unsqueeze(-1) * v), diagonal

    def compare(self, onset: Tensor, apex: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`MicronBERT.compare`."""
        encoder = self.model.encoder
        _, patches, _ = encode(encoder, self.normalize(onset), encoder.positions)
        _, later, scores = encode(encoder, self.normalize(apex), encoder.positions)
        return self._micro_attention(patches, later, scores)

    def forward(
        self, batch: dict[str, Tensor], generator: torch.Generator, blocks: list[list[Rectangle]]
    ) -> dict[str, Tensor]:
        """The loss; ``blocks`` are the rectangles of the batch's ``swap``, which the published code draws itself."""
        model, config = self.model, self.model.config
        frames, later = self.normalize(batch["frames"]), self.normalize(batch["later"])
        swapped = swap_blocks(frames, later, blocks, config.patch_size)

        positions = model.encoder.positions
        _, swapped_patches, _ = encode(model.encoder, swapped, positions)
        contextual, later_patches, scores = encode(model.encoder, later, positions)

        latent, _ = self._micro_attention(swapped_patches, later_patches, scores)
        reconstruction = decode(model.decoder, latent)

        target = patchify(frames, config.patch_size)
        loss_reconstruction = ((reconstruction.float() - target) ** 2).mean(dim=-1).mean()
        size = crop_size(config, 0.5)
        crops = random_resized_crop(later, size, config.crop_scale, generator)
        grid = size // config.patch_size
        image = positions.T.unflatten(1, (config.grid, config.grid))[None]
        resampled = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
        contextual_of_crop, _, _ = encode(model.encoder, crops, resampled[0].flatten(1).T)
        loss_aggregation = F.mse_loss(contextual_of_crop.float(), contextual.float())
        return {"loss": config.gamma * loss_reconstruction + config.beta * loss_aggregation}
