"""Movements of a face, marked in synthetic videos: when they begin, are widest and end, and what is none."""

import cv2
import numpy as np
import pytest

from micron_model.data.clips.faces import Box
from micron_model.data.clips.synthetic import PLACES, SyntheticClip, _Moving, _neutral
from micron_model.following import Follower
from micron_model.spotting import SpotConfig, spot

FPS, SIZE, FRAMES, ONSET = 30.0, 96, 44, 16
BOX = Box(0.14 * SIZE, 0.14 * SIZE, 0.72 * SIZE)
#: Frames from onset to apex, at the apex, and to the offset.
SHORT, LONG = (4, 0, 6), (8, 6, 8)


class Eyes(SyntheticClip):
    """Both upper lids go down."""

    def _expression(self, frame):
        for side in ("left", "right"):
            yield _Moving(np.array(PLACES[f"lid {side}"]), np.array([0.0, 1.0]), 3.0, 0.06)


def course(rise, held, fall):
    """Share of the apex in each frame: raised cosines up and down."""
    times = np.arange(FRAMES) - ONSET
    phase = np.minimum(times / rise, (rise + held + fall - times) / fall).clip(0, 1)
    return (1 - np.cos(np.pi * phase)) / 2


def followed(field, shares, gains=None, beside=None):
    """A face whose pixels go ``field`` (S, S, 2), in pixels, times the share of each frame, followed.

    ``beside``: another field and its shares.
    """
    other, of_other = beside or (NOTHING, np.zeros(len(shares)))
    rng = np.random.default_rng(0)
    neutral = _neutral(SyntheticClip(1, "happiness"), SIZE).astype(np.float32)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    frames = []
    gains = np.ones(len(shares)) if gains is None else gains
    for share, gain, of_frame in zip(shares, gains, of_other, strict=True):
        gone = (share * field + of_frame * other).astype(np.float32)
        seen = cv2.remap(
            neutral, x - gone[..., 0], y - gone[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        frames.append((gain * seen + rng.normal(0, 2, seen.shape)).clip(0, 255).astype(np.uint8))
    follower = Follower(frames[0], BOX)
    for frame in frames:
        follower(frame)
    return follower


def movements(*arguments, config=None):
    return spot(followed(*arguments).track(), FPS, config or SpotConfig()).movements


def expression(label):
    clip = SyntheticClip(1, label)
    return clip.displacement(clip.apex, SIZE) * (1.5 / clip.amplitude)


NOTHING = np.zeros((SIZE, SIZE, 2))


@pytest.mark.parametrize("label", ["happiness", "surprise", "disgust"])
@pytest.mark.parametrize(("when", "kind"), [(SHORT, "micro"), (LONG, "longer")])
def test_a_movement_is_marked_where_it_is(label, when, kind):
    (found,) = movements(expression(label), course(*when))
    rise, held, fall = when
    assert abs(found.onset - ONSET) <= 2
    assert ONSET + rise - 2 <= found.apex <= ONSET + rise + held + 2
    assert abs(found.offset - (ONSET + rise + held + fall)) <= 2
    assert found.kind == kind


def test_a_still_face_has_no_movement():
    assert movements(NOTHING, np.zeros(FRAMES)) == []


def test_a_blink_is_no_movement_of_the_face():
    clip = Eyes(1, "happiness")
    (found,) = movements(clip.displacement(0, SIZE), course(3, 0, 4))
    assert found.kind == "blink"


@pytest.mark.parametrize("gains", [1 + 0.25 * course(2, 10, 3), 1 - 0.25 * course(1, 27, 1)])
def test_a_change_of_light_is_no_movement_of_the_face(gains):
    assert {found.kind for found in movements(NOTHING, np.zeros(FRAMES), gains)} <= {"light"}


@pytest.mark.parametrize("beside", ["light", "blink", "head"])
def test_a_short_movement_is_found_beside_what_is_none(beside):
    """The light changes with it and stays; a blink, or a turn of the head that takes longer, begins before it."""
    width, gains, other = 1.0, None, None
    if beside == "light":
        gains = 1 + 0.25 * course(2, 20, 3)
    elif beside == "blink":
        width, other = 0.75, (Eyes(1, "happiness").displacement(0, SIZE), np.roll(course(3, 0, 5), -2))
    else:
        other = turned((3.0, 0.0)), np.roll(course(*LONG), -2)
    marked = movements(width * expression("happiness"), course(*SHORT), gains, other)
    (found,) = [f for f in marked if f.kind in ("micro", "longer")]
    assert found.kind == "micro"
    assert abs(found.onset - ONSET) <= 3
    assert abs(found.apex - ONSET - SHORT[0]) <= 2
    assert abs(found.offset - ONSET - sum(SHORT)) <= 3


def turned(turn):
    """A head that shifts and turns: the middle of the face is nearer than its sides, and goes farther."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    return np.array([5.0, 1.0]) + (1 - 4 * x**2 - 4 * y**2).clip(0)[..., None] * turn


@pytest.mark.parametrize("turn", [(3.0, 0.0), (0.0, 3.0)])
def test_a_turn_of_the_head_is_no_movement_of_the_face(turn):
    assert {found.kind for found in movements(turned(turn), course(*LONG))} == {"head"}


def test_a_face_that_stays_as_it_has_become_is_marked_and_not_called_short():
    (found,) = movements(expression("happiness"), course(*SHORT).cumsum().clip(0, 1))
    assert (found.kind, found.reason) == ("longer", "it does not go back")
    assert abs(found.onset - ONSET) <= 2


def test_the_strongest_of_each_length_are_kept():
    shares = np.concatenate([course(*SHORT), 0.7 * course(*SHORT)])
    both = movements(expression("happiness"), shares)
    assert [found.kind for found in both] == ["micro", "micro"]
    assert movements(expression("happiness"), shares, config=SpotConfig(most=1)) == [both[0]]


def test_a_head_that_turns_on_and_on_is_followed_by_new_keys():
    """It ends where no frame looks like the first any more."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    near = (1 - 4 * x**2 - 4 * y**2).clip(0)[..., None] * (1.0, 0.0)
    follower = followed(near, 0.5 * np.arange(FRAMES))
    assert follower.left == {}


def test_a_video_that_is_too_short_is_named():
    track = followed(NOTHING, np.zeros(FRAMES)).track()
    with pytest.raises(ValueError, match="14 frames at 30 a second; at least 17 are needed"):
        spot(type(track)(*(part[:14] for part in track)), FPS, SpotConfig())
