"""Frames in: clips from folders, videos or synthesis, and the pairs that pre-training draws from them."""

from .frames import Clip, FrameError, Problem, find_clips, read_image
from .pairs import FramePairs
from .synthetic import SyntheticClip, synthetic_clips

__all__ = [
    "Clip",
    "FrameError",
    "FramePairs",
    "Problem",
    "SyntheticClip",
    "find_clips",
    "read_image",
    "synthetic_clips",
]
