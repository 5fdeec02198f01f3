"""Measures of what a model has learned."""

from .swap_auroc import auroc, swap_auroc

__all__ = ["auroc", "swap_auroc"]
