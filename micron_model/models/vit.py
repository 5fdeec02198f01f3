"""The pre-norm transformer: blocks, and of μ-BERT the encoder with a contextual token, decoder, positions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_products import plain_attention
from .config import MicronBERTConfig
from .products import Linear, attention, linear


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D positions (grid², width): the first half encodes the column, the second the row.

    Each half is sin(xω), cos(xω) with ω = 10000^(−4i/width), as in the Vision Transformer and MAE.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, width / 2]
    column, row = line.expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], 2).flatten(0, 1).float()


def resample_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Positions (grid², width) of a square grid, stretched over another by bicubic interpolation."""
    grid = round(positions.shape[0] ** 0.5)
    if (rows, columns) == (grid, grid):
        return positions
    image = positions.T.unflatten(1, (grid, grid))[None]
    return F.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False)[0].flatten(1).T


def patchify(frames: Tensor, patch_size: int) -> Tensor:
    """Frames (B, C, H, W) as patches (B, N, P·P·C), each in the order row, column, channel."""
    if frames.dim() != 4 or frames.shape[2] % patch_size or frames.shape[3] % patch_size:
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}; they must be (B, C, H, W) with H and W multiples of "
            f"the patch size {patch_size}: resize them"
        )
    grid = frames.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [B, C, h, P, w, P]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P·P·C) as frames (B, C, H, W)."""
    grid = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, columns))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


#: The deviation of a neighbourhood that counts as none: four grey levels of 255, in normalised pixels.
_FLAT = 0.07


def locally_normalized(frames: Tensor, side: int) -> Tensor:
    """Frames (B, C, H, W) less the mean of each pixel's neighbourhood, over its deviation (of all channels).

    Gain and offset of the light that are nearly the same over ``side`` pixels (odd) fall out. What lies outside mirrors
    the frame.
    """

    def mean(x: Tensor) -> Tensor:
        rows = F.avg_pool2d(
            F.pad(x, (side // 2,) * 4, mode="reflect"), (side, 1), 1
        )  # both at once take side² reads
        return F.avg_pool2d(rows, (1, side), 1)

    detail = frames - mean(frames)
    return detail / (mean(detail.square().mean(1, keepdim=True)).sqrt() + _FLAT)


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in the dtype of statistics and losses: fp32, or fp64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_scores(x, wanted=False)[0]

    def with_scores(self, x: Tensor, wanted: bool = True) -> tuple[Tensor, Tensor | None]:
        """(output (B, N, D), attention of the first token to all tokens (B, N), mean over heads, if wanted)."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        scores = None
        if wanted:  # one row per head: what Patch of Interest needs of the N×N map
            query, key = qkv[:, 0, 0], qkv[:, :, 1]  # [B, H, D/H], [B, N, H, D/H]
            first = torch.einsum("bhe,bnhe->bhn", query, key) * key.shape[-1] ** -0.5
            scores = at_least_fp32(first).softmax(-1).mean(1)
        return self.proj(attention(qkv)), scores

    def of_first(self, x: Tensor) -> Tensor:
        """The output (B, 1, D) of :meth:`forward` for the first token alone."""
        width = x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = linear(x[:, :1], weight[:width], bias[:width]).unflatten(2, (self.num_heads, -1))
        kv = linear(x, weight[width:], bias[width:]).unflatten(2, (2, self.num_heads, -1))
        key, value = kv.permute(2, 0, 3, 1, 4)
        out = plain_attention(query.transpose(1, 2), key, value)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: Literal["exact", "tanh"] = "exact"):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.approximate = "tanh" if gelu == "tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        eps: float,
        gelu: Literal["exact", "tanh"] = "exact",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio), gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_scores(x, wanted=False)[0]

    def with_scores(self, x: Tensor, wanted: bool = True) -> tuple[Tensor, Tensor | None]:
        """(tokens (B, N, D), attention of the first token (B, N), if wanted)."""
        attended, scores = self.attn.with_scores(self.norm1(x), wanted)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm2(x))), scores

    def of_first(self, x: Tensor) -> Tensor:
        """The tokens (B, 1, D) of :meth:`forward` that the first token becomes."""
        first = x[:, :1] + self.dropout(self.attn.of_first(self.norm1(x)))
        return first + self.dropout(self.mlp(self.norm2(first)))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Patches and a contextual token through pre-norm blocks.

    Fixed 2-D positions for the patches, none for the contextual token (CT).
    """

    positions: Tensor

    def __init__(self, config: MicronBERTConfig):
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.patch_size = config.patch_size
        self.window = config.embed_size or config.patch_size
        self.neighbourhood = config.normalized_input
        self.channels = 5 if config.flow_input else 3
        self.patch_embed = Linear(self.channels * self.window**2, width)
        self.contextual = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sincos_positions(width, config.grid), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio, eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.apply(_initialize)
        nn.init.normal_(self.contextual, std=0.02)

    def _windows(self, frames: Tensor) -> Tensor:
        """What each token is made of (B, N, channels·window²)."""
        if self.neighbourhood:
            normalized = locally_normalized(frames[:, :3], self.neighbourhood)
            frames = torch.cat([normalized, frames[:, 3:]], 1)
        if frames.shape[1] < self.channels:
            frames = F.pad(frames, (0, 0, 0, 0, 0, self.channels - frames.shape[1]))
        patches = patchify(frames, self.patch_size)
        if self.window == self.patch_size:
            return patches
        padding = (self.window - self.patch_size) // 2
        return F.unfold(frames, self.window, padding=padding, stride=self.patch_size).transpose(1, 2)

    def forward(
        self, frames: Tensor, contextual_only: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Encode normalised frames (B, 3, H, W), or (B, 5, H, W) with flow; flow that is not given is 0.

        Returns (contextual (B, D), patches (B, N, D), scores (B, N)): scores are the attention of the
        contextual token to the patches in the last block, mean over heads, in fp32. With ``contextual_only``
        the last block is computed for the contextual token alone, and patches and scores are None.
        """
        x = self.patch_embed(self._windows(frames))
        rows, columns = (side // self.patch_size for side in frames.shape[2:])
        x = x + resample_positions(self.positions, rows, columns)
        x = torch.cat([self.contextual.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)
        if contextual_only:
            return self.norm(last.of_first(x))[:, 0], None, None
        x, scores = last.with_scores(x)
        assert scores is not None
        x = self.norm(x)
        return x[:, 0], x[:, 1:], scores[:, 1:]


class Decoder(nn.Module):
    """Latent tokens to pixels; no contextual token, no mask token."""

    positions: Tensor

    def __init__(self, config: MicronBERTConfig):
        super().__init__()
        width, eps = config.decoder_width, config.layer_norm_eps
        self.embed = Linear(config.width, width)
        self.register_buffer("positions", sincos_positions(width, config.grid), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads, config.mlp_ratio, eps) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pred = Linear(width, 3 * config.patch_size**2)
        self.apply(_initialize)

    def forward(self, latent: Tensor, rows: int, columns: int) -> Tensor:
        """(B, N, D) on a grid of rows × columns to pixels (B, N, P·P·3)."""
        x = self.embed(latent) + resample_positions(self.positions, rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))
