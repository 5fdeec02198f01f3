"""μ-BERT as a recognizer: which micro-expression lies between onset and apex."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.clips.faces import Box, inside_outline
from ..data.clips.inputs import OnsetApex
from ..data.databases.corpus import Corpus
from ..loading import load_model
from ..models.config import MicronBERTConfig, preset
from ..models.micron_bert import EncoderState, MicronBERT
from ..models.official.micron_bert import SEEN
from ..models.products import Linear
from .base import Examples, Recognizer, RecognizerConfig, Start
from .fitting import Fitting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FEATURES = ("latent", "map")


@dataclass
class MicronBERTRecognizerConfig(RecognizerConfig):
    """Settings of a recognizer of μ-BERT. How its authors fine-tuned it is not published: the head is ours."""

    recognizer: str = "micron-bert"
    model: MicronBERTConfig = field(default_factory=MicronBERTConfig)
    features: Literal["latent", "map"] = "latent"
    """What is pooled of micro-attention between the frames: each patch's latent, or how much it changed, one number."""
    regions: int = 4
    """Features are pooled over regions × regions parts of the face, since a class is *where* it moves; 1 pools the
    whole face."""
    from_rest: bool = True
    """Subtract the latent of the onset compared with itself: what is left is change, not whose face it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"features={self.features!r}; it must be one of {', '.join(FEATURES)}")
        if not 1 <= self.regions <= self.model.grid:
            raise ValueError(
                f"regions={self.regions}; it must lie in [1, {self.model.grid}], the patches along a side"
            )


class MicronBERTRecognizer(Recognizer):
    """μ-BERT's encoder and micro-attention between onset and apex, pooled, and a linear classifier."""

    config: MicronBERTRecognizerConfig
    picture_note = "The maps are those of μ-BERT before it is fine-tuned."

    def __init__(self, config: MicronBERTRecognizerConfig):
        super().__init__(config)
        self.backbone = MicronBERT(config.model)
        del self.backbone.decoder  # reconstruction is for pre-training
        self.backbone.dino = None
        width = config.regions**2 * (config.model.width if config.features == "latent" else 1)
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, len(config.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained_backbone(
        cls, model: MicronBERT, classes: Sequence[str], **settings
    ) -> "MicronBERTRecognizer":
        """A recognizer that starts from a pre-trained model; ``settings`` are those of its config."""
        recognizer = cls(MicronBERTRecognizerConfig(tuple(classes), model=model.config, **settings))
        wanted = recognizer.backbone.state_dict()
        recognizer.backbone.load_state_dict({k: v for k, v in model.state_dict().items() if k in wanted})
        return recognizer

    @property
    def clip_input(self) -> OnsetApex:
        return OnsetApex(self.config.model.image_size)

    def embed(self, values: Tensor) -> Tensor:
        """Pooled features of what changed between onset and apex (B, 2, 3, H, W): uint8, or normalised already.

        (B, regions²·D) of the latent, of which micro-attention weights each patch by the Patch of Interest of the apex;
        (B, regions²) of the map, :meth:`MicronBERT.movement_map`. A region's features are the mean over its patches.
        """
        onset, apex = values.unbind(1)
        rows, columns = (side // self.backbone.config.patch_size for side in onset.shape[2:])
        before, after = self.backbone.encode_pair(onset, apex)
        if self.config.features == "map":
            change = self.backbone.movement_map(before, after)[..., None]
        else:
            change = self._latent_of_change(before, after)
        grid = change.transpose(1, 2).unflatten(2, (rows, columns))
        return F.adaptive_avg_pool2d(grid, self.config.regions).flatten(1)

    def _latent_of_change(self, before: EncoderState, after: EncoderState) -> Tensor:
        """(B, N, D)"""
        model = self.backbone
        change, _ = model.forward_micro_attention(before.patches, after.patches, after.scores)
        if not self.config.from_rest:
            return change
        rest, _ = model.forward_micro_attention(before.patches, before.patches, before.scores)
        return change - rest

    def classify(self, features: Tensor) -> Tensor:
        return self.head(self.norm(features))

    def layers_from_the_top(self) -> list[list[str]]:
        """Classifier, micro-attention, blocks from the last to the first, patch embedding."""
        depth = self.config.model.depth
        layers: list[list[str]] = [[] for _ in range(depth + 3)]
        for name, _ in self.named_parameters():
            block = re.match(r"backbone\.encoder\.blocks\.(\d+)\.", name)
            if not name.startswith("backbone."):
                below = 0
            elif block:
                below = 1 + depth - int(block[1])
            else:
                of_change = name.startswith(("backbone.micro_attention.", "backbone.encoder.norm."))
                below = 1 if of_change else depth + 2
            layers[below].append(name)
        return layers

    def picture(self, values: Tensor, labels: Sequence[str], place: Box | None = None) -> "Figure":
        """Onset, apex and the heat maps of the change between them."""
        from ..visualize import change_maps, figure_of_pairs

        onset, apex = values.unbind(1)
        inside = place and inside_outline(place, values.shape[-1], self.backbone.config.patch_size)
        maps = change_maps(self.backbone, onset, apex)
        return figure_of_pairs(onset, apex, maps, labels=labels, inside=inside)


@dataclass
class MicronBERTRecipe(Fitting):
    """μ-BERT: encoder and micro-attention between onset and apex, pooled, and one linear layer. How its authors
    fine-tuned it is not published: all choices are ours."""

    name: ClassVar[str] = "micron-bert"
    recognizer = MicronBERTRecognizer

    model: str = "out/pretrain/model"
    """Folder of a pre-trained model (pretrain and demo write one), one of the Hugging Face hub (hf://owner/name), a
    checkpoint of the authors' (a file), or "none" for random weights."""
    preset: Literal["tiny", "base"] = "base"
    """Size of a model of random weights."""
    freeze: Literal["none", "encoder"] = "none"
    """"encoder": train the classifier alone, on features of the unchanged model, computed once."""
    features: Literal["latent", "map"] = "latent"
    """What is pooled of micro-attention between the frames: each patch's latent, or how much it changed, one number.
    With --freeze encoder, of a model that was pre-trained on movement, the map of all patches (--regions 8 of 64-pixel
    faces) is worth more."""
    regions: int = 4
    """Features are pooled over regions × regions parts of the face."""
    from_rest: bool = True
    """Subtract the latent of the onset compared with itself."""
    layer_decay: float = 0.75
    """Factor of the rate from each layer to the one below: classifier, micro-attention, blocks from the last to the
    first, patch embedding."""
    flip: bool = True
    """Mirror half of the pairs."""
    shift: float = 0.03
    """Largest shift of a pair, as a share of its side."""
    brightness: float = 0.1
    """Largest change of a pair's brightness, as a share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layer_decay", "shift", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must lie in [0, 1]")

    @property
    def embeds_once(self) -> bool:
        return self.freeze == "encoder"

    def start(self) -> Start:
        if self.model == "none":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, corpus = MicronBERT(preset(self.preset)).eval(), Corpus(())
        else:
            model = load_model(self.model)
            corpus = Corpus(SEEN) if Path(self.model).is_file() else Corpus.read(self.model)
        return start_from(model, corpus, self.model)

    def clip_input(self, start: Start) -> OnsetApex:
        return OnsetApex(_backbone(start).config.image_size)

    def build(self, start: Start, classes: Sequence[str], *, seed: int) -> MicronBERTRecognizer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MicronBERTRecognizer.from_pretrained_backbone(
                _backbone(start),
                classes,
                features=self.features,
                regions=self.regions,
                from_rest=self.from_rest,
            )

    def learn(
        self, recognizer: Recognizer, train: Examples, seed: int, on_epoch: Callable[[int], object]
    ) -> None:
        assert isinstance(recognizer, MicronBERTRecognizer)
        recognizer.backbone.requires_grad_(not self.embeds_once)
        super().learn(recognizer, train, seed, on_epoch)

    def groups(self, recognizer: Recognizer) -> list[dict[str, Any]]:
        """A group for the matrices of each layer, and one for the rest, with the rate of the layer."""
        named, groups = dict(recognizer.named_parameters()), []
        for below, names in enumerate(recognizer.layers_from_the_top()):
            trained = [named[name] for name in names if named[name].requires_grad]
            for is_matrix in (True, False):
                if parameters := [p for p in trained if (p.dim() == 2) == is_matrix]:
                    decay = self.weight_decay if is_matrix else 0.0
                    rate = self.learning_rate * self.layer_decay**below
                    groups.append({"params": parameters, "rate": rate, "weight_decay": decay})
        return groups

    def augment(self, recognizer: Recognizer, values: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(recognizer, MicronBERTRecognizer)
        return augment(recognizer.backbone, values, self, generator)

    def settings(self) -> dict[str, Any]:
        settings = asdict(self)
        for name in ("model", "preset"):  # of the start
            del settings[name]
        return settings


def start_from(model: MicronBERT, corpus: Corpus, name: str = "") -> Start:
    """A start from a pre-trained model at hand."""
    return Start(model, corpus, {"pre-trained model": name, "model": asdict(model.config)})


def _backbone(start: Start) -> MicronBERT:
    if not isinstance(start.weights, MicronBERT):
        raise TypeError(f"start.weights is a {type(start.weights).__name__}; μ-BERT starts from a MicronBERT")
    return start.weights


def augment(
    backbone: MicronBERT, pairs: Tensor, recipe: MicronBERTRecipe, generator: torch.Generator
) -> Tensor:
    """Pairs (B, 2, 3, S, S), uint8, normalised; mirrored, shifted and brightened, both frames of a pair alike."""
    count, side = len(pairs), pairs.shape[-1]
    if recipe.flip:
        mirrored = torch.rand(count, generator=generator, device="cpu") < 0.5
        pairs = torch.where(mirrored.to(pairs.device)[:, None, None, None, None], pairs.flip(-1), pairs)
    reach = int(recipe.shift * side)
    frames = pairs.flatten(1, 2).float()
    if reach:
        padded = F.pad(frames, (reach,) * 4, mode="replicate")
        starts = torch.randint(2 * reach + 1, (count, 2), generator=generator, device="cpu").tolist()
        frames = torch.stack(
            [x[:, r : r + side, c : c + side] for x, (r, c) in zip(padded, starts, strict=True)]
        )
    gain = 1 + recipe.brightness * (2 * torch.rand(count, generator=generator, device="cpu") - 1)
    frames = (frames * gain.to(frames.device)[:, None, None, None]).clamp(0, 255).unflatten(1, (2, 3))
    return (frames / 255 - backbone.mean[:, None, None]) / backbone.std[:, None, None]
