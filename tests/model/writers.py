"""Frames to files, for the tests."""

import struct

import cv2
import numpy as np
from rich.console import Console

from micron_model.data.shards.write import ShardConfig, write_shards


def write_images(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"img{i + 1}.png"), frame.transpose(1, 2, 0)[:, :, ::-1])
    return folder


def write_video(path, frames, fps=30.0, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, frames.shape[:1:-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame.transpose(1, 2, 0)[:, :, ::-1]))
    writer.release()
    return path


def _boxes(data, start, stop):
    while start < stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, size
        start += size


def vary_rate(path, durations):
    """Give each frame of an mp4 that ``write_video`` wrote a duration of its own, in those of the frames it has."""
    data = bytearray(path.read_bytes())
    at, stop, around = 0, len(data), []
    for wanted in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at, size = next((start, size) for kind, start, size in _boxes(data, at, stop) if kind == wanted)
        around.append(at)
        at, stop = at + 8, at + size
    (unit,) = struct.unpack_from(">I", data, at + 12)
    table = struct.pack(">II", 0, len(durations))
    table += b"".join(struct.pack(">II", 1, unit * duration) for duration in durations)
    for box in around:
        struct.pack_into(">I", data, box, struct.unpack_from(">I", data, box)[0] + len(table) - (stop - at))
    data[at:stop] = table
    struct.pack_into(">I", data, data.index(b"mdhd") + 20, unit * sum(durations))
    at = data.index(b"edts")  # it would cut the video at the duration it had
    data[at : at + 4] = b"free"
    path.write_bytes(data)
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
