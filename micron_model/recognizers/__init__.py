"""Recognizers of micro-expressions, a module each, and what all of them are: ``base``."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .base import (
        Examples,
        MacroExamples,
        Recipe,
        Recognizer,
        RecognizerConfig,
        Start,
        name_of,
        recipe_class,
    )
    from .fitting import Fitting, fit_by_gradient

_HOMES = {
    "Examples": "base",
    "Fitting": "fitting",
    "MacroExamples": "base",
    "Recipe": "base",
    "Recognizer": "base",
    "RecognizerConfig": "base",
    "Start": "base",
    "fit_by_gradient": "fitting",
    "name_of": "base",
    "recipe_class": "base",
}

__all__ = [
    "Examples",
    "Fitting",
    "MacroExamples",
    "Recipe",
    "Recognizer",
    "RecognizerConfig",
    "Start",
    "fit_by_gradient",
    "name_of",
    "recipe_class",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
