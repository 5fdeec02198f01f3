"""How hard it is to tell the emotion of a look-alike's clip: by levels, chosen by measurement."""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..clips.nuisances import Nuisance, compression, head_motion, light, sensor_noise
from ..clips.synthetic import Manner


class Difficulty(NamedTuple):
    """What stands between a clip and its emotion."""

    manner: Manner = Manner()
    """How people differ in what they do."""
    nuisances: tuple[Nuisance, ...] = ()
    """What changes in the frames although no face moves, in this order."""


def _nuisances(shift: float) -> tuple[Nuisance, ...]:
    """Weaker than those of nuisances.LEVELS, under which a plain difference of frames is at chance; ``shift`` of the
    head in pixels of a 64×64 frame."""
    return (
        functools.partial(head_motion, shift=shift, rotation=shift / 100),
        functools.partial(light, gain=0.015, gradient=0.015, offset=0.6),
        functools.partial(sensor_noise, deviation=2.5),
        functools.partial(compression, quality=90),
    )


#: Chosen by measurement (bench/experiments/slstt.md): optical flow and a linear layer solve "easy"; at "hard" no plain
#: means are above 0.90 UF1, and none at chance. Its head moves less than that of "medium", which takes more from a
#: frame difference than all else does.
DIFFICULTIES = {
    "easy": Difficulty(),
    "medium": Difficulty(
        Manner(
            amplitude=(0.5, 1.6), rise=(6, 16), fall=(8, 19), asymmetry=0.4, places=0.02, directions=0.15, mixed=0.3,
            blinks=0.25, gaze=0.25,
        ),
        _nuisances(0.25),
    ),
    "hard": Difficulty(
        Manner(
            amplitude=(0.4, 1.3), rise=(4, 16), fall=(6, 19), asymmetry=0.6, places=0.05, directions=0.4, mixed=0.6,
            blinks=0.7, gaze=0.5,
        ),
        _nuisances(0.125),
    ),
}  # fmt: skip
