"""Measures of what a model has learned: of micro-attention without labels, and of recognition."""

from .metrics import Score, score
from .predictions import LEAKY, Prediction, Predictions, read_predictions, write_predictions
from .protocols import Fold, cde, check_census, check_fold, hde, inner_split, loso
from .swaps import auroc, swap_auroc

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
