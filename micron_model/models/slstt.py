"""SLSTT (Zhang, Huang, Liu, Zhao: Short and Long Range Relation Based Spatio-Temporal Transformer for Micro-Expression
Recognition, IEEE TAFFC 2022, arXiv 2112.05851).

A vision transformer looks at each of eleven images of long-term optical flow, an aggregator over time at its eleven
class tokens, and a small head names the emotion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MicronBERTConfig
from .products import Linear
from .vit import Block, Encoder, patchify, resample_positions, sincos_positions

#: Images that the encoder is given at a time where no gradient is wanted: more would leave the cache.
_TOGETHER = 16


@dataclass
class SLSTTConfig:
    """Everything that fixes a network; the defaults are the published size.

    Sources: P, the paper; C, the authors' code; ours, chosen by us.
    """

    image_size: int = 384
    """Side of an image in pixels (C)."""
    patch_size: int = 16
    """Side of a patch in pixels (P)."""
    width: int = 768
    """Width of the spatial encoder's tokens (P: ViT-B)."""
    depth: int = 12
    """Blocks of the spatial encoder (P)."""
    num_heads: int = 12
    """Attention heads of the spatial encoder (P)."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width (P)."""
    layer_norm_eps: float = 1e-6
    """ε of every LayerNorm (C)."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """GELU of the spatial encoder: the tanh approximation (C), or exact, as timm's weights want it."""
    dropout: float = 0.1
    """After attention and MLP of each block (C); only where the spatial encoder is trained."""
    aggregator: Literal["lstm", "mean"] = "lstm"
    """Over time: an LSTM and a head of two layers, or the mean of a linear layer's logits of each image (P, C)."""
    lstm_width: int = 512
    """Width of the LSTM (C)."""
    lstm_layers: int = 3
    """Layers of the LSTM (C)."""
    head_width: int = 256
    """Hidden width of the head after the LSTM (C)."""
    classes: int = 3
    """Emotions."""
    frozen: bool = True
    """Whether the spatial encoder stays as it is (C)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of a channel of an image in [0, 1], subtracted (C: ImageNet's; the weights' own is 0.5)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of a channel of an image in [0, 1], divided by (C: ImageNet's; the weights' own is 0.5)."""
    micron_bert: MicronBERTConfig | None = None
    """The encoder of a μ-BERT of these settings in place of the vision transformer (ours); an image's feature is then
    its contextual token."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # JSON knows lists only
            setattr(self, name, tuple(getattr(self, name)))
        if isinstance(self.micron_bert, dict):
            self.micron_bert = MicronBERTConfig(**self.micron_bert)
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        if self.width % 4:
            raise ValueError(f"width={self.width}; 2-D sine-cosine positions need a multiple of 4")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide width={self.width}")
        for name, allowed in (("gelu", ("tanh", "exact")), ("aggregator", ("lstm", "mean"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; it must lie in [0, 1)")
        for name in ("depth", "lstm_width", "lstm_layers", "head_width", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")


def slstt_preset(name: Literal["tiny", "base"], **overrides: Any) -> SLSTTConfig:
    """The settings called ``name``, with ``overrides``.

    ``base`` is the published size, whose spatial encoder wants weights from elsewhere; ``tiny`` (ours: 64×64, patches
    of 16, 64 wide, 2 blocks, an LSTM of one layer) is trained whole, from random weights, on a CPU.
    """
    presets: dict[str, dict[str, Any]] = {
        "base": {},
        "tiny": {
            "image_size": 64,
            "patch_size": 16,
            "width": 64,
            "depth": 2,
            "num_heads": 2,
            "lstm_width": 64,
            "lstm_layers": 1,
            "head_width": 32,
            "frozen": False,
        },
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} is not one of {', '.join(presets)}")
    return SLSTTConfig(**(presets[name] | overrides))


class SpatialEncoder(nn.Module):
    """A vision transformer: the class token of an image, after the last norm."""

    def __init__(self, config: SLSTTConfig):
        super().__init__()
        width, grid = config.width, config.image_size // config.patch_size
        self.patch_size, self.width = config.patch_size, width
        self.patch_embed = Linear(3 * config.patch_size**2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.blocks = nn.ModuleList(
            Block(
                width, config.num_heads, config.mlp_ratio, config.layer_norm_eps, config.gelu, config.dropout
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Learned, but from sine and cosine (ours): small random positions hardly tell one place from another.
        with torch.no_grad():
            self.positions[0, 1:] = sincos_positions(width, grid)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Class tokens (B, D) of normalised images (B, 3, H, W)."""
        patches = self.patch_embed(patchify(images, self.patch_size))  # [B, N, D]
        rows, columns = (side // self.patch_size for side in images.shape[2:])
        positions = resample_positions(self.positions[0, 1:], rows, columns)
        first = (self.class_token + self.positions[:, :1]).to(patches.dtype)
        x = torch.cat([first.expand(len(patches), -1, -1), patches + positions], 1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)
        return self.norm(last.of_first(x))[:, 0]


class ContextualTokens(nn.Module):
    """μ-BERT's encoder as a spatial encoder: the contextual token of an image (ours)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.width = encoder.contextual.shape[-1]
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Contextual tokens (B, D) of normalised images (B, 3, H, W)."""
        return self.encoder(images, contextual_only=True)[0]


class LSTMAggregator(nn.Module):
    """The last output of an LSTM over the images, and a head of two layers."""

    def __init__(self, width: int, config: SLSTTConfig):
        super().__init__()
        self.lstm = nn.LSTM(width, config.lstm_width, config.lstm_layers, batch_first=True)
        self.fc1 = nn.Linear(config.lstm_width, config.head_width)
        self.fc2 = nn.Linear(config.head_width, config.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the features (B, T, D) of clips."""
        return self.fc2(F.relu(self.fc1(self.lstm(features)[0][:, -1])))


class MeanAggregator(nn.Module):
    """The mean over the images of a linear layer's logits."""

    def __init__(self, width: int, config: SLSTTConfig):
        super().__init__()
        self.fc = nn.Linear(width, config.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the features (B, T, D) of clips."""
        return self.fc(features).mean(1)


class SLSTT(nn.Module):
    """Spatial encoder, temporal aggregator, head.

    Clips are (B, T, 3, S, S), T = 11 images of flow as ``data.clips.flow`` codes it, RGB. uint8 clips are normalised
    here; floating clips are taken as normalised already.

    Args:
        config: settings.
        encoder: the spatial encoder, used as it is, not copied; of random weights if not given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SLSTTConfig, encoder: SpatialEncoder | ContextualTokens | None = None):
        super().__init__()
        self.config = config
        if encoder is None and config.micron_bert is not None:
            encoder = ContextualTokens(Encoder(config.micron_bert))
        self.encoder = encoder or SpatialEncoder(config)
        aggregator = LSTMAggregator if config.aggregator == "lstm" else MeanAggregator
        self.aggregator = aggregator(self.encoder.width, config)
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.std), persistent=False)
        if config.frozen:
            self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SLSTT:
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) as (x/255 − mean)/std in fp32; floating images as they are."""
        if images.dtype != torch.uint8:
            return images
        return (images / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def extract_features(self, clips: Tensor) -> Tensor:
        """The features (B, T, D) of the images of clips (B, T, 3, S, S), without gradient if the encoder is frozen."""
        if clips.dim() != 5 or clips.shape[2] != 3 or clips.shape[1] < 1:
            raise ValueError(f"clips have shape {tuple(clips.shape)}; they must be (B, T, 3, S, S)")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            images = clips.flatten(0, 1)
            parts = (images,) if torch.is_grad_enabled() else images.split(_TOGETHER)
            features = torch.cat([self.encoder(self.normalize(part)) for part in parts])
        return features.unflatten(0, clips.shape[:2])

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, T, D)."""
        return self.aggregator(features)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, C) of clips (B, T, 3, S, S)."""
        return self.classify(self.extract_features(clips))
