"""Frames to files, for the tests."""

import cv2
import numpy as np


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
