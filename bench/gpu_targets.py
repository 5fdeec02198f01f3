"""What is aimed at on an H200-class GPU, printed beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Target(NamedTuple):
    operator: str
    case: str  # how the case begins
    what: str
    value: Callable[[Row], float]  # KeyError where the row does not hold it
    goal: float
    at_most: bool = False

    def is_of(self, row: Row) -> bool:
        return row["operator"] == self.operator and row["case"].startswith(self.case)


def _over_best_peer(row: Row) -> float:
    return row["variants"][row["best_peer"]]["times_ours"]


def _of_ours(name: str) -> Callable[[Row], float]:
    return lambda row: row["variants"][row["ours"]][name]


def _over_topk(row: Row) -> float:
    return row["variants"]["torch.topk"]["times_ours"]


def _memory(row: Row) -> float:
    return row["variants"][row["ours"]]["extra_bytes"] / row["variants"]["eager"]["extra_bytes"]


SMALL, LARGE = "bf16 (64, 1, 784, 512)", "bf16 (16, 1, 3136, 512)"
TARGETS = [
    Target("diagonal_attention", f"forward {SMALL}", "times the best peer", _over_best_peer, 2.5),
    Target("diagonal_attention", f"forward {LARGE}", "times the best peer", _over_best_peer, 2.5),
    Target("diagonal_attention", f"forward {LARGE}", "of the matrix rate", _of_ours("share_of_matrix_rate"), 0.6),
    Target("diagonal_attention", f"forward {LARGE}", "of eager's extra memory", _memory, 0.01, at_most=True),
    Target("diagonal_attention", f"forward + backward {SMALL}", "times the best peer", _over_best_peer, 2),
    Target("diagonal_attention", f"forward + backward {LARGE}", "times the best peer", _over_best_peer, 2),
    Target("pretrain_step", "base", "times the published structure", _over_best_peer, 3),
    Target("pretrain_step", "base", "of the matrix rate", _of_ours("share_of_matrix_rate"), 0.5),
    Target("frame_difference", "uint8", "of the copy bandwidth", _of_ours("share_of_copy_bandwidth"), 0.9),
    Target("swap_patches", "uint8", "of the copy bandwidth", _of_ours("share_of_copy_bandwidth"), 0.9),
    Target("poi_topk", "topk_mask", "times topk + scatter", _over_topk, 4),
]  # fmt: skip


def table(rows: list[Row]) -> str:
    """A line for every target and every row of a GPU that it speaks of."""
    lines = ["targets for an H200-class GPU: what, goal, measured here"]
    operators = {row["operator"] for row in rows}
    for target in TARGETS:
        if target.operator not in operators:
            continue
        about = [row for row in rows if target.is_of(row)]
        if not about:
            lines.append(f"  {target.operator} {target.case}, {target.what}: not measured")
        for row in about:
            sign = "≤" if target.at_most else "≥"
            goal = f"{target.what} {sign} {target.goal:g}"
            try:
                value = target.value(row)
            except (KeyError, ZeroDivisionError):
                if target.value is _memory and row["way"] != "calls":
                    continue  # memory is measured of calls alone
                verdict = "not measured"
            else:
                reached = value <= target.goal if target.at_most else value >= target.goal
                verdict = f"{value:.3g} {'reached' if reached else 'missed'}"
            lines.append(f"  {target.operator} {row['case']}, {row['way']}: {goal}: {verdict}")
    return "\n".join(lines)
