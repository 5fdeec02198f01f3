"""Frames to files, for the tests."""

import cv2
import numpy as np
from rich.console import Console

from micron_model.data.shards.write import ShardConfig, write_shards


def write_images(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"img{i + 1}.png"), frame.transpose(1, 2, 0)[:, :, ::-1])
    return folder


def write_video(path, frames, fps=30.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, frames.shape[:1:-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame.transpose(1, 2, 0)[:, :, ::-1]))
    writer.release()
    return path


def grey(count, size=24):
    """Frames whose grey level is their number times 3."""
    return np.broadcast_to(
        (np.arange(count, dtype=np.uint8) * 3)[:, None, None, None], (count, 3, size, size)
    )


def write_small_shards(sources, out, *, workers=1, **settings):
    """Shards of frames of 24×24."""
    return write_shards(
        sources, out, ShardConfig(**({"size": 24} | settings)), workers=workers, console=Console(quiet=True)
    )


def read_png(path):
    image = cv2.imread(str(path))
    assert image is not None
    return image
