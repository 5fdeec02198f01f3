"""Learning in two levels: inner steps that adapt a recognizer to a task, and what an outer step needs of them.

A task has a support side S and a query side Q of other clips. With primary loss p, auxiliary loss a and its weight λ,

    θ' = θ − α ∇_θ [p_S(θ) + λ a_S(θ)]        once or more, of some layers
    θ ← θ − β ∇_θ [p_S(θ) + λ a_S(θ) + p_Q(θ')]

The gradient through the inner steps is MAML's (Finn, Abbeel, Levine, ICML 2017); without the derivative of the inner
gradient it is MAML's first-order form. The loss of the support side beside it is that of MLDG (Li, Yang, Song,
Hospedales, AAAI 2018): what is tested as it is must be good as it is, and the auxiliary task shapes θ. A rate α for
each layer, learned by the same outer gradient, is Meta-SGD (Li, Zhou, Chen, Li, 2017) with one number a layer in place
of one a weight, as in MAML++ (Antoniou et al., ICLR 2019).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.device_input import autocast
from .base import Examples, Recognizer

Parameters = dict[str, Tensor]
#: Layers that an inner step changes: the classifier and the last block.
LAST_LAYERS = 2
#: A mean cross-entropy of as many times what guessing costs is of a step that went astray, not of a hard clip.
DIVERGED = 100


class Branches(nn.Module):
    """A recognizer that gives logits and features at once: ``torch.func.functional_call`` calls ``forward`` alone."""

    def __init__(self, recognizer: Recognizer):
        super().__init__()
        self.recognizer = recognizer

    def forward(self, values: Tensor, labelled: int, embedded: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (labelled, C) of the first clips and features (B, F) of all: of (B, …), or (B, F) if embedded."""
        features = values if embedded else self.recognizer.embed(values)
        return self.recognizer.classify(features[:labelled]), features

    def at(
        self, parameters: Parameters, values: Tensor, labelled: int, embedded: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same with other parameters, by their names in the recognizer."""
        named = {f"recognizer.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(self, named, (values, labelled, embedded))


class Gradients(NamedTuple):
    """Of p + λ a, and what is told of the two apart."""

    joint: list[Tensor]
    """∇p + λ ∇a, for each parameter."""
    beside: list[Tensor]
    """∇a for the parameters that it alone has."""
    measured: dict[str, Tensor]
    """Primary and auxiliary loss, and the cosine between their gradients over the shared layers, if there are any."""


def cosine_of(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Cosine of the angle between two gradients; 0 where one of them is."""
    x, y = (torch.cat([g.detach().flatten().float() for g in gradients]) for gradients in (first, second))
    return F.cosine_similarity(x, y, dim=0)


def gradients_of(
    primary: Tensor,
    auxiliary: Tensor | None,
    parameters: Mapping[str, Tensor],
    *,
    weight: float = 0.0,
    beside: Sequence[Tensor] = (),
    shared: Set[str] = frozenset(),
    create_graph: bool = False,
) -> Gradients:
    """∇[p + λ a] of parameters, as of two losses apart, since their cosine is wanted.

    Args:
        primary, auxiliary: p and a; the latter may be None.
        parameters: θ, by name.
        weight: λ.
        beside: parameters that the auxiliary loss alone has.
        shared: names of the parameters that both losses reach, of which the cosine is.
        create_graph: so that the gradients can be differentiated.
    """
    values, measured = list(parameters.values()), {"loss": primary.detach()}
    of_primary = torch.autograd.grad(
        primary, values, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )
    if auxiliary is None:
        return Gradients(list(of_primary), [], measured)
    of_auxiliary = torch.autograd.grad(
        auxiliary, [*values, *beside], create_graph=create_graph, materialize_grads=True
    )
    of_beside = [g.detach() for g in of_auxiliary[len(values) :]]
    pairs = list(zip(of_primary, of_auxiliary, strict=False))
    both = [pair for name, pair in zip(parameters, pairs, strict=True) if name in shared]
    measured["auxiliary loss"] = auxiliary.detach()
    if both:
        measured["gradient cosine"] = cosine_of([g for g, _ in both], [a for _, a in both])
    return Gradients([g + weight * a for g, a in pairs], of_beside, measured)


def descend(
    losses: Callable[[Parameters], tuple[Tensor, Tensor | None]],
    parameters: Mapping[str, Tensor],
    rates: Mapping[str, Tensor | float],
    *,
    steps: int,
    second_order: bool = False,
    **branch: Any,
) -> tuple[Parameters, list[Gradients]]:
    """Inner steps θ' = θ − α ∇[p + λ a]: θ', and the gradients of each step.

    Args:
        losses: p and a at parameters.
        parameters: θ, by name. The gradients of the first step are of all of them.
        rates: α of those that move; the gradients of later steps are of these.
        steps: how many.
        second_order: keep the graph of the inner gradients, so that θ' can be differentiated through them.
        branch: of :func:`gradients_of`.
    """
    current, taken = dict(parameters), []
    for step in range(steps):
        of = {name: current[name] for name in rates} if step else current
        found = gradients_of(*losses(current), of, create_graph=second_order, **branch)
        gradients = dict(zip(of, found.joint, strict=True))
        current |= {name: current[name] - rate * gradients[name] for name, rate in rates.items()}
        taken.append(found)
    return current, taken


def has_diverged(losses: Tensor, classes: int) -> Tensor:
    """Which cross-entropies are not finite, or beyond ``DIVERGED`` times what guessing costs."""
    return ~(losses <= DIVERGED * math.log(classes))


def adapted(
    recognizer: Recognizer, few: Examples, rates: Sequence[float], *, steps: int, precision: str
) -> Recognizer:
    """A copy after inner steps on the mean cross-entropy of a few labelled clips, in evaluation mode.

    Args:
        recognizer: it is not changed.
        few: the clips.
        rates: α of each of its layers, from the classifier down; the layers below stay as they are.
        steps: how many.
        precision: of the forward passes.

    Raises:
        ValueError: there is no clip, ``steps`` is negative, or a step diverges.
    """
    if not len(few.labels):
        raise ValueError("there is no labelled clip to adapt to; give at least one")
    if steps < 0:
        raise ValueError(f"steps={steps}; it must be at least 0")
    found = copy.deepcopy(recognizer).eval()
    named = dict(found.named_parameters())
    layers = zip(rates, found.layers_from_the_top(), strict=False)
    rate_of = {name: rate for rate, names in layers for name in names if named[name].requires_grad}
    parameters = {name: named[name] for name in rate_of}
    values, labels = few.values[:].to(found.device), few.labels.to(found.device)
    branches = Branches(found)

    def losses(at: Parameters) -> tuple[Tensor, None]:
        with autocast(precision, found.device):
            logits, _ = branches.at(at, values, len(labels), few.embedded)
        return F.cross_entropy(logits.float(), labels), None

    moved, taken = descend(losses, parameters, rate_of, steps=steps)
    with torch.no_grad():
        after = [*(gradients.measured["loss"] for gradients in taken), losses(moved)[0]]
        for step, diverged in enumerate(has_diverged(torch.stack(after), len(found.classes)).tolist()):
            if diverged:
                raise ValueError(
                    f"adaptation diverges: after step {step} of {steps}, with rates of up to {max(rates):g}, the loss "
                    f"of the {len(labels)} labelled clips is {float(after[step]):g}; take a smaller rate or fewer steps"
                )
        for name, p in parameters.items():
            p.copy_(moved[name])
    return found


class Subjects(NamedTuple):
    """The clips of each subject, as positions; a subject who has too few for two sides is joined with others."""

    clips: dict[str, list[int]]
    """By the subjects' names."""
    joined: int
    """Subjects who share a task with others."""

    @classmethod
    def of(cls, subjects: Sequence[str]) -> Subjects:
        """Raises ValueError if there are not two clips in all."""
        clips: dict[str, list[int]] = {}
        for i, subject in enumerate(subjects):
            clips.setdefault(subject, []).append(i)
        if len(subjects) < 2:
            raise ValueError(
                f"{len(subjects)} clips; a task needs two, one to learn from and one to be tested on"
            )
        single = [subject for subject, found in clips.items() if len(found) < 2]
        if len(single) == 1:  # with whom has fewest
            single.append(min((s for s in clips if s != single[0]), key=lambda s: len(clips[s])))
        if single:
            clips[" and ".join(single)] = [i for subject in single for i in clips.pop(subject)]
        return cls(clips, len(single))


def tasks_of_epoch(
    subjects: Subjects, labels: Tensor, most: int, generator: torch.Generator
) -> list[tuple[str, list[int], list[int]]]:
    """Every clip once, as tasks (subject, support, query) in random order: one a subject, or several of at most
    ``most`` clips, classes spread evenly over them and over both sides."""

    def shuffled(n: int) -> list[int]:
        return torch.randperm(n, generator=generator, device="cpu").tolist()

    tasks = []
    for subject, clips in subjects.clips.items():
        of_class: dict[int, list[int]] = {}
        for i in (clips[j] for j in shuffled(len(clips))):
            of_class.setdefault(int(labels[i]), []).append(i)
        places = {i: (k + 0.5) / len(of) for of in of_class.values() for k, i in enumerate(of)}
        order = torch.tensor(sorted(places, key=lambda i: places[i]))  # [n], each class evenly spread
        for part in order.tensor_split(-(-len(order) // most)):
            by_class = sorted(part.tolist(), key=lambda i: int(labels[i]))
            first = shuffled(2)[0]  # at random, so that no class is on one side alone throughout
            tasks.append((subject, by_class[first::2], by_class[1 - first :: 2]))
    return [tasks[i] for i in shuffled(len(tasks))]
