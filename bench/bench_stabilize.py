"""A clip of 224×224 laid over its first frame, against its own duration at 200 frames a second."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from micron_model.data import SyntheticClip
from micron_model.data.clips.stabilize import Stabilizer, look_up

SIZE, FPS = 224, 200.0


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    """Forty frames (SIZE, SIZE, 3) of a face that moves, on a head that sways by up to 8 pixels."""
    face = SyntheticClip(1000, "happiness")
    images = np.ascontiguousarray(face.read(range(40), SIZE).transpose(0, 2, 3, 1))
    sway = [8 * np.sin(i / 15) for i in range(40)]
    return [look_up(f, np.array([[1.0, 0, x], [0, 1, x / 2]])) for f, x in zip(images, sway, strict=True)]


def test_a_clip_of_200_frames_a_second_is_laid_over_its_first_frame_faster_than_it_lasts(
    clip, request, capsys
):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rounds = 9 if request.config.getoption("--benchmark", default=False) else 1
        milliseconds = []
        for _ in range(rounds):
            stabilizer = Stabilizer(clip[0])
            started = time.perf_counter()
            failures = [stabilizer(image)[1].failure for image in clip[1:]]
            milliseconds.append(1e3 * (time.perf_counter() - started) / (len(clip) - 1))
            assert failures == [None] * (len(clip) - 1)
    finally:
        cv2.setNumThreads(threads)
    if rounds > 1:
        median = float(np.median(milliseconds))
        with capsys.disabled():
            print(
                f"\nstabilize, one thread: {median:.2f} ms a frame of {SIZE}×{SIZE}, {1e3 / median:.0f} frames a second"
            )
        assert median < 1e3 / FPS
