"""Frames in: clips from folders, videos or synthesis, and the pairs that pre-training draws from them."""

from .frames import Clip, FrameError, Problem, find_clips, read_image
from .pairs import FramePairs
from .shards import ShardPairs, are_shards, find_shards
from .synthetic import SyntheticClip, synthetic_clips

__all__ = [
    "Clip",
    "FrameError",
    "FramePairs",
    "Problem",
    "ShardPairs",
    "SyntheticClip",
    "are_shards",
    "find_clips",
    "find_shards",
    "read_image",
    "synthetic_clips",
]
