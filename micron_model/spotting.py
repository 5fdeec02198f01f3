"""Movements of a face in a video: when each begins, is widest and ends, and which are no movement of the face.

Of what the cells of a face do (see following.py), what the turning of a rigid head explains is taken out. A movement
begins where the rest is faster than the rest of the video's speed explains, and ends where it is back, or stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.ndimage

from .following import FACE, GRID, Track

#: Speed is taken between frames this many seconds before and after.
_REACH = 0.07
#: The least speed that is any, in pixels of the face's 80 between those frames; the share of cells, the fastest.
_LEAST, _SHARE = 0.2, 0.25
#: How long a movement may take to go back, in seconds; what share of its width is back, and what is at rest.
_LONGEST, _BACK, _REST = 4.0, 0.35, 0.15
#: The apex of a movement that is held is the first frame with this share of its greatest width.
_HELD = 0.95
#: The longest micro-expression, in seconds (Yan et al., Journal of Nonverbal Behavior 2013).
MICRO = 0.5
#: How many times as wide as that of nose and mouth, and as that of the brows, a movement of the eyes alone is.
_EYES, _EYES_OVER_BROWS = 2.5, 0.95
#: The least share of the width of the eyes' movement that one of the mouth has beside it: a blink draws the cheeks
#: along, by up to 0.17 of its own width in the synthetic videos that this was looked at in.
_BESIDE_EYES = 0.2
#: Of a turning head: the least that it goes, in pixels of 80; how many times as far as the face seems to move; and the
#: share of that which a rigid head's turning explains.
_TURN, _TURNS, _RIGID = 1.5, 3.0, 0.6
#: The least change of light, as a share; how much of it a pixel of seeming movement may come with; and how well the two
#: correlate over the movement where it is the light's.
_LIGHT, _LIGHT_A_PIXEL, _LIGHT_ALIKE = 0.06, 0.12, 0.8
#: Rounds of the fit of a rigid head, and the residual, in pixels of 80, below which all cells weigh alike.
_ROUNDS, _ALIKE = 5, 0.1

_rows, _columns = np.mgrid[:GRID, :GRID]
#: Of the upper eyelids to below the lower ones, on both sides.
_LEFT_EYE = np.isin(_rows, (2, 3)) & np.isin(_columns, (1, 2))
_RIGHT_EYE = _LEFT_EYE[:, ::-1]
#: From the brows to the chin, less the eyes, and what may be behind the face.
_ELSEWHERE = (
    (_rows >= 1) & (_columns >= 1) & (_columns <= 6) & ~(_LEFT_EYE | _RIGHT_EYE)
    & ~((_rows == 7) & ((_columns == 1) | (_columns == 6)))
)  # fmt: skip
_SEEN = _ELSEWHERE | _LEFT_EYE | _RIGHT_EYE
_BROWS = (_rows <= 1) & (_columns >= 1) & (_columns <= 6)
_BELOW = _ELSEWHERE & (_rows >= 4)
#: Mouth and chin, which eyelids hardly draw along.
_MOUTH = _ELSEWHERE & (_rows >= 5)

Kind = Literal["micro", "longer", "blink", "gaze", "head", "light"]


@dataclass
class SpotConfig:
    """Which movements are marked."""

    strength: float = 4.0
    """How far the speed of the face must stand out from that of the video's slower half, in standard deviations."""
    most: int = 10
    """Movements of each length at most; the strongest are kept."""
    stabilize: bool = True
    """Lay every frame over the one in which the face was found, so that the head keeps still."""
    margin: float = 0.1
    """Added on each side of the box of the face, as a share of its side, in what the recognizer is given."""

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; it must be positive")
        if self.most < 1:
            raise ValueError(f"most={self.most}; at least 1 movement must be allowed")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin}; it is a share of the face's side, in [0, 1)")


class Spotted(NamedTuple):
    """A movement: numbers of its frames, what it is, and why that."""

    onset: int
    """The last frame before it."""
    apex: int
    """Of its greatest width; the first of them where it is held."""
    offset: int
    """The first frame at rest again."""
    strength: float
    """How far its speed stands out, in standard deviations of the slower half."""
    kind: Kind
    """``micro`` or ``longer`` of the face; what else is ignored."""
    reason: str
    """Why it is of this kind, in words."""


def _widths(moves: np.ndarray) -> np.ndarray:
    """The mean length (…) of the widest quarter of moves (…, n, 2)."""
    lengths = np.sort(np.linalg.norm(moves, axis=-1), axis=-1)
    return lengths[..., -max(1, round(_SHARE * lengths.shape[-1])) :].mean(-1)


def at_rest(curve: np.ndarray) -> tuple[float, float]:
    """The lower quartile of a curve, and the standard deviation of a normal one as far from its median.

    Of the slower half alone: a face that moves for as long as half of the time does not raise them.
    """
    centre, median = np.quantile(curve, (0.25, 0.5))
    return float(centre), max(float(median - centre) / 0.6745, 1e-6)


