"""The seam between what is evaluated and how: a recipe builds and trains recognizers, a recognizer is one of them.

Evaluation, fine-tuning and prediction know nothing of a system but what stands here.
"""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..data.clips.inputs import ClipInput, Values, take
from ..data.databases.corpus import Corpus
from ..saved_model import SavedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data.clips.faces import Box

#: Where the recipe of each built-in name is; imported when it is asked for.
BUILT_IN = {
    "micron-bert": "micron_model.recognizers.micron_bert:MicronBERTRecipe",
    "flow": "micron_model.recognizers.flow:FlowRecipe",
    "slstt": "micron_model.recognizers.slstt:SLSTTRecipe",
    "lightman": "micron_model.recognizers.lightman:LightmanRecipe",
    "lightman-slstt": "micron_model.recognizers.lightman:LightmanOverSLSTT",
}


class MacroExamples(NamedTuple):
    """Clips of macro-expressions, the same emotions at their full width, to learn from beside micro-expressions."""

    values: Values
    """(n, …): what the recognizer's input encodes."""
    labels: Tensor
    """(n,) int64, positions in the recognizer's classes."""
    subjects: Sequence[str]
    """None of them is tested."""


class Examples(NamedTuple):
    """Clips to learn from."""

    values: Values
    """(n, …): what the recognizer's input encodes; or, if ``embedded``, features (n, F)."""
    labels: Tensor
    """(n,) int64, positions in the recognizer's classes."""
    subjects: Sequence[str]
    embedded: bool = False
    """Whether the values are what :meth:`Recognizer.embed` gave."""
    macro: MacroExamples | None = None
    """Beside them; only where :attr:`Recipe.macro` asks for them."""

    def at(self, chosen: Sequence[int]) -> Examples:
        """Some of them, beside the same macro-expressions."""
        subjects = [self.subjects[i] for i in chosen]
        values, labels = take(self.values, chosen), self.labels[list(chosen)]
        return self._replace(values=values, labels=labels, subjects=subjects)


class Start(NamedTuple):
    """What every fold starts from. It is never changed."""

    weights: nn.Module | None = None
    corpus: Corpus = Corpus(())
    """Whom the weights have seen."""
    about: Mapping[str, Any] = {}
    """What a report says of it."""


@dataclass
class RecognizerConfig:
    """What is saved of any recognizer beside its weights; a kind adds its own."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    recognizer: str = ""
    """Name of the recipe that builds it: a built-in one, or package.module:Recipe."""
    trained_on: str = ""
    """What the classifier has seen, for those who use it."""
    inner_rates: tuple[float, ...] = ()
    """Rates of the steps that adapt it to a person, by layer from the classifier down; of a recognizer that was trained
    to be adapted."""

    def __post_init__(self) -> None:
        self.classes, self.inner_rates = tuple(self.classes), tuple(self.inner_rates)  # JSON knows lists only
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(f"classes={self.classes}; at least 2 different names are needed")


class Recognizer(
    SavedModel,
    library_name="micron-kernels",
    tags=["micro-expression"],
    license="mit",
):
    """One fitted network: ``forward(values) = classify(embed(values))``. Its one argument is its settings."""

    config: RecognizerConfig
    picture_note: ClassVar[str] = ""
    """What :meth:`picture` shows, in a sentence."""

    def __init__(self, config: RecognizerConfig):
        super().__init__()
        self.config = config
        self.history: list[dict[str, float]] = []
        """What its training measured, by name, an entry an epoch."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.config.classes

    @property
    def clip_input(self) -> ClipInput:
        """What it is given of a clip."""
        raise NotImplementedError

    def embed(self, values: Tensor) -> Tensor:
        """Features (B, F) of what the input encodes, (B, …)."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of features (B, F)."""
        raise NotImplementedError

    def forward(self, values: Tensor) -> Tensor:
        """Logits (B, classes) of what the input encodes, (B, …)."""
        return self.classify(self.embed(values))

    def layers_from_the_top(self) -> list[list[str]]:
        """Names of its parameters by layer: those of the classifier, those of the last block below it, and so on down.

        A module each, from the last that was made to the first, unless a recognizer says otherwise.
        """
        layers: dict[str, list[str]] = {}
        for name, _ in reversed(list(self.named_parameters())):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        return list(layers.values())

    def picture(self, values: Tensor, labels: Sequence[str], place: Box | None = None) -> Figure | None:
        """What it sees in clips (n, …), each under its label; None if it has nothing to show.

        Args:
            place: of the face, in pixels of what its input is given; maps are shown inside its outline alone, since
                what lies behind a head moves when the head is held still. None: everywhere.
        """
        return None

    @property
    def device(self) -> torch.device:
        """That of its weights."""
        return next(self.parameters()).device


