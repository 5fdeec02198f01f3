"""Measures of what a model has learned: of micro-attention without labels, and of recognition."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .metrics import Score, score
    from .predictions import LEAKY, Prediction, Predictions, read_predictions, write_predictions
    from .protocols import Fold, cde, check_census, check_fold, hde, inner_split, loso
    from .swaps import auroc, swap_auroc

_HOMES = {
    "Fold": "protocols",
    "LEAKY": "predictions",
    "Prediction": "predictions",
    "Predictions": "predictions",
    "Score": "metrics",
    "auroc": "swaps",
    "cde": "protocols",
    "check_census": "protocols",
    "check_fold": "protocols",
    "hde": "protocols",
    "inner_split": "protocols",
    "loso": "protocols",
    "read_predictions": "predictions",
    "score": "metrics",
    "swap_auroc": "swaps",
    "write_predictions": "predictions",
}

__all__ = [
    "LEAKY",
    "Fold",
    "Prediction",
    "Predictions",
    "Score",
    "auroc",
    "cde",
    "check_census",
    "check_fold",
    "hde",
    "inner_split",
    "loso",
    "read_predictions",
    "score",
    "swap_auroc",
    "write_predictions",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