def _speed(cells: np.ndarray, fps: float) -> np.ndarray:
    reach, places = max(1, round(_REACH * fps)), np.arange(len(cells))
    return _widths(cells[np.minimum(places + reach, places[-1])] - cells[np.maximum(places - reach, 0)])


class _Interval(NamedTuple):
    onset: int
    apex: int
    offset: int
    back: bool
    """Whether it went back."""
    strength: float


def _intervals(cells: np.ndarray, fps: float, strength: float, explained: np.ndarray) -> list[_Interval]:
    """Every movement of cells (T, n, 2) that does not begin where (T,) it is explained otherwise."""
    curve = _speed(cells, fps)
    centre, deviation = at_rest(curve)
    above = (curve > max(centre + strength * deviation, _LEAST)) & ~explained
    reach, last = max(1, round(_REACH * fps)), len(cells) - 1
    found, t = [], 0
    while t <= last:
        if not above[t]:
            t += 1
            continue
        begun = max(t - reach, 0)
        until = min(last, begun + round(_LONGEST * fps))
        width = _widths(cells[begun : until + 1] - cells[max(begun - 1, 0) : begun + 1].mean(0))
        settled = t
        while settled < last and above[settled : settled + 2 * reach + 1].any():
            settled += 1
        back = stop = None
        apex = 0
        for i, w in enumerate(width):
            if w > width[apex]:
                apex = i
            elif w < _BACK * width[apex] and begun + i >= t + reach:
                back = i
                break
        if back is None:
            apex = int(width[: max(2, settled - begun + 1)].argmax())
            stop = max(settled - begun, apex + 1)
        else:
            stop = back
            while (
                stop + 1 < len(width) and width[stop] > _REST * width[apex] and width[stop + 1] < width[stop]
            ):
                stop += 1
        apex = int((width[: apex + 1] >= _HELD * width[apex]).argmax())
        start = apex
        while start > 0 and width[start] > _REST * width[apex]:
            start -= 1
        onset, offset = begun + start, min(last, begun + stop)
        peak = float(curve[onset : offset + 1].max())
        if onset < begun + apex <= offset:
            found.append(
                _Interval(onset, begun + apex, offset, back is not None, (peak - centre) / deviation)
            )
        t = max(offset, t) + 1
        while t <= last and above[t] and t <= offset + 2 * reach + 2:  # speed looks back
            t += 1
    return found


def _rigid_moves() -> np.ndarray:
    """Where cells go (8, 8, 2, 6) as a head goes right, down, nearer, turns in the picture, and about two other axes.

    In the last two the middle of a face, which is nearer than its sides, goes farther.
    """
    x, y = (_columns + 0.5) / GRID - 0.5, (_rows + 0.5) / GRID - 0.5
    one, none, near = np.ones_like(x), np.zeros_like(x), 1 - 2 * x**2 - 2 * y**2
    moves = [(one, none), (none, one), (x, y), (-y, x), (near, none), (none, near)]
    return np.stack([np.stack(move, -1) for move in moves], -1)


_RIGID_MOVES = _rigid_moves()


def _less_rigid(cells: np.ndarray) -> np.ndarray:
    """Moves of cells (T, 8, 8, 2) less those of a rigid head, fitted in each frame.

    The sum of the residuals' lengths is least, not that of their squares, by reweighted least squares: a part of the
    face that moves by itself stays as it is.
    """
    basis, target = _RIGID_MOVES[_SEEN], cells[:, _SEEN]  # [n, 2, 6], [T, n, 2]
    weight = np.ones(target.shape[:2])
    for _ in range(_ROUNDS):
        weighted = np.einsum("tn,nci->tnci", weight, basis)
        normal = np.einsum("tnci,ncj->tij", weighted, basis)
        right = np.einsum("tnci,tnc->ti", weighted, target)
        moves = np.linalg.solve(normal, right[..., None])[..., 0]
        left = np.linalg.norm(target - np.einsum("nci,ti->tnc", basis, moves), axis=-1)
        weight = 1 / np.maximum(left, _ALIKE)
    return cells - np.einsum("rcdi,ti->trcd", _RIGID_MOVES, moves)


def _explained(move: np.ndarray, where: np.ndarray) -> float:
    """The share of the squared lengths of moves (8, 8, 2) that those of a rigid head explain."""
    basis, target = _RIGID_MOVES[where].reshape(-1, 6), move[where].ravel()
    left = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
    return 1 - float((left**2).sum() / max((target**2).sum(), 1e-12))


def _width_of_eyes(moves: np.ndarray) -> np.ndarray:
    """The mean of both, of moves (…, 8, 8, 2)."""
    return (_widths(moves[..., _LEFT_EYE, :]) + _widths(moves[..., _RIGHT_EYE, :])) / 2


def _eyes_alone(move: np.ndarray) -> bool:
    """Whether cells (8, 8, 2) go as those of eyes that close or look aside, and nothing else moves.

    Where eyes and brows are raised that is a movement of the face: upper lids are.
    """
    width = float(_width_of_eyes(move))
    right, down = move[_LEFT_EYE | _RIGHT_EYE].mean(0)
    aside = abs(right) > abs(down)
    over_brows = width >= _EYES_OVER_BROWS * _widths(move[_BROWS])
    return bool(width >= _EYES * _widths(move[_BELOW]) and (aside or (down > 0 and over_brows)))


