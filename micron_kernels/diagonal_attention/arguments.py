"""What is passed between the operator of diagonal attention and its implementations."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The inputs of a call."""

    query: Tensor  # (B, H, N, E)
    key: Tensor  # (B, H, N, E)
    value: Tensor  # (B, H, N, Ev)
    scale: float
    row_weight: Tensor | None = None  # (B, N) or (B, H, N)
    rows: Tensor | None = None  # (B, K)
    key_mask: Tensor | None = None  # (B, N)

    @property
    def computed(self) -> int:
        """K, how many rows are computed of each head."""
        return self.query.shape[2] if self.rows is None else self.rows.shape[1]


class Saved(NamedTuple):
    """What the forward knows of each row and the backward needs, in the dtype of accumulation."""

    weights: Tensor  # p (B, H, K)
    row_max: Tensor  # (B, H, K); 0 where every key is masked
    row_sum: Tensor  # (B, H, K); 1 where every key is masked
    exponentials: Tensor | None = None  # exp(s_ij − row_max_i) (B, H, K, N), where they were to be kept


class Wanted(NamedTuple):
    """Which gradients are wanted; one that is not is None, and its products are not computed."""

    query: bool = True
    key: bool = True
    value: bool = True
    row_weight: bool = True


class Tangents(NamedTuple):
    """The direction in which the inputs change, of their shapes and dtypes; None for no change."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    row_weight: Tensor | None = None


#: Of query, key, value and row_weight; None where it is not wanted.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

#: The implementations that keep the exponentials where they may; None is one of these on a CPU.
KEEPING = (None, "reference", "native")


def keeps_exponentials(query: Tensor, rows: Tensor | None, impl: str | None) -> bool:
    """Whether the forward keeps the exponentials of the scores for the backward, if a gradient is wanted.

    It does on a CPU where they take no more bytes than query and key hold, so that memory stays O(N·E): for all
    rows, where N ≤ 2·E, or N ≤ E for the halves, whose exponentials are fp32. Of one key there is nothing to keep.
    """
    if not query.is_cpu or impl not in KEEPING:
        return False
    _, _, length, width = query.shape
    computed = length if rows is None else rows.shape[1]
    size = query.element_size()
    return length > 1 and computed * max(size, 4) <= 2 * width * size  # they are fp32 at least
