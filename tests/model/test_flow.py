"""Optical flow, its images, and frames between frames."""

import cv2
import numpy as np
import pytest

from micron_model.data.clips.flow import between, coded_flow, filled, grey, optical_flow, shares_of_gaps


def _face(shift=(0.0, 0.0), size=96):
    """A smooth texture (3, S, S), moved right and down by ``shift`` pixels."""
    x, y = np.meshgrid(np.arange(size) - shift[0], np.arange(size) - shift[1])
    planes = [np.sin(x / 5 + k) + np.cos(y / 7 - k) + np.sin((x + y) / 11) for k in range(3)]
    return np.stack([127 + 40 * p for p in planes]).round().astype(np.uint8)


def test_flow_is_right_and_down_in_pixels():
    flow = optical_flow(grey(_face()), grey(_face((1.5, -0.75))))
    inner = flow[20:-20, 20:-20]
    np.testing.assert_allclose(inner.mean((0, 1)), [1.5, -0.75], rtol=0.1)


def test_grey_weighs_red_as_red():
    image = np.zeros((3, 2, 2), np.uint8)
    image[0] = 255
    assert grey(image)[0, 0] == 76  # 0.299 · 255


def test_direction_is_hue_and_length_is_value():
    flow = np.zeros((2, 3, 2), np.float32)
    flow[0] = [[1, 0], [0, 2], [-4, 0]]
    hsv = cv2.cvtColor(np.ascontiguousarray(coded_flow(flow).transpose(1, 2, 0)), cv2.COLOR_RGB2HSV)
    assert hsv[0, :, 2].tolist() == [63, 127, 255]
    np.testing.assert_allclose(hsv[0, :, 0], [0, 45, 90], atol=1)
    assert not hsv[1, :, 2].any()
    assert not coded_flow(np.full((2, 2, 2), 3, np.float32)).any()


def test_the_middle_of_a_movement_is_between_its_ends():
    first, second = _face(), _face((4, 2))
    middle = between(first, second, 0.25).astype(float)
    expected = _face((1, 0.5)).astype(float)
    error = np.abs(middle - expected)[:, 12:-12, 12:-12].mean()
    mixed = np.abs(0.75 * first + 0.25 * second - expected)[:, 12:-12, 12:-12].mean()
    assert error < 1
    assert error < 0.5 * mixed


@pytest.mark.parametrize(
    ("there", "gaps"),
    [
        (10, [0, 0, 0, 0, 0, 1, 0, 0, 0]),
        (8, [0, 0, 0, 1, 1, 1, 0]),
        (6, [1] * 5),
        (4, [2, 2, 3]),
        (2, [9]),
        (11, [0] * 10),
    ],
)
def test_frames_are_inserted_into_the_gaps_in_the_middle(there, gaps):
    assert shares_of_gaps(there, 11) == gaps


def test_real_frames_stay_as_they_are():
    frames = np.stack([_face((0.3 * i, 0)) for i in range(4)])
    result = filled(frames, 11)
    assert result.shape == (11, 3, 96, 96)
    assert all(np.array_equal(result[at], frame) for at, frame in zip((0, 3, 6, 10), frames, strict=True))
    with pytest.raises(ValueError, match="1 frame has no neighbour"):
        filled(frames[:1], 11)
