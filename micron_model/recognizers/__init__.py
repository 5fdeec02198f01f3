"""Recognizers of micro-expressions, a module each, and what all of them are: ``base``."""

from .base import Examples, Recipe, Recognizer, RecognizerConfig, Start, name_of, recipe_class
from .fitting import Fitting, fit_by_gradient

__all__ = [
    "Examples",
    "Fitting",
    "Recipe",
    "Recognizer",
    "RecognizerConfig",
    "Start",
    "fit_by_gradient",
    "name_of",
    "recipe_class",
]
