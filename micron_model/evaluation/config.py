"""How to evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .predictions import LEAKY


@dataclass
class EvaluateConfig:
    """How to evaluate."""

    seeds: int = 5
    """Trainings of each fold, from seeds 0, 1, …; the scores' spread over them is reported."""
    selection: Literal["last", "inner"] = "last"
    """Which epoch is tested: the last, or the best on subjects held out of the training side (``inner``)."""
    leaky_best_epoch: bool = False
    """For diagnosis only: test the epoch that is best on the test subjects, as much of the field does. Every output is
    stamped with it."""
    shuffled: bool = True
    """Also train each fold on shuffled labels: what the score would be if there were nothing to learn."""
    baselines: tuple[str, ...] = ("flow",)
    """Recognizers that are trained beside this one, with their default settings, for a row each in the report."""
    adapt: int = 0
    """Also test by another protocol: so many labelled clips of each tested subject adapt the model, and fewer, and its
    other clips test it; beside ordinary fine-tuning with the same clips and steps. 0 does not."""
    adapt_steps: tuple[int, ...] = (1, 5, 20)
    """Steps of the gradient that such clips are given, one curve each."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}; at least 1 training of each fold is needed")
        if self.leaky_best_epoch and self.selection != "last":
            raise ValueError("leaky_best_epoch chooses the epoch itself; selection must stay 'last'")
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"baselines={self.baselines}; one is there twice")
        self.adapt_steps = tuple(self.adapt_steps)
        if self.adapt < 0:
            raise ValueError(f"adapt={self.adapt}; it is a number of clips, at least 1, or 0 for none")
        if (
            not self.adapt_steps
            or min(self.adapt_steps) < 1
            or len(set(self.adapt_steps)) < len(self.adapt_steps)
        ):
            raise ValueError(
                f"adapt_steps={self.adapt_steps}; different numbers, each at least 1, are needed"
            )
        if self.adapt and self.stamp != "last":
            raise ValueError(
                f"adapt={self.adapt} with the best epoch; what adapts is the recognizer after its last epoch"
            )

    @property
    def stamp(self) -> str:
        """What a prediction says of how its epoch was chosen."""
        return LEAKY if self.leaky_best_epoch else self.selection
