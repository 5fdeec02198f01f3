"""Frames in: clips from folders, videos or synthesis, and the pairs that pre-training draws from them."""

from .clips.find import find_clips
from .clips.frames import Clip, FrameError, Problem, read_image
from .clips.pairs import FramePairs
from .clips.synthetic import SyntheticClip, synthetic_clips
from .shards.read import ShardPairs, are_shards, find_shards

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
