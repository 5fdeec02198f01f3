"""SLSTT as a recognizer: long-term optical flow, a vision transformer, an aggregator over time."""

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..data.clips.faces import Box
from ..data.clips.flow import ImagesOfClip
from ..data.databases.corpus import Corpus
from ..loading import load_model
from ..models.micron_bert import MicronBERT
from ..models.official.vit import import_timm_vit
from ..models.slstt import SLSTT, ContextualTokens, SLSTTConfig, SpatialEncoder, slstt_preset
from .base import Recognizer, RecognizerConfig, Start
from .fitting import Fitting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HALF = (0.5, 0.5, 0.5)
#: What weights that nobody trained are worth.
RANDOM = (
    "random weights: while it is frozen its features of the flow are random, which a classifier can still learn from; "
    "no published score was made like that"
)


@dataclass
class SLSTTRecognizerConfig(RecognizerConfig):
    """Settings of a recognizer of SLSTT."""

    recognizer: str = "slstt"
    network: SLSTTConfig = field(default_factory=SLSTTConfig)
    look: Literal["flow", "frames"] = "flow"
    """What its images are: flow from the onset, or the frames themselves."""
    images: int = 11
    """Of a clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network.classes != len(self.classes):
            raise ValueError(
                f"network.classes={self.network.classes}, but there are {len(self.classes)} classes"
            )


class SLSTTRecognizer(Recognizer):
    """An SLSTT; its features are those of all images of a clip."""

    config: SLSTTRecognizerConfig
    picture_note = "Images of the flow from the onset: the hue is the direction, the brightness the length."

    def __init__(
        self, config: SLSTTRecognizerConfig, encoder: SpatialEncoder | ContextualTokens | None = None
    ):
        super().__init__(config)
        self.network = SLSTT(config.network, encoder)

    @property
    def clip_input(self) -> ImagesOfClip:
        return _input(self.config.network, self.config.images, self.config.look)

    def embed(self, values: Tensor) -> Tensor:
        """Features (B, T·D) of the images (B, T, 3, S, S) of clips, uint8, or normalised already."""
        return self.network.extract_features(values).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.network.classify(features.unflatten(1, (self.config.images, -1)))

    def layers_from_the_top(self) -> list[list[str]]:
        """Head, LSTM if there is one, blocks from the last (with the last norm) to the first, patch embedding."""
        layers: dict[tuple[int, int], list[str]] = {}
        blocks = [re.search(r"\.blocks\.(\d+)\.", name) for name, _ in self.named_parameters()]
        last = max(int(block[1]) for block in blocks if block)
        for (name, _), block in zip(self.named_parameters(), blocks, strict=True):
            if ".aggregator." in name:
                place = (1, 0) if ".lstm." in name else (0, 0)
            elif block or ".norm." in name:
                place = (2, -int(block[1]) if block else -last)
            else:
                place = (3, 0)
            layers.setdefault(place, []).append(name)
        return [layers[place] for place in sorted(layers)]

    def picture(self, values: Tensor, labels: Sequence[str], place: Box | None = None) -> "Figure":
        """The first, middle and last image of each clip."""
        from ..visualize import figure_of_images

        chosen = [0, self.config.images // 2, self.config.images - 1]
        titles = [f"image {i + 1}" for i in chosen]
        return figure_of_images(values[:, chosen], titles=titles, labels=labels)


def _input(network: SLSTTConfig, images: int, look: Literal["flow", "frames"]) -> ImagesOfClip:
    side = network.image_size if network.micron_bert is None else network.micron_bert.image_size
    return ImagesOfClip(side, images, look)


@dataclass
class SLSTTRecipe(Fitting):
    """SLSTT (Zhang et al., IEEE TAFFC 2022) with its authors' settings: flow from the onset, a frozen vision
    transformer, an LSTM, SGD whose rate falls to a tenth after three quarters of the epochs."""

    name: ClassVar[str] = "slstt"
    recognizer = SLSTTRecognizer

    weights: str = "none"
    """Of the spatial encoder: a file of timm's names (the published start is
    vit_base_patch16_384.orig_in21k_ft_in1k), such a model of the Hugging Face hub (hf://owner/name), or "none" for
    random ones."""
    micron_bert: str = "none"
    """A pre-trained μ-BERT whose encoder takes the place of the vision transformer (ours): its folder, or hf://owner/name."""
    preset: Literal["base", "tiny"] = "base"
    """Size of a spatial encoder of random weights, and of what comes after it."""
    freeze: Literal["auto", "encoder", "none"] = "auto"
    """"encoder": train the aggregator alone, on features that are computed once; auto: where the encoder has weights,
    or is of the base size."""
    aggregator: Literal["lstm", "mean"] = "lstm"
    """Over time: an LSTM, or the mean of the images' logits."""
    look: Literal["flow", "frames"] = "flow"
    """Images of flow from the onset, or the frames themselves (ours)."""
    normalize: Literal["imagenet", "half"] = "imagenet"
    """Mean and deviation of the images: ImageNet's (the authors'), or 0.5 (that of the published start)."""
    epochs: int = 40
    batch_size: int = 4
    learning_rate: float = 0.01
    warmup: float = 0.0
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    balance: Literal["loss", "sampling", "off"] = "off"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd with momentum 0.9 and a rate that falls to a tenth after three quarters of the steps (the authors'); adamw
    with a warm-up and a cosine (ours)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights != "none" and self.micron_bert != "none":
            raise ValueError(
                f"weights={self.weights!r} and micron_bert={self.micron_bert!r} are two spatial encoders; give one"
            )

    @property
    def embeds_once(self) -> bool:
        if self.freeze != "auto":
            return self.freeze == "encoder"
        return self.preset == "base" or self.weights != "none" or self.micron_bert != "none"

    def start(self) -> Start:
        if self.micron_bert != "none":
            model = load_model(self.micron_bert)
            about = {
                "spatial encoder": f"that of the μ-BERT {self.micron_bert}",
                "model": asdict(model.config),
            }
            return Start(model, Corpus.read(self.micron_bert), about)
        if self.weights != "none":
            given = import_timm_vit(self.weights)
            return Start(
                given, Corpus(()), {"spatial encoder": self.weights, "network": asdict(given.config)}
            )
        config = slstt_preset(self.preset)
        network: SLSTT | None = None
        if self.embeds_once:  # features are the same in every fold and for every seed
            warnings.warn(f"slstt: the frozen spatial encoder has {RANDOM}", stacklevel=2)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = SLSTT(config)
        return Start(network, Corpus(()), {"spatial encoder": RANDOM, "network": asdict(config)})

    def _network(self, start: Start, classes: int) -> SLSTTConfig:
        changes: dict[str, Any] = {
            "classes": classes,
            "frozen": self.embeds_once,
            "aggregator": self.aggregator,
        }
        if self.normalize == "half":
            changes |= {"mean": _HALF, "std": _HALF}
        if isinstance(start.weights, MicronBERT):
            return slstt_preset(self.preset, micron_bert=start.weights.config, **changes)
        if isinstance(start.weights, SLSTT):
            return replace(start.weights.config, **changes)
        return slstt_preset(self.preset, **changes)

    def clip_input(self, start: Start) -> ImagesOfClip:
        return _input(self._network(start, 2), SLSTTRecognizerConfig.images, self.look)

    def build(self, start: Start, classes: Sequence[str], *, seed: int) -> SLSTTRecognizer:
        network = self._network(start, len(classes))
        encoder: SpatialEncoder | ContextualTokens | None = None
        if isinstance(start.weights, MicronBERT):
            encoder = ContextualTokens(start.weights.encoder)
        elif isinstance(start.weights, SLSTT):
            encoder = start.weights.encoder
        if not self.embeds_once:  # a frozen one is shared by all folds
            encoder = copy.deepcopy(encoder)
        config = SLSTTRecognizerConfig(tuple(classes), network=network, look=self.look)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SLSTTRecognizer(config, encoder)

    def optimizer_of(self, recognizer: Recognizer) -> Optimizer:
        if self.optimizer == "adamw":
            return super().optimizer_of(recognizer)
        groups = self.groups(recognizer)
        for group in groups:
            group["weight_decay"] = self.weight_decay  # of all that is trained, as the authors have it
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=recognizer.device.type in ("cpu", "cuda"))

    def schedule(self, step: int, steps: int) -> float:
        if self.optimizer == "adamw":
            return super().schedule(step, steps)
        return 1.0 if step < 0.75 * steps else 0.1

    def settings(self) -> dict[str, Any]:
        settings = asdict(self)
        for name in ("weights", "micron_bert"):  # of the start
            del settings[name]
        return settings
