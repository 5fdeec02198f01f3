"""Nuisances: each changes what it says, by as much as it says, and nothing else."""

import cv2
import numpy as np
import pytest

from micron_model.data import SyntheticClip
from micron_model.data.clips import nuisances
from micron_model.data.clips.nuisances import LEVELS, compression, disturb, head_motion, light, sensor_noise


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A frame (3, 64, 64), uint8, of a real photograph."""
    return SyntheticClip(1, "surprise").read([0], 64)[0]


def test_a_level_is_its_nuisances_one_after_the_other(face):
    frames = np.stack([face, face])
    assert np.array_equal(disturb(frames, "none", np.random.default_rng(0)), frames)
    rng = np.random.default_rng(0)
    expected = compression(sensor_noise(light(head_motion(frames, rng), rng), rng), rng)
    got = disturb(frames, "all", np.random.default_rng(0))
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected.round().clip(0, 255))
    assert set(LEVELS["all"]) == {head_motion, light, compression, sensor_noise}


@pytest.mark.parametrize("level", sorted(set(LEVELS) - {"none", "compression"}))
def test_every_frame_has_a_draw_of_its_own_and_a_seed_repeats_it(face, level):
    frames = np.stack([face, face])
    first = disturb(frames, level, np.random.default_rng(3))
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, disturb(frames, level, np.random.default_rng(3)))


def test_an_unknown_level_is_refused_with_the_known_ones(face):
    with pytest.raises(ValueError, match="level='dark' is not one of 'none', 'light'"):
        disturb(face[None], "dark", np.random.default_rng(0))


def test_light_is_a_plane_of_gain_and_an_offset_of_the_deviations_that_it_states():
    frames = np.empty((400, 3, 8, 8))
    frames[:200], frames[200:] = 50.0, 150.0
    rng = np.random.default_rng(0)
    dark, bright = light(frames[:200], rng), light(frames[200:], np.random.default_rng(0))
    gain = (bright - dark) / 100  # the same draws: the offset falls out
    x, y = np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8))
    planes = np.stack([np.ones(64), x.ravel(), y.ravel()], 1)
    fitted, residual, *_ = np.linalg.lstsq(planes, gain[:, 1].reshape(200, 64).T, rcond=None)
    assert residual.max() < 1e-20
    assert np.array_equal(gain[:, 0], gain[:, 2])
    assert fitted.std(1) == pytest.approx([0.1, 0.1, 0.1], rel=0.15)
    assert fitted.mean(1) == pytest.approx([1, 0, 0], abs=0.03)
    assert (dark - 50 * gain).std() == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("size", [64, 96])
def test_the_head_moves_in_pixels_of_a_64_frame_whatever_the_size(size):
    y, x = np.mgrid[:size, :size].astype(float)
    ramps = np.stack([x, y, 0 * x])[None].repeat(40, 0)
    moved = head_motion(ramps, np.random.default_rng(0))
    middle = slice(size // 2 - 1, size // 2 + 1)
    shifts = (moved - ramps)[:, :2, middle, middle].mean((2, 3)) * 64 / size
    assert shifts.std() == pytest.approx(0.5, rel=0.2)
    quarter = slice(size // 4, 3 * size // 4)
    turned = np.gradient(moved[:, 0, quarter, quarter], axis=1).mean((1, 2))  # sin of the angle
    assert turned.std() == pytest.approx(0.005, rel=0.25)


def test_a_still_head_is_left_as_it_is(face):
    assert np.array_equal(head_motion(face[None], np.random.default_rng(0), shift=0, rotation=0)[0], face)


def test_noise_has_the_deviation_that_it_states_and_is_its_own_in_every_channel(face):
    added = sensor_noise(face[None], np.random.default_rng(0)) - face
    assert added.std() == pytest.approx(5, rel=0.03)
    assert abs(np.corrcoef(added[0].reshape(3, -1))[0, 1]) < 0.05


def test_compression_is_what_a_jpeg_of_that_quality_gives_back(face, tmp_path):
    path = str(tmp_path / "face.jpg")
    cv2.imwrite(path, face[::-1].transpose(1, 2, 0), [cv2.IMWRITE_JPEG_QUALITY, 80])
    expected = cv2.imread(path)[:, :, ::-1].transpose(2, 0, 1)
    assert np.array_equal(compression(face[None], np.random.default_rng(0))[0], expected)
    worse = compression(face[None], np.random.default_rng(0), quality=20)[0]
    assert np.abs(worse - face).mean() > 1.5 * np.abs(expected.astype(float) - face).mean()


def test_grey_levels_are_clipped_and_not_wrapped():
    assert nuisances.to_uint8(np.array([-3.0, 254.6, 300.0])).tolist() == [0, 255, 255]
