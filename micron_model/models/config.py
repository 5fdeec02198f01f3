"""Settings of a μ-BERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class MicronBERTConfig:
    """Everything that fixes a model; the defaults are the preset "base".

    Sources: P, the paper (Nguyen et al., CVPR 2023); C, the authors' inference code; ours, chosen by us.
    """

    image_size: int = 224
    """Side of a frame in pixels (P). Other sizes that patches divide can be given at call time."""
    patch_size: int = 8
    """Side of a patch in pixels (P)."""
    width: int = 512
    """Width of the encoder's tokens (C)."""
    depth: int = 4
    """Blocks of the encoder (C)."""
    num_heads: int = 4
    """Attention heads of the encoder (C)."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width (C)."""
    decoder_width: int = 512
    """Width of the decoder's tokens (C)."""
    decoder_depth: int = 4
    """Blocks of the decoder (C)."""
    decoder_num_heads: int = 4
    """Attention heads of the decoder (C)."""
    layer_norm_eps: float = 1e-6
    """ε of every LayerNorm (C)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of a channel of a frame in [0, 1], subtracted (C)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of a channel of a frame in [0, 1], divided by (C)."""

    embed_size: int | None = None
    """Side in pixels of the window that a token is made of, centred on its patch; the patch itself if not given (P).
    Wider windows overlap (ours)."""
    normalized_input: int = 0
    """Side in pixels, odd, of the neighbourhood by whose mean and deviation each pixel of the encoder's input is
    normalised, which takes the light out (ours). 0: not (P)."""
    flow_input: bool = False
    """Give the encoder, beside a frame, the optical flow to it from the frame that it is compared with, less its
    median: two more channels (ours)."""

    roles: Literal["paper", "code"] = "paper"
    """Who asks whom in micro-attention: "paper": query = later frame, key = value = swapped frame; "code":
    query = value = swapped frame, key = later frame."""
    diag_att: bool = True
    """Keep only the diagonal of micro-attention (P). False is the full cross-attention of the released
    checkpoint (C)."""
    tied_start: bool = False
    """Start ``to_k`` as a copy of ``to_q``, so that equal patches match from the first step (ours)."""
    poi: Literal["soft", "hard", "off"] = "soft"
    """Patch of Interest: weight the diagonal by scores · N ("soft"), or compute micro-attention for the
    highest scores only ("hard"); the paper leaves the form open (ours)."""
    poi_ratio: float = 0.5
    """Share of the patches that a hard Patch of Interest keeps, rounded up (ours)."""
    swap_ratio: float = 0.5
    """Share of the patches of frame t that pre-training replaces by those of frame t+δ (a user of the authors'
    code calls 0.5 the default)."""

    normalized_target: bool = False
    """Reconstruct patches normalised to mean 0 and variance 1 each (C: an option)."""
    reconstruction_weight: Literal["uniform", "motion"] = "uniform"
    """Weight of a patch in the reconstruction loss: 1 (P, C), or its share of the frame difference (ours)."""
    aggregation: Literal["mse", "dino", "off"] = "mse"
    """L_agg: "mse", the contextual tokens of a crop and of the whole (P); "dino", self-distillation (C)."""
    gamma: float = 1.0
    """γ, weight of the reconstruction loss (C)."""
    beta: float = 1.0
    """β, weight of the aggregation loss (C)."""
    movement: float = 0.0
    """Weight of the movement loss: on frames of which parts are displaced by known lengths, the map of micro-attention
    is to rank the quarter of the patches that moved most above the others (ours)."""
    crop_scale: tuple[float, float] = (0.4, 1.0)
    """Range of the area of the crop of L_agg, and of the global crops of "dino", as a share of the frame
    (ours, as in DINO)."""
    local_crop_scale: tuple[float, float] = (0.05, 0.4)
    """Range of the area of the local crops of "dino" (ours, as in DINO)."""
    local_crops: int = 8
    """Local crops of "dino", beside 2 global ones (C)."""
    dino_hidden: int = 2048
    """Hidden width of the three-layer DINO head (C)."""
    dino_bottleneck: int = 256
    """Width of the DINO head before its last layer (C)."""
    dino_out: int = 128
    """Output width of the DINO head (C)."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax (C)."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax (C)."""
    center_momentum: float = 0.9
    """Momentum of the centre of the teacher's outputs (C)."""
    teacher_momentum: float = 0.996
    """Momentum of the teacher's weights at the first step; a cosine takes it to 1 at the last (ours, as in
    DINO)."""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "crop_scale", "local_crop_scale"):  # JSON knows lists only
            setattr(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "width", "depth", "decoder_width", "decoder_depth", "dino_hidden",
                     "dino_bottleneck", "dino_out"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not min(self.std) > 0:
            raise ValueError(f"std={self.std}; each must be positive")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}")
        for width, heads in (("width", "num_heads"), ("decoder_width", "decoder_num_heads")):
            w, h = getattr(self, width), getattr(self, heads)
            if h < 1 or w % h:
                raise ValueError(f"{heads}={h} does not divide {width}={w}")
            if w % 4:
                raise ValueError(f"{width}={w}; 2-D sine-cosine positions need a multiple of 4")
        choices = {
            "roles": ("paper", "code"),
            "poi": ("soft", "hard", "off"),
            "reconstruction_weight": ("uniform", "motion"),
            "aggregation": ("mse", "dino", "off"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}"
                )
        window = self.patch_size if self.embed_size is None else self.embed_size
        if window < self.patch_size or (window - self.patch_size) % 2:
            raise ValueError(
                f"embed_size={window}; it must be patch_size={self.patch_size} and an even number of pixels"
            )
        if self.normalized_input < 0 or (self.normalized_input and not self.normalized_input % 2):
            raise ValueError(
                f"normalized_input={self.normalized_input}; it must be 0 or an odd number of pixels"
            )
        if min(self.gamma, self.beta, self.movement) < 0 or self.gamma + self.movement <= 0:
            raise ValueError(
                f"gamma={self.gamma}, beta={self.beta}, movement={self.movement}; none may be negative, and gamma or "
                "movement must be positive: nothing else trains micro-attention"
            )
        if not 0 <= self.swap_ratio <= 1:
            raise ValueError(f"swap_ratio={self.swap_ratio}; it must lie in [0, 1]")
        if not 0 < self.poi_ratio <= 1:
            raise ValueError(f"poi_ratio={self.poi_ratio}; it must lie in (0, 1]")

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch_size


def preset(name: Literal["tiny", "base"], **overrides) -> MicronBERTConfig:
    """The settings called ``name``, with ``overrides``.

    ``base`` is the published size: 224×224, patches of 8, 512 wide, 4 + 4 blocks. ``tiny`` is for a CPU:
    64×64, patches of 8, 128 wide, 4 + 4 blocks.
    """
    presets = {
        "base": {},
        "tiny": {
            "image_size": 64,
            "width": 128,
            "decoder_width": 128,
            "dino_hidden": 256,
            "dino_bottleneck": 64,
        },
    }
    if name not in presets:
        raise ValueError(f"preset {name!r} is not one of {', '.join(presets)}")
    return MicronBERTConfig(**(presets[name] | overrides))


#: What measured best for a map of where a face moved (bench/experiments/localisation.md), beside a preset: learns from
#: known movement alone, needs no decoder, and sees optical flow.
MOVEMENT: dict[str, Any] = {
    "tied_start": True, "poi": "off", "aggregation": "off", "gamma": 0.0, "beta": 0.0, "movement": 1.0,
    "embed_size": 16, "normalized_input": 9, "depth": 2, "decoder_depth": 2, "flow_input": True,
}  # fmt: skip
