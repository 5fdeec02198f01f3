"""After LightmanNet: a recognizer that learns to adapt, with macro-expressions as an auxiliary task.

LightmanNet (Wang et al., 2024, arXiv 2404.12024) is known from its abstract: two branches, recognition of
micro-expressions and alignment with macro-expressions, and learning in two levels. The form is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.clips.inputs import ClipInput
from ..training.device_input import autocast
from .alignment import Contrastive
from .base import Examples, MacroExamples, Recipe, Recognizer, Start, name_of
from .fitting import Fitting, class_weights
from .meta import (
    LAST_LAYERS,
    Branches,
    Parameters,
    Subjects,
    adapted,
    descend,
    gradients_of,
    has_diverged,
    tasks_of_epoch,
)
from .micron_bert import MicronBERTRecipe, MicronBERTRecognizer
from .slstt import SLSTTRecipe, SLSTTRecognizer

#: Epochs in a row in which the auxiliary gradient pointed against the primary one before that is said.
PATIENCE = 3
HARMS = (
    f"lightman: for {PATIENCE} epochs the gradients of the auxiliary loss pointed against those of the primary one "
    "(their cosine stayed below 0), so the auxiliary task harms; take a smaller --align-weight, or leave --macro out"
)
#: Inner rates are the exponentials of what the optimiser moves, this much faster than weights.
RATE_OF_RATES = 10.0


@dataclass
class LightmanRecipe(Recipe):
    """After LightmanNet (Wang et al., 2024; known from its abstract, the form is ours): another recognizer, trained in
    two levels. Inner steps adapt it to clips of one subject, with an auxiliary loss that aligns them with
    macro-expressions; the outer step takes it to where such steps help on other clips of that subject. The settings of
    the recognizer that it wraps are its own too."""

    name: ClassVar[str] = "lightman"
    recognizer: ClassVar[type[Recognizer]] = MicronBERTRecognizer

    wrapped: MicronBERTRecipe = field(default_factory=MicronBERTRecipe)
    macro: Path | None = None
    """Clips of macro-expressions to align with, by emotion; without them there is no auxiliary loss."""
    align_weight: float = 0.5
    """λ of the auxiliary loss, beside the primary one."""
    inner_steps: int = 1
    """Of a task, on the classifier and the last block; 0 leaves one level, in which both losses are summed: as good on
    look-alikes, at two thirds of the time."""
    inner_rate: float = 1e-2
    """What α of the inner steps starts from; it is learned, one for each layer (Meta-SGD)."""
    order: Literal["first", "second"] = "second"
    """second: the outer gradient goes through the inner steps (MAML), better on look-alikes; first: it takes their
    gradients as given, in two thirds of the time."""
    task_clips: int = 16
    """Most clips of a task, half of them for the inner steps and half for the loss after them. A step has tasks of
    about --batch-size clips."""

    def __post_init__(self) -> None:
        if self.wrapped.embeds_once:
            raise ValueError(
                f"{name_of(self)} trains the features of {name_of(self.wrapped)}, which are frozen: give --freeze none"
            )
        if self.wrapped.balance == "sampling":
            raise ValueError(
                "balance='sampling'; lightman draws clips by subject: give --balance loss, or off"
            )
        if not 0 <= self.inner_steps <= 5:
            raise ValueError(f"inner_steps={self.inner_steps}; it must lie in [0, 5]")
        if self.task_clips < 3:
            raise ValueError(
                f"task_clips={self.task_clips}; it must be at least 3, since three clips cannot be shared out by two"
            )
        for name in ("inner_rate", "align_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; it must be positive and finite")

    @property
    def epochs(self) -> int:
        """Of the training."""
        return self.wrapped.epochs

    @property
    def inference_precision(self) -> Literal["auto", "fp32", "bf16"]:
        return self.wrapped.inference_precision

    @property
    def ordinary(self) -> Recipe:
        return self.wrapped

    def start(self) -> Start:
        return self.wrapped.start()

    def clip_input(self, start: Start) -> ClipInput:
        return self.wrapped.clip_input(start)

    def build(self, start: Start, classes: Sequence[str], *, seed: int) -> Recognizer:
        recognizer = self.wrapped.build(start, classes, seed=seed)
        recognizer.config.recognizer = name_of(self)
        return recognizer

    def remarks(self, train: Examples) -> list[str]:
        lines = []
        if joined := Subjects.of(train.subjects).joined:
            lines.append(
                f"lightman: {joined} of {len(set(train.subjects))} subjects share one task, since a subject with one "
                "clip cannot make one"
            )
        if train.macro is None:
            lines.append("lightman: no clips of macro-expressions (--macro), so the auxiliary loss is off")
        return lines

    def learn(
        self, recognizer: Recognizer, train: Examples, seed: int, on_epoch: Callable[[int], object]
    ) -> None:
        device = recognizer.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # of the auxiliary branch's weights, and of dropout
            training = BiLevel(self, recognizer, train, torch.Generator().manual_seed(seed))
            for epoch in range(1, self.epochs + 1):
                recognizer.history.append(training.epoch(epoch))
                recognizer.eval()
                on_epoch(epoch)
        recognizer.config.inner_rates = training.rates()
        cosines = [measured.get("gradient cosine", 0.0) for measured in recognizer.history]
        if any(max(cosines[i : i + PATIENCE]) < 0 for i in range(len(cosines) - PATIENCE + 1)):
            warnings.warn(HARMS, stacklevel=2)

    def adapt(self, recognizer: Recognizer, few: Examples, *, steps: int, seed: int) -> Recognizer:
        """Its inner steps, with the rates that it was trained with, on the primary loss alone."""
        rates = recognizer.config.inner_rates
        if not rates:
            raise ValueError(f"the recognizer has no inner rates: {name_of(self)} did not train it")
        return adapted(recognizer, few, rates, steps=steps, precision=self.wrapped.precision)

    def settings(self) -> dict[str, Any]:
        own = {name: value for name, value in asdict(self).items() if name not in ("wrapped", "macro")}
        return {**own, **self.wrapped.settings()}


@dataclass
class LightmanOverSLSTT(LightmanRecipe):
    """As lightman, over SLSTT whose spatial encoder is trained."""

    name: ClassVar[str] = "lightman-slstt"
    recognizer = SLSTTRecognizer

    wrapped: SLSTTRecipe = field(  # type: ignore[assignment]
        default_factory=lambda: SLSTTRecipe(
            preset="tiny", freeze="none", optimizer="adamw", learning_rate=3e-4
        )
    )


class BiLevel:
    """The training of one recognizer, an outer step at a time."""

    def __init__(
        self, recipe: LightmanRecipe, recognizer: Recognizer, train: Examples, generator: torch.Generator
    ):
        self.recipe, self.recognizer, self.train, self.generator = recipe, recognizer, train, generator
        self.wrapped: Fitting = recipe.wrapped
        self.device, self.branches = recognizer.device, Branches(recognizer)
        self.subjects = Subjects.of(train.subjects)
        self.trained = {name: p for name, p in recognizer.named_parameters() if p.requires_grad}
        self.layers = recognizer.layers_from_the_top()
        self.log_rates = torch.full((LAST_LAYERS,), math.log(recipe.inner_rate), device=self.device)
        self.weights = None
        if self.wrapped.balance == "loss":
            self.weights = class_weights(train.labels, len(recognizer.classes)).to(self.device)
        self.alignment = self._alignment(train.macro)
        self.optimizer = self.wrapped.optimizer_of(recognizer)
        rate = self.wrapped.learning_rate
        self.beside = [] if self.alignment is None else list(self.alignment.parameters())
        if self.beside:
            self.optimizer.add_param_group({"params": self.beside, "rate": rate, "weight_decay": 0.0})
        self._branch: dict[str, Any] = {
            "weight": recipe.align_weight, "beside": self.beside, "shared": self.trained.keys() - set(self.layers[0])
        }  # fmt: skip
        if recipe.inner_steps:
            self.log_rates.requires_grad_()
            self.optimizer.add_param_group(
                {"params": [self.log_rates], "rate": rate * RATE_OF_RATES, "weight_decay": 0.0}
            )
        tasks = len(self._tasks(torch.Generator()))
        self.tasks_a_step = max(1, round(self.wrapped.batch_size * tasks / len(train.labels)))
        self.steps, self.step_number = self.recipe.epochs * -(-tasks // self.tasks_a_step), 0

    def _alignment(self, macro: MacroExamples | None) -> Contrastive | None:
        if macro is None:
            return None
        if not len(macro.labels):
            raise ValueError("there is no clip of a macro-expression; give others, or leave --macro out")
        with torch.no_grad():
            features = self.recognizer.embed(macro.values[:1].to(self.device)).shape[1]
        return Contrastive(features).to(self.device)

    def _tasks(self, generator: torch.Generator) -> list[tuple[str, list[int], list[int]]]:
        return tasks_of_epoch(self.subjects, self.train.labels, self.recipe.task_clips, generator)

    def rates(self) -> tuple[float, ...]:
        """α of each layer that inner steps change, from the classifier down."""
        return tuple(self.log_rates.detach().exp().tolist())

    def epoch(self, number: int) -> dict[str, float]:
        """A pass over all clips; what it measured, means over its steps."""
        self.recognizer.train()
        tasks, measured = self._tasks(self.generator), []
        for first in range(0, len(tasks), self.tasks_a_step):
            measured.append(self.step(tasks[first : first + self.tasks_a_step], number))
        return {
            name: float(torch.stack([m[name] for m in measured if name in m]).mean()) for name in measured[0]
        }

    def step(self, tasks: Sequence[tuple[str, list[int], list[int]]], epoch: int) -> dict[str, Tensor]:
        """An outer step: its gradient is the mean over tasks."""
        factor = self.wrapped.schedule(self.step_number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        learn = self._two_levels if self.recipe.inner_steps else self._one_level
        measured = [learn(support, query, len(tasks)) for _, support, query in tasks]
        self._check([name for name, *_ in tasks], measured, epoch)
        if self.wrapped.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.wrapped.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return {name: torch.stack([m[name] for m in measured]).mean() for name in measured[0]}

    def _two_levels(self, support: list[int], query: list[int], tasks: int) -> dict[str, Tensor]:
        """Add the gradients of both losses on the support side, and of the query loss after inner steps there."""
        second_order = self.recipe.order == "second"
        with _twice_differentiable(self.device) if second_order else nullcontext():
            of_layer = zip(self.log_rates.exp(), self.layers, strict=False)
            rates = {name: rate for rate, names in of_layer for name in names if name in self.trained}
            moved, taken = descend(
                self._losses(support), self.trained, rates,
                steps=self.recipe.inner_steps, second_order=second_order, **self._branch,
            )  # fmt: skip
            values, labels = self._clips(query)
            logits, _ = self._forward(moved, values, len(labels))
            loss = self._cross_entropy(logits, labels)
            (loss / tasks).backward(inputs=[*self.trained.values(), self.log_rates])
        _add(taken[0].joint, self.trained.values(), tasks)
        _add(taken[0].beside, self.beside, tasks)
        before = taken[0].measured
        return {"query loss": loss.detach(), "support loss": before["loss"]} | {
            name: value for name, value in before.items() if name != "loss"
        }

    def _one_level(self, support: list[int], query: list[int], tasks: int) -> dict[str, Tensor]:
        """Add the gradient of both losses on all clips of a task."""
        primary, auxiliary = self._losses([*support, *query])({})
        found = gradients_of(primary, auxiliary, self.trained, **self._branch)
        _add(found.joint, self.trained.values(), tasks)
        _add(found.beside, self.beside, tasks)
        return found.measured

    def _losses(self, chosen: list[int]) -> Callable[[Parameters], tuple[Tensor, Tensor | None]]:
        """Primary and auxiliary loss of some clips, the latter beside as many macro clips."""
        micro, labels = self._clips(chosen)
        if self.train.macro is None or self.alignment is None:
            return lambda at: (self._cross_entropy(self._forward(at, micro, len(micro))[0], labels), None)
        alignment, drawn = self.alignment, self._draw_macro(self.train.macro, len(chosen))
        values = torch.cat([micro, self._augmented(self.train.macro.values[drawn])])
        macro_labels = self.train.macro.labels[drawn].to(self.device)

        def losses(at: Parameters) -> tuple[Tensor, Tensor]:
            logits, features = self._forward(at, values, len(micro))
            of_micro, of_macro = features.float().tensor_split([len(micro)])
            return self._cross_entropy(logits, labels), alignment(of_micro, labels, of_macro, macro_labels)

        return losses

    def _forward(self, at: Parameters, values: Tensor, labelled: int) -> tuple[Tensor, Tensor]:
        with autocast(self.wrapped.precision, self.device):
            return self.branches.at(at, values, labelled)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over clips, each with the weight of its class: the weights' mean over the training clips is 1."""
        smoothing = self.wrapped.label_smoothing
        losses = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
        return (losses if self.weights is None else losses * self.weights[labels]).mean()

    def _clips(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        return self._augmented(self.train.values[chosen]), self.train.labels[chosen].to(self.device)

    def _augmented(self, values: Tensor) -> Tensor:
        return self.wrapped.augment(self.recognizer, values.to(self.device), self.generator)

    def _draw_macro(self, macro: MacroExamples, count: int) -> list[int]:
        """One clip of each class, and others until there are as many as ``count``, each class as often as another."""
        chances = class_weights(macro.labels, len(self.recognizer.classes))[macro.labels]
        of_class = [(macro.labels == label).nonzero()[:, 0] for label in macro.labels.unique()]
        first = [
            int(of[torch.randint(len(of), (), generator=self.generator, device="cpu")]) for of in of_class
        ]
        more = max(0, count - len(first))
        drawn = (
            torch.multinomial(chances, more, replacement=True, generator=self.generator)
            if more
            else chances[:0]
        )
        return [*first, *map(int, drawn.tolist())]

    def _check(self, names: Sequence[str], measured: Sequence[dict[str, Tensor]], epoch: int) -> None:
        """Stop at a loss that no working recognizer has."""
        for name in measured[0].keys() - {"gradient cosine"}:
            losses = torch.stack([m[name] for m in measured])
            astray = has_diverged(losses, len(self.recognizer.classes)).nonzero()[:, 0].tolist()
            for i in astray[:1]:
                raise ValueError(
                    f"the training diverges at step {self.step_number + 1} (epoch {epoch}), task {names[i]}: the "
                    f"{name} is {float(losses[i]):g}, with inner rates of up to {max(self.rates()):g}; take a smaller "
                    "--inner-rate, or --learning-rate"
                )


def _add(gradients: Iterable[Tensor], parameters: Iterable[Tensor], tasks: int) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        gradient = gradient.detach() / tasks
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _twice_differentiable(device: torch.device) -> AbstractContextManager[object]:
    """Attention and recurrence by kernels whose gradients have gradients."""
    stack = ExitStack()
    if device.type == "cuda":  # on a CPU the project's own attention is
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    return stack
