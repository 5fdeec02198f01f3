"""A head that moved is laid over itself again, and what moved in its face is left."""

import cv2
import numpy as np
import pytest
from rich.console import Console

from micron_model.data import SyntheticClip
from micron_model.data.clips.faces import Box
from micron_model.data.clips.images import decode_image
from micron_model.data.clips.nuisances import disturb
from micron_model.data.clips.pairs import FramePairs
from micron_model.data.clips.stabilize import Stabilizer, stabilized
from micron_model.data.clips.synthetic import pixels, sample_cubic
from micron_model.data.shards.plan import ShardConfig
from micron_model.data.shards.read import find_shards, read_shard
from micron_model.data.shards.write import write_shards
from writers import write_images

SIZE = 224
CLIPS = [SyntheticClip(subject, "happiness" if subject % 2 else "surprise") for subject in range(1000, 1004)]


@pytest.fixture(scope="module")
def still_faces():
    """Onset and apex of each clip (2, 3, SIZE, SIZE), its local movement alone."""
    return {clip: clip.read([clip.onset, clip.apex], SIZE) for clip in CLIPS}


def similarity(size: int, shift: tuple[float, float], degrees: float, scale: float) -> np.ndarray:
    """(2, 3), about the middle of a frame: from its pixels to those of the frame in which the head has moved."""
    middle = (size - 1) / 2
    moved = cv2.getRotationMatrix2D((middle, middle), degrees, scale)
    moved[:, 2] += shift
    return moved


def seen_moved(frame: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """A frame (3, S, S), every pixel moved by the transform, its edge repeated."""
    x, y = pixels(frame.shape[-1])
    back = cv2.invertAffineTransform(transform)
    places = back[:, 0, None, None] * x + back[:, 1, None, None] * y + back[:, 2, None, None]
    return (
        sample_cubic(frame.transpose(1, 2, 0), *places)
        .round()
        .clip(0, 255)
        .astype(np.uint8)
        .transpose(2, 0, 1)
    )


def errors(found: np.ndarray, true: np.ndarray, displacement: np.ndarray) -> tuple[float, float]:
    """RMS in pixels over what is still; RMS over what moves more than half as far as the most, over its movement's."""
    there = np.dstack([*pixels(len(displacement)), np.ones(displacement.shape[:2])])
    back = cv2.invertAffineTransform(found)
    error = np.dstack([there @ true.T, there[..., 2]]) @ back.T - there[..., :2]
    length = np.linalg.norm(displacement, axis=2)
    still, moving = length < 0.05 * length.max(), length > 0.5 * length.max()
    rms = [np.sqrt((error[part] ** 2).sum(-1).mean()) for part in (still, moving)]
    return float(rms[0]), float(rms[1] / np.sqrt((displacement[moving] ** 2).sum(-1).mean()))


@pytest.mark.parametrize(
    ("shift", "degrees", "scale"),
    [((8, -8), 5, 1.0), ((-8, 3), -5, 1.03), ((0, 8), -2, 0.97), ((0, 0), 0, 1.0)],
)
def test_rigid_motion_is_undone_and_the_local_movement_left(still_faces, shift, degrees, scale):
    true = similarity(SIZE, shift, degrees, scale)
    measured = []
    for clip, (onset, apex) in still_faces.items():
        images = [np.ascontiguousarray(f.transpose(1, 2, 0)) for f in (onset, seen_moved(apex, true))]
        found = Stabilizer(images[0]).find(images[1])
        assert found.failure is None
        measured.append(errors(found.transform, true, clip.displacement(clip.apex, SIZE)))
    over_still, eaten = np.transpose(measured)
    assert np.sqrt((over_still**2).mean()) < 0.1
    assert eaten.max() < 0.1


def test_light_noise_and_compression_cost_little(still_faces):
    true = similarity(SIZE, (5, -4), 3, 1.02)
    measured = []
    for i, (clip, (onset, apex)) in enumerate(list(still_faces.items())[:2]):
        pair = np.stack([onset, seen_moved(apex, true)])
        for level in ("light", "noise", "compression"):
            pair = disturb(pair, level, np.random.default_rng(i))
        images = np.ascontiguousarray(pair.transpose(0, 2, 3, 1))
        found = Stabilizer(images[0]).find(images[1])
        measured.append(errors(found.transform, true, clip.displacement(clip.apex, SIZE)))
    over_still, eaten = np.max(measured, 0)
    assert over_still < 0.2
    assert eaten < 0.1


def test_frames_laid_over_the_first_differ_from_it_by_the_local_movement_alone(still_faces):
    onset, apex = still_faces[CLIPS[0]]
    moved = seen_moved(apex, similarity(SIZE, (6, 5), 4, 1.0))
    laid, failures = stabilized(np.stack([onset, moved]))
    assert failures == [None, None]
    assert laid.dtype == np.uint8
    middle = (slice(None), slice(32, -32), slice(32, -32))  # away from what the frame has lost at its edge
    left = np.abs(laid[1][middle].astype(float) - apex[middle]).mean()
    assert left < 2.5  # of which sensor noise that is interpolated away is the most
    assert left < 0.25 * np.abs(moved[middle].astype(float) - onset[middle]).mean()


def test_the_face_is_followed_in_its_box_whatever_moves_behind_it(still_faces):
    onset, apex = still_faces[CLIPS[1]]
    true = similarity(SIZE, (4, 2), 2, 1.0)
    rng = np.random.default_rng(0)
    images = []
    for face, (x, y) in ((onset, (90, 40)), (seen_moved(apex, true), (90, 40))):
        behind = cv2.resize(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8), (420, 300))
        behind[y : y + SIZE, x : x + SIZE] = face.transpose(1, 2, 0)
        images.append(behind)
    found = Stabilizer(images[0], Box(90, 40, SIZE)).find(images[1])
    offset = np.array([90, 40])
    in_face = found.transform.copy()
    in_face[:, 2] += in_face[:, :2] @ offset - offset
    assert errors(in_face, true, CLIPS[1].displacement(CLIPS[1].apex, SIZE))[0] < 0.15