@dataclass
class Recipe(ABC):
    """Settings from which recognizers are built and trained: a dataclass, whose fields are its options on the command
    line.

    Attributes:
        name: that of ``--recognizer``; of a recipe outside this package, its import path (:func:`name_of`).
        recognizer: the class of what it builds.
        seeded: whether another seed trains another recognizer.
    """

    name: ClassVar[str] = ""
    recognizer: ClassVar[type[Recognizer]]
    seeded: ClassVar[bool] = True

    @property
    def macro(self) -> Path | None:
        """Clips of macro-expressions that it wants to learn from beside the others; None for none."""
        return None

    @property
    def inference_precision(self) -> Literal["auto", "fp32", "bf16"]:
        """Of the forward passes that predict: fp32, bf16 autocast, or (auto) bf16 on a GPU that has it."""
        return "fp32"

    @property
    def embeds_once(self) -> bool:
        """Whether ``embed`` is the same in every fold, since nothing in it is fitted: features are then kept."""
        return False

    def start(self) -> Start:
        """What every fold starts from; nothing, unless a recipe says otherwise.

        Raises:
            FileNotFoundError, ValueError: the weights that the settings name cannot be had.
        """
        return Start()

    @abstractmethod
    def clip_input(self, start: Start) -> ClipInput:
        """What its recognizers are given of a clip."""

    @abstractmethod
    def build(self, start: Start, classes: Sequence[str], *, seed: int) -> Recognizer:
        """A recognizer before it is trained; the same for the same seed."""

    def fit(
        self,
        recognizer: Recognizer,
        train: Examples,
        *,
        seed: int,
        on_epoch: Callable[[int], object] = lambda epoch: None,
    ) -> None:
        """Train a recognizer in place, on the device it is on, and leave it in evaluation mode.

        Args:
            recognizer: from :meth:`build`.
            train: the training side alone; embedded if ``embeds_once``.
            seed: of all that is random.
            on_epoch: to be called after each epoch with its number, from 1 on, in evaluation mode.

        Raises:
            TypeError: the recognizer is another recipe's.
            ValueError: the values are embedded and must not be, or the other way round.
        """
        if not isinstance(recognizer, self.recognizer):
            raise TypeError(
                f"recognizer is a {type(recognizer).__name__}; {name_of(self)} trains a {self.recognizer.__name__}"
            )
        if train.embedded != self.embeds_once:
            wanted = (
                "features (n, F), as embed() gives them" if self.embeds_once else "what its input encodes"
            )
            raise ValueError(
                f"train.embedded={train.embedded}; with embeds_once={self.embeds_once}, {name_of(self)} learns from "
                f"{wanted}"
            )
        self.learn(recognizer, train, seed, on_epoch)

    @abstractmethod
    def learn(
        self, recognizer: Recognizer, train: Examples, seed: int, on_epoch: Callable[[int], object]
    ) -> None:
        """What :meth:`fit` does with arguments that it has checked."""

    def remarks(self, train: Examples) -> list[str]:
        """What a run says of the clips before it learns from them."""
        return []

    def adapt(self, recognizer: Recognizer, few: Examples, *, steps: int, seed: int) -> Recognizer:
        """A copy that a few labelled clips of one person have adapted to that person; another protocol than testing
        it as it is.

        Args:
            recognizer: fitted; it is not changed.
            few: the labelled clips.
            steps: of the gradient, each on all of them.
            seed: of all that is random.

        Returns:
            The copy, in evaluation mode, on the same device.

        Raises:
            ValueError: this recipe cannot, there is no clip, or a step diverges.
        """
        raise ValueError(
            f"{name_of(self)} takes no gradient steps, so labelled clips of a person cannot adapt it; one that is "
            "trained by gradient can be adapted"
        )

    @property
    def ordinary(self) -> Recipe | None:
        """The recipe that trains the same network in the ordinary way, to compare with; None if this one does."""
        return None

    def settings(self) -> dict[str, Any]:
        """What decides the training, beside the start: what a report shows, and what may not change between calls."""
        return asdict(self)


def name_of(recipe: Recipe | type[Recipe]) -> str:
    """The name of a recipe: a built-in one, or ``package.module:Recipe``."""
    kind = recipe if isinstance(recipe, type) else type(recipe)
    module = kind.__module__
    if module == "__main__":  # of a script: the name under which others import it
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    return kind.name or f"{module}:{kind.__qualname__}"


def recipe_class(name: str) -> type[Recipe]:
    """The recipe of that name.

    Args:
        name: a built-in one, or ``package.module:Recipe``, which is imported; the current folder is searched too.

    Raises:
        ValueError: there is none.
    """
    path = BUILT_IN.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ValueError(
            f"recognizer {name!r} is none of {', '.join(BUILT_IN)}; one of your own is named package.module:Recipe"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recognizer {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise ValueError(f"recognizer {name!r} is no subclass of micron_model.recognizers.Recipe")
    return found
