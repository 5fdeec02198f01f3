"""Frames in: clips from folders, videos or synthesis, and the pairs that pre-training draws from them."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .clips.find import find_clips
    from .clips.frames import Clip, FrameError, Problem, read_image
    from .clips.pairs import FramePairs
    from .clips.synthetic import SyntheticClip, synthetic_clips
    from .shards.read import ShardPairs, are_shards, find_shards

_HOMES = {
    "Clip": "clips.frames",
    "FrameError": "clips.frames",
    "FramePairs": "clips.pairs",
    "Problem": "clips.frames",
    "ShardPairs": "shards.read",
    "SyntheticClip": "clips.synthetic",
    "are_shards": "shards.read",
    "find_clips": "clips.find",
    "find_shards": "shards.read",
    "read_image": "clips.frames",
    "synthetic_clips": "clips.synthetic",
}

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
