"""Class schemes: which class each emotion of a dataset counts as, and which emotions are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .expressions import Expression, same_emotion


@dataclass(frozen=True)
class Scheme:
    """Classes and what they are made of.

    Attributes:
        name: key of ``SCHEMES``.
        classes: in the order of a confusion matrix.
        emotions: of each dataset, the emotions of each class; those that are not named are left out.
    """

    name: str
    classes: tuple[str, ...]
    emotions: Mapping[str, Mapping[str, Sequence[str]]]

    def class_of(self, dataset: str, emotion: str) -> str | None:
        """None if it is left out."""
        for name, emotions in self.emotions.get(dataset, {}).items():
            if emotion in emotions:
                return name
        return None

    def class_named(self, emotion: str) -> str | None:
        """What an emotion of no dataset of the scheme counts as: what it does in any of them, however it is spelled."""
        for of_dataset in self.emotions.values():
            for name, emotions in of_dataset.items():
                if any(same_emotion(emotion, known) for known in (name, *emotions)):
                    return name
        return None


def _as_they_are(name: str, dataset: str, classes: tuple[str, ...]) -> Scheme:
    return Scheme(name, classes, {dataset: {emotion: (emotion,) for emotion in classes}})


# A composite's expressions carry the class as their emotion, so each class is also made of itself.
_MEGC: dict[str, dict[str, Sequence[str]]] = {
    "casme2": {
        "negative": ("negative", "disgust", "repression"),
        "positive": ("positive", "happiness"),
        "surprise": ("surprise",),
    },
    "samm": {
        "negative": ("negative", "anger", "contempt", "disgust", "fear", "sadness"),
        "positive": ("positive", "happiness"),
        "surprise": ("surprise",),
    },
    "smic": {"negative": ("negative",), "positive": ("positive",), "surprise": ("surprise",)},
}
_CASME3: dict[str, Sequence[str]] = {
    "negative": ("disgust", "fear", "anger", "sad"),
    "positive": ("happy",),
    "surprise": ("surprise",),
}

#: "3" is that of the Micro-Expression Grand Challenge 2019; the others are named by dataset and number of classes.
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("3", ("negative", "positive", "surprise"), _MEGC),
        _as_they_are("casme2-5", "casme2", ("happiness", "disgust", "repression", "surprise", "others")),
        _as_they_are("samm-5", "samm", ("anger", "contempt", "happiness", "surprise", "other")),
        Scheme("casme3-3", ("negative", "positive", "surprise"), {"casme3": _CASME3}),
        Scheme(
            "casme3-4",
            ("negative", "positive", "surprise", "others"),
            {"casme3": _CASME3 | {"others": ("others",)}},
        ),
        _as_they_are(
            "casme3-7", "casme3", ("disgust", "surprise", "others", "fear", "anger", "sad", "happy")
        ),
    )
}


class Labelled(NamedTuple):
    """Expressions with their classes, and what the scheme leaves out."""

    expressions: list[Expression]
    labels: list[str]
    """The class of each expression."""
    dropped: Counter[tuple[str, str]]
    """Expressions left out by (dataset, emotion)."""

    def describe(self, scheme: str) -> str:
        """The counts that belong beside every score."""
        counts = Counter(self.labels)
        classes = ", ".join(f"{name} {counts[name]}" for name in SCHEMES[scheme].classes)
        subjects = len({expression.subject for expression in self.expressions})
        dropped = ", ".join(f"{emotion} of {dataset} {n}" for (dataset, emotion), n in self.dropped.items())
        return (
            f"scheme {scheme}: {len(self.labels)} clips of {subjects} subjects ({classes}); left out: "
            f"{dropped or 'none'}"
        )


def label(expressions: Sequence[Expression], scheme: str) -> Labelled:
    """The class of each expression by a scheme.

    Args:
        expressions: of one or several datasets.
        scheme: a key of ``SCHEMES``.

    Raises:
        ValueError: there is no such scheme, or it leaves out every expression.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is none of {', '.join(SCHEMES)}")
    labelled = Labelled([], [], Counter())
    for expression in expressions:
        name = SCHEMES[scheme].class_of(expression.dataset, expression.emotion)
        if name is None:
            labelled.dropped[expression.dataset, expression.emotion] += 1
        else:
            labelled.expressions.append(expression)
            labelled.labels.append(name)
    if not labelled.labels:
        datasets = ", ".join(sorted({expression.dataset for expression in expressions})) or "no dataset"
        raise ValueError(
            f"scheme {scheme!r} has no class for any of {len(expressions)} expressions of {datasets}; it is for "
            f"{', '.join(SCHEMES[scheme].emotions)}"
        )
    return labelled