def test_a_head_that_drifts_is_followed_farther_than_one_step_reaches(still_faces):
    onset = still_faces[CLIPS[2]][0]
    reference = np.ascontiguousarray(onset.transpose(1, 2, 0))
    stabilizer = Stabilizer(reference)
    for step in range(1, 7):
        true = similarity(SIZE, (8.0 * step, 0), 3.0 * step, 1.0)
        found = stabilizer.find(np.ascontiguousarray(seen_moved(onset, true).transpose(1, 2, 0)))
        assert found.failure is None
        assert errors(found.transform, true, CLIPS[2].displacement(CLIPS[2].apex, SIZE))[0] < 0.3


@pytest.mark.parametrize("what", ["noise", "one grey", "another face", "upside down"])
def test_a_frame_without_the_face_is_left_and_the_reason_given(still_faces, what):
    onset = still_faces[CLIPS[0]][0]
    other = {
        "noise": np.random.default_rng(0).integers(0, 255, onset.shape, dtype=np.uint8),
        "one grey": np.full_like(onset, 100),
        "another face": still_faces[CLIPS[1]][0],
        "upside down": onset[:, ::-1, ::-1],
    }[what]
    laid, (_, failure, again) = stabilized(np.stack([onset, other, onset]))
    assert "35% must" in failure
    assert np.array_equal(laid[1], other)
    assert again is None  # the next frame is followed as before


def test_a_head_out_of_reach_is_said_to_be(still_faces):
    reference = np.ascontiguousarray(still_faces[CLIPS[2]][0].transpose(1, 2, 0))
    stabilizer = Stabilizer(reference, Box(32, 32, 64))
    far = np.array([[1.0, 0, 40], [0, 1, 0]])
    failure = stabilizer._failure((far, 1.0))
    assert "farther than it is followed: 62% of its width, 0°, 1.00 times" in failure


def test_a_frame_of_another_size_is_left_and_the_sizes_given():
    stabilizer = Stabilizer(np.zeros((64, 64, 3), np.uint8))
    small = np.zeros((32, 64, 3), np.uint8)
    laid, found = stabilizer(small)
    assert laid is small
    assert found.failure == "it has 64×32 pixels and the reference 64×64"


class Shown:
    """A clip of two given frames."""

    name, fps = "shown", 30.0

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def read(self, indices, size):
        return self.frames[list(indices)]


def test_pairs_are_laid_over_each_other_and_one_that_cannot_be_is_told(still_faces):
    onset, apex = still_faces[CLIPS[0]]
    moved = seen_moved(apex, similarity(SIZE, (4, 3), 2, 1.0))
    pair = FramePairs([Shown(np.stack([onset, moved]))], SIZE, flip=False, stabilize=True)[0]
    assert np.array_equal(pair["frames"], onset)
    assert np.array_equal(pair["later"], stabilized(np.stack([onset, moved]))[0][1])
    assert pair["problems"] == []
    grey = FramePairs([Shown(np.stack([onset, np.full_like(onset, 90)]))], SIZE, flip=False, stabilize=True)[
        0
    ]
    assert (grey["later"] == 90).all()
    (problem,) = grey["problems"]
    assert problem.path == "shown frames 0 and 1"
    assert problem.reason.startswith("left as they are: ")


def test_runs_of_a_shard_are_laid_over_their_first_frame(still_faces, tmp_path):
    onset, apex = still_faces[CLIPS[0]]
    frames = [onset, *(seen_moved(apex, similarity(SIZE, (x, 3), 1, 1.0)) for x in (2, 4))]
    frames = np.stack([*frames, np.full_like(onset, 90), *[onset] * 8])
    folder = write_images(tmp_path / "clip", frames)
    left = {}
    for on in (True, False):
        out = tmp_path / str(on)
        written = write_shards(
            [folder], out, ShardConfig(size=SIZE, stabilize=on), workers=1, console=Console(quiet=True)
        )
        assert written.frames == 12
        assert [p.reason.split(":")[0] for p in written.problems] == [
            "from frame 3 on, some are left as they are"
        ] * on
        ((run, *_), _) = read_shard(find_shards([out])[0])
        pair = [decode_image(run.frames[i], SIZE)[:, 32:-32, 32:-32].astype(float) for i in (1, 2)]
        left[on] = np.abs(pair[0] - pair[1]).mean()
    assert left[True] < 0.5 * left[False]
