"""Published scores, to stand beside ours."""

from __future__ import annotations

from typing import NamedTuple

AS_PUBLISHED = "as published (mostly best-epoch selection on the test subject)"
"""To be shown with every row: such scores do not compare with ones whose epoch was not chosen on the test subjects."""


class Published(NamedTuple):
    """A score as its authors report it, over all clips of a task."""

    task: str
    method: str
    uf1: float
    uar: float
    note: str = ""


_STSTNET = (
    "recomputed from the log its authors publish: UF1 0.735, UAR 0.719; 0.761 is the mean precision (true and "
    "predicted swapped)"
)

PUBLISHED = (
    Published("composite", "LBP-TOP", 0.588, 0.579),
    Published("composite", "STSTNet", 0.735, 0.761, _STSTNET),
    Published(
        "composite", "SLSTT", 0.816, 0.790, "its authors' code takes the best epoch on the left-out subject"
    ),
    Published("composite", "HTNet", 0.860, 0.848),
    Published("composite", "μ-BERT", 0.8903, 0.8842),
    Published("casme2-3", "μ-BERT", 0.9034, 0.8914),
    Published("casme2-5", "μ-BERT", 0.8553, 0.8348),
    Published("samm-5", "μ-BERT", 0.8386, 0.8475),
    Published("smic-3", "μ-BERT", 0.8550, 0.8384),
    Published("casme3-3", "μ-BERT", 0.5604, 0.6125),
    Published("casme3-4", "μ-BERT", 0.4718, 0.4913),
    Published("casme3-7", "MAE", 0.2386, 0.2087, "ablation by the authors of μ-BERT"),
    Published("casme3-7", "μ-BERT without micro-attention and Patch of Interest", 0.2527, 0.2296),
    Published("casme3-7", "μ-BERT without Patch of Interest", 0.2735, 0.2618),
    Published("casme3-7", "μ-BERT", 0.3264, 0.3254),
)
"""A task is a database, or ``composite`` (MEGC 2019, Full), with its number of classes."""


def published(task: str) -> list[Published]:
    """The rows of a task.

    Raises:
        ValueError: nothing is known of that task.
    """
    rows = [row for row in PUBLISHED if row.task == task]
    if not rows:
        known = ", ".join(dict.fromkeys(row.task for row in PUBLISHED))
        raise ValueError(f"task {task!r}: published scores are known of {known}")
    return rows
