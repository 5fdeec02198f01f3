"""Which micro-expression lies between two frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.config import MicronBERTConfig
from ..models.micron_bert import MicronBERT
from ..models.onednn import Linear
from ..saved_model import SavedModel


@dataclass
class RecognizerConfig:
    """Settings of a recognizer. How the authors fine-tuned μ-BERT is not published: the head is ours."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    model: MicronBERTConfig = field(default_factory=MicronBERTConfig)
    regions: int = 4
    """Features are pooled over regions × regions parts of the face, since a class is *where* it moves; 1 pools the
    whole face."""
    from_rest: bool = True
    """Subtract the features of the onset compared with itself: what is left is change, not whose face it is."""
    trained_on: str = ""
    """What the classifier has seen, for those who use it."""

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)  # JSON knows lists only
        if isinstance(self.model, dict):
            self.model = MicronBERTConfig(**self.model)
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(f"classes={self.classes}; at least 2 different names are needed")
        if not 1 <= self.regions <= self.model.grid:
            raise ValueError(
                f"regions={self.regions}; it must lie in [1, {self.model.grid}], the patches along a side"
            )


class Recognizer(
    SavedModel,
    library_name="micron-kernels",
    tags=["micro-expression"],
    license="mit",
):
    """μ-BERT's encoder and micro-attention between onset and apex, pooled, and a linear classifier."""

    def __init__(self, config: RecognizerConfig):
        super().__init__()
        self.config = config
        self.backbone = MicronBERT(config.model)
        del self.backbone.decoder  # reconstruction is for pre-training
        self.backbone.dino = None
        width = config.regions**2 * config.model.width
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, len(config.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained_backbone(cls, model: MicronBERT, classes: Sequence[str], **settings) -> "Recognizer":
        """A recognizer that starts from a pre-trained model; ``settings`` are those of :class:`RecognizerConfig`."""
        recognizer = cls(RecognizerConfig(tuple(classes), model.config, **settings))
        wanted = recognizer.backbone.state_dict()
        recognizer.backbone.load_state_dict({k: v for k, v in model.state_dict().items() if k in wanted})
        return recognizer

    def features(self, onset: Tensor, apex: Tensor) -> Tensor:
        """Pooled features (B, regions²·D) of what changed between frames (B, 3, H, W).

        Micro-attention weights each patch by the Patch of Interest of the apex; a region's features are the mean
        over its patches.
        """
        model = self.backbone
        size = onset.shape[0]
        both = model.encode(torch.cat([model.normalize(onset), model.normalize(apex)]))
        before, after = both.patches[:size], both.patches[size:]
        change, _ = model.forward_micro_attention(before, after, both.scores[size:])
        if self.config.from_rest:
            rest, _ = model.forward_micro_attention(before, before, both.scores[:size])
            change = change - rest
        rows, columns = (side // model.config.patch_size for side in onset.shape[2:])
        grid = change.transpose(1, 2).unflatten(2, (rows, columns))
        return F.adaptive_avg_pool2d(grid, self.config.regions).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of what :meth:`features` gave."""
        return self.head(self.norm(features))

    def forward(self, onset: Tensor, apex: Tensor) -> Tensor:
        """Logits (B, classes) of frames (B, 3, H, W): uint8, or normalised already."""
        return self.classify(self.features(onset, apex))