def _kind(
    track: Track, cells: np.ndarray, face: np.ndarray, interval: _Interval, fps: float, beside_eyes: bool
) -> tuple[Kind, str]:
    """What a movement is, and why.

    Args:
        cells, face: where the cells have gone (T, 8, 8, 2), with the turning of the head and less it.
        beside_eyes: it is one of the mouth, whatever the eyes do.
    """
    onset, apex, offset, back, _ = interval
    about, seconds = slice(onset, offset + 1), (offset - onset) / fps
    move, widths = face[apex] - face[onset], _widths((face[about] - face[onset])[:, _SEEN])
    width = float(widths[apex - onset])
    rigid = _explained(cells[apex] - cells[onset], _SEEN)
    turn = float(np.linalg.norm(track.head[about] - track.head[onset], axis=-1).mean(-1).max())
    if track.lost[about].any():
        return "head", "the head could not be followed"
    if turn >= max(_TURN, _TURNS * width) and rigid >= _RIGID:
        return (
            "head",
            f"the head goes {turn / FACE:.0%} of the face's width, which explains {rigid:.0%} of it",
        )
    light = np.abs(track.light[about] / max(track.light[onset], 1) - 1)
    if (
        light.max() >= max(_LIGHT, _LIGHT_A_PIXEL * width)
        and np.corrcoef(light, widths)[0, 1] >= _LIGHT_ALIKE
    ):
        return "light", f"the light changes by {light.max():.0%} as it comes and goes"
    if not beside_eyes and _eyes_alone(move):
        return ("blink" if seconds <= MICRO and back else "gaze"), "both eyes alone"
    if not back:
        return "longer", "it does not go back" + (
            " before the video ends" if offset == len(cells) - 1 else ""
        )
    return ("micro", f"at most {MICRO} s") if seconds <= MICRO else ("longer", f"more than {MICRO} s")


def _overlap(one: _Interval, other: _Interval) -> bool:
    return one.onset <= other.offset and other.onset <= one.offset


def _moves_beside_eyes(face: np.ndarray, mouth: _Interval) -> bool:
    """Whether a movement of the mouth is more than what eyes that move at the same time draw along."""
    moves = face[mouth.onset : mouth.offset + 1] - face[mouth.onset]
    width = _widths(moves[mouth.apex - mouth.onset][_MOUTH])
    return bool(width >= _BESIDE_EYES * _width_of_eyes(moves).max())


class Spotting(NamedTuple):
    """What :func:`spot` found."""

    movements: list[Spotted]
    """In their order in time, ignored ones too."""
    curve: np.ndarray
    """(T,): speed of the face without its eyes and the turning of the head, in pixels of a face of 80 a seventh of a
    second."""
    threshold: float
    """What the curve must reach to stand out."""


def spot(track: Track, fps: float, config: SpotConfig) -> Spotting:
    """Movements of the face, of the eyes alone, and of head and light where they look like one.

    Raises:
        ValueError: the video is shorter than half a second.
    """
    count, least = len(track.cells), 2 * max(1, round(MICRO / 2 * fps)) + 1
    if count < least:
        raise ValueError(f"{count} frames at {fps:g} a second; at least {least} are needed to spot anything")
    cells = track.cells - np.median(track.cells[:, _SEEN], axis=1)[:, None, None]
    cells = scipy.ndimage.gaussian_filter1d(cells, fps / 60, axis=0, mode="nearest")
    face, explained, reach = _less_rigid(cells), np.zeros(count, bool), max(1, round(_REACH * fps))
    alone = []
    for eyes in _intervals(face[:, _LEFT_EYE | _RIGHT_EYE], fps, config.strength, explained):
        if _eyes_alone(face[eyes.apex] - face[eyes.onset]):
            alone.append(eyes)
            for change in (eyes.onset, eyes.offset):
                explained[max(0, change - 3 * reach) : change + 3 * reach + 1] = True
    beside = [
        mouth
        for mouth in _intervals(face[:, _MOUTH], fps, config.strength, np.zeros(count, bool))
        if any(_overlap(mouth, eyes) for eyes in alone) and _moves_beside_eyes(face, mouth)
    ]
    rest = [
        i for i in _intervals(face[:, _ELSEWHERE], fps, config.strength, explained)
        if not any(_overlap(i, mouth) for mouth in beside)
    ]  # fmt: skip
    found = [
        Spotted(i.onset, i.apex, i.offset, i.strength, *_kind(track, cells, face, i, fps, i in beside))
        for i in sorted(alone + beside + rest)
    ]
    kept = set()
    for kind in ("micro", "longer"):
        kept |= set(sorted((s for s in found if s.kind == kind), key=lambda s: -s.strength)[: config.most])
    curve = _speed(face[:, _ELSEWHERE], fps)
    centre, deviation = at_rest(curve)
    return Spotting(
        [s for s in found if s in kept or s.kind not in ("micro", "longer")],
        curve, max(centre + config.strength * deviation, _LEAST),
    )  # fmt: skip
