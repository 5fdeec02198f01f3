"""Movements of a face in a video: when each begins, is widest and ends, and which are no movement of the face.

The face, held still, is cut into 8 × 8 cells, and where each has gone since the frame in which the face was found is
its mean optical flow, between frames that are normalised locally, which takes the light out. A movement begins where
the cells are faster than the rest of the video's speed explains, and ends where they are back, or stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import scipy.ndimage

from .data.clips.faces import Box, cut, find_face
from .data.clips.flow import grey, optical_flow
from .data.clips.stabilize import Stabilizer, look_up, normalized

#: Side of the face in pixels at which movements are looked for, and the margin about it that the flow needs.
FACE, MARGIN = 80, 8
#: Frames in a row in which a head is lost before it is looked for anew.
_LOST = 3
#: Cells along a side of the face.
_GRID = 8
#: Speed is taken between frames this many seconds before and after.
_REACH = 0.07
#: The least speed that is any, in pixels of the face's 80 between those frames; the share of cells, the fastest.
_LEAST, _SHARE = 0.2, 0.25
#: How long a movement may take to go back, in seconds; what share of its width is back, and what is at rest.
_LONGEST, _BACK, _REST = 4.0, 0.35, 0.15
#: The longest micro-expression, in seconds (Yan et al., Journal of Nonverbal Behavior 2013).
MICRO = 0.5
#: How many times as wide as that of nose and mouth, and as that of the brows, a movement of the eyes alone is.
_EYES, _EYES_OVER_BROWS = 2.5, 0.95
#: Of a turning head: the least that it goes, in pixels of 80; how many times as far as the face seems to move; and the
#: share of that which a rigid head's turning explains.
_TURN, _TURNS, _RIGID = 1.5, 3.0, 0.6
#: The least change of light, as a share, and how much of it a pixel of seeming movement may come with.
_LIGHT, _LIGHT_A_PIXEL = 0.06, 0.12

_rows, _columns = np.mgrid[:_GRID, :_GRID]
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
    """Of its greatest width."""
    offset: int
    """The first frame at rest again."""
    strength: float
    """How far its speed stands out, in standard deviations of the slower half."""
    kind: Kind
    """``micro`` or ``longer`` of the face; what else is ignored."""
    reason: str
    """Why it is of this kind, in words."""


class Track(NamedTuple):
    """What is followed through a video of T frames."""

    cells: np.ndarray
    """(T, 8, 8, 2): where the cells have gone, right and down, in pixels of a face of 80."""
    light: np.ndarray
    """(T,): mean grey level of the face."""
    head: np.ndarray
    """(T, 4, 2): where the corners of the face have gone with the head, in pixels of a face of 80."""
    lost: np.ndarray
    """(T,), bool: the head could not be followed."""


def _prepared(frame: np.ndarray, box: Box) -> np.ndarray:
    face = cut(frame, box, MARGIN / FACE, FACE + 2 * MARGIN)
    return normalized(cv2.GaussianBlur(grey(face), (0, 0), 1.0))


def _moved(box: Box, transform: np.ndarray) -> Box:
    """Where a similarity (2, 3) takes a box, which stays upright."""
    x, y = transform @ (box.x + box.side / 2, box.y + box.side / 2, 1)
    side = box.side * float(np.hypot(transform[0, 0], transform[1, 0]))
    return Box(float(x) - side / 2, float(y) - side / 2, side)


class _Key:
    """A frame over which others are laid, and where cells and head were in it."""

    def __init__(self, frame: np.ndarray, box: Box, cells: np.ndarray, head: np.ndarray):
        self.box, self.cells, self.head = box, cells, head
        self.stabilizer, self.prepared = Stabilizer(frame, box), _prepared(frame, box)
        self._corners = np.array(
            [[box.x + i * box.side, box.y + j * box.side, 1] for i in (0, 1) for j in (0, 1)]
        )

    def cells_of(self, frame: np.ndarray, transform: np.ndarray) -> np.ndarray:
        laid_over = look_up(frame, transform)
        inside, side = slice(MARGIN, MARGIN + FACE), FACE // _GRID
        flow = optical_flow(self.prepared, _prepared(laid_over, self.box))[inside, inside]
        return self.cells + flow.reshape(_GRID, side, _GRID, side, 2).mean((1, 3))

    def head_of(self, transform: np.ndarray) -> np.ndarray:
        gone = (transform @ self._corners.T).T - self._corners[:, :2]
        return self.head + gone * (FACE / self.box.side)


class Follower:
    """Follows a face through a video, frame by frame, and keeps two of them.

    Every frame is laid over a key frame, first the one in which the face was found. Where that fails, since the head
    has turned, the frame before is the next key.

    Args:
        reference: the frame (H, W, 3), uint8, RGB, in which the face was found.
        box: the face in it.
        stabilize: False takes the head to keep still.
    """

    def __init__(self, reference: np.ndarray, box: Box, stabilize: bool = True):
        self.stabilize = stabilize
        self._key = _Key(reference, box, np.zeros((_GRID, _GRID, 2)), np.zeros((4, 2)))
        self._before: np.ndarray | None = None
        self.boxes: list[Box] = []
        """The face in every frame; where it is lost, where it was."""
        self.left: dict[int, str] = {}
        """Numbers of the frames in which the head could not be followed, and why."""
        self._cells: list[np.ndarray] = []
        self._heads: list[np.ndarray] = []
        self._light: list[float] = []

    def __call__(self, frame: np.ndarray) -> None:
        """Take the next frame (H, W, 3), uint8, RGB."""
        key, transform, failure = self._key, np.eye(2, 3), None
        if self.stabilize:
            transform, failure = key.stabilizer.find(frame)
            if failure is not None and self._before is not None:
                key = _Key(self._before, self.boxes[-1], self._cells[-1], self._heads[-1])
                transform, second = key.stabilizer.find(frame)
                if second is None:
                    self._key, failure = key, None
        number = len(self.boxes)
        if failure is not None and all(number - i in self.left for i in range(1, _LOST + 1)):
            # Whatever happened meanwhile: it is followed anew, from where it was.
            self._key = _Key(frame, find_face(frame) or self.boxes[-1], self._cells[-1], self._heads[-1])
            transform, failure = np.eye(2, 3), None
        if failure is None:
            self.boxes.append(_moved(self._key.box, transform))
            self._cells.append(self._key.cells_of(frame, transform))
            self._heads.append(self._key.head_of(transform))
            self._before = frame
        else:
            self.left[number] = failure
            self.boxes.append(self.boxes[-1] if self.boxes else self._key.box)
            self._cells.append(self._cells[-1] if self._cells else self._key.cells)
            self._heads.append(self._heads[-1] if self._heads else self._key.head)
            self._before = None
        self._light.append(float(cut(frame, self.boxes[-1], 0, None).mean()))

    def track(self) -> Track:
        """What was followed so far."""
        lost = np.isin(np.arange(len(self.boxes)), list(self.left))
        return Track(np.array(self._cells), np.array(self._light), np.array(self._heads), lost)


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
    x, y = (_columns + 0.5) / _GRID - 0.5, (_rows + 0.5) / _GRID - 0.5
    one, none, near = np.ones_like(x), np.zeros_like(x), 1 - 2 * x**2 - 2 * y**2
    moves = [(one, none), (none, one), (x, y), (-y, x), (near, none), (none, near)]
    return np.stack([np.stack(move, -1) for move in moves], -1)


_RIGID_MOVES = _rigid_moves()


def _explained(move: np.ndarray, where: np.ndarray) -> float:
    """The share of the squared lengths of moves (8, 8, 2) that those of a rigid head explain."""
    basis, target = _RIGID_MOVES[where].reshape(-1, 6), move[where].ravel()
    left = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
    return 1 - float((left**2).sum() / max((target**2).sum(), 1e-12))


def _eyes_alone(move: np.ndarray) -> bool:
    """Whether cells (8, 8, 2) go as those of eyes that close or look aside, and nothing else moves.

    Where eyes and brows are raised that is a movement of the face: upper lids are.
    """
    width = float(np.mean([_widths(move[eye]) for eye in (_LEFT_EYE, _RIGHT_EYE)]))
    right, down = move[_LEFT_EYE | _RIGHT_EYE].mean(0)
    aside = abs(right) > abs(down)
    over_brows = width >= _EYES_OVER_BROWS * _widths(move[_BROWS])
    return bool(width >= _EYES * _widths(move[_BELOW]) and (aside or (down > 0 and over_brows)))


def _kind(track: Track, cells: np.ndarray, interval: _Interval, fps: float) -> tuple[Kind, str]:
    """What a movement is, and why."""
    onset, apex, offset, back, _ = interval
    move, about = cells[apex] - cells[onset], slice(onset, offset + 1)
    width, seconds = float(_widths(move[_SEEN])), (offset - onset) / fps
    rigid = _explained(move, _SEEN)
    turn = float(np.linalg.norm(track.head[about] - track.head[onset], axis=-1).mean(-1).max())
    if track.lost[about].any():
        return "head", "the head could not be followed"
    if turn >= max(_TURN, _TURNS * width) and rigid >= _RIGID:
        return (
            "head",
            f"the head goes {turn / FACE:.0%} of the face's width, which explains {rigid:.0%} of it",
        )
    light = float(np.abs(track.light[about] / max(track.light[onset], 1) - 1).max())
    if light >= max(_LIGHT, _LIGHT_A_PIXEL * width):
        return "light", f"the light changes by {light:.0%}"
    if _eyes_alone(move):
        return ("blink" if seconds <= MICRO and back else "gaze"), "both eyes alone"
    if not back:
        return "longer", "it does not go back" + (
            " before the video ends" if offset == len(cells) - 1 else ""
        )
    return ("micro", f"at most {MICRO} s") if seconds <= MICRO else ("longer", f"more than {MICRO} s")


class Spotting(NamedTuple):
    """What :func:`spot` found."""

    movements: list[Spotted]
    """In their order in time, ignored ones too."""
    curve: np.ndarray
    """(T,): speed of the face without its eyes, in pixels of a face of 80 a seventh of a second."""
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
    explained, reach = np.zeros(count, bool), max(1, round(_REACH * fps))
    alone = []
    for eyes in _intervals(cells[:, _LEFT_EYE | _RIGHT_EYE], fps, config.strength, explained):
        if _eyes_alone(cells[eyes.apex] - cells[eyes.onset]):
            alone.append(eyes)
            for change in (eyes.onset, eyes.offset):
                explained[max(0, change - 3 * reach) : change + 3 * reach + 1] = True
    face = _intervals(cells[:, _ELSEWHERE], fps, config.strength, explained)
    found = [
        Spotted(i.onset, i.apex, i.offset, i.strength, *_kind(track, cells, i, fps))
        for i in sorted(alone + face)
    ]
    kept = set()
    for kind in ("micro", "longer"):
        kept |= set(sorted((s for s in found if s.kind == kind), key=lambda s: -s.strength)[: config.most])
    curve = _speed(cells[:, _ELSEWHERE], fps)
    centre, deviation = at_rest(curve)
    return Spotting(
        [s for s in found if s in kept or s.kind not in ("micro", "longer")],
        curve, max(centre + config.strength * deviation, _LEAST),
    )  # fmt: skip
