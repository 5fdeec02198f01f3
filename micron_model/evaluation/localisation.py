"""Where did a face move? Pairs of known movement under nuisances, plain means that answer, and how well a map does.

A map has a number a patch, high where the face moved. It is judged within each pair, by its AUROC against the quarter
of the patches that truly moved most: the mean over the pairs of a face, then over faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from micron_kernels import frame_difference, topk_mask

from ..data.clips.faces import inside_outline
from ..data.clips.flow import flow_less_median, grey
from ..data.clips.nuisances import LEVELS, disturb
from ..data.clips.stabilize import stabilized
from ..data.clips.synthetic import SyntheticClip
from ..models.micron_bert import MicronBERT
from ..models.vit import patchify
from .swaps import auroc

#: The mean AUROC over the pairs of each face.
OfFaces = dict[str, float]


@dataclass(frozen=True)
class MovedPairs:
    """Onset and apex of clips of known movement, under the nuisances of one level, drawn for each frame."""

    as_they_are: np.ndarray
    """(B, 2, 3, S, S), uint8, RGB."""
    registered: np.ndarray
    """The same, each apex laid over its onset; as it is where that failed."""
    faces: list[str]
    """Whose each pair is."""
    moved: np.ndarray
    """How far each patch moved (B, N), in pixels."""
    inside: np.ndarray
    """Which patches (B, N) are inside the outline of the face, bool."""
    patch_size: int
    left: int
    """How many could not be laid over each other."""

    @classmethod
    def make(
        cls, clips: Mapping[str, Sequence[SyntheticClip]], level: str, size: int, patch_size: int
    ) -> MovedPairs:
        """Of the clips of each face; every level has a seed of its own.

        Raises:
            ValueError: there is no such level.
        """
        rng = np.random.default_rng(list(LEVELS).index(level) if level in LEVELS else 0)
        flat = [(face, clip) for face, of_face in clips.items() for clip in of_face]
        pairs = np.stack([disturb(c.read([c.onset, c.apex], size), level, rng) for _, c in flat])
        laid = [stabilized(pair) for pair in pairs]
        moved = np.stack([c.moved(c.onset, c.apex, size, patch_size) for _, c in flat])
        inside = np.stack([inside_outline(c.box(size), size, patch_size).numpy().ravel() for _, c in flat])
        left = sum(failures[1] is not None for _, failures in laid)
        registered = np.stack([pair for pair, _ in laid])
        return cls(pairs, registered, [face for face, _ in flat], moved, inside, patch_size, left)

    def outlined(self, values: np.ndarray) -> np.ndarray:
        """Maps (B, N) with what lies outside the outline of a face as low as their lowest."""
        return np.where(self.inside, values, values.min(1, keepdims=True))

    def judged(self, values: np.ndarray) -> OfFaces:
        """AUROC of maps (B, N), the mean over the pairs of each face."""
        most = topk_mask(torch.from_numpy(self.moved).float(), 0.25)[0].numpy()
        found = [auroc(v, m) for v, m in zip(values, most, strict=True)]
        return {
            face: float(np.mean([a for a, f in zip(found, self.faces, strict=True) if f == face]))
            for face in dict.fromkeys(self.faces)
        }


def _pooled(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    rows, columns = (side // patch_size for side in pixels.shape)
    return pixels.reshape(rows, patch_size, columns, patch_size).mean((1, 3)).ravel()


def difference(pairs: np.ndarray, patch_size: int) -> np.ndarray:
    """Mean absolute difference of grey levels."""
    onset, apex = torch.from_numpy(pairs).unbind(1)
    return frame_difference(apex, onset, patch_size).numpy()


def patch_normalized_difference(pairs: np.ndarray, patch_size: int) -> np.ndarray:
    """Mean absolute difference of patches, each less its mean and over its deviation."""

    def normalized(frames: torch.Tensor) -> torch.Tensor:
        patches = patchify(frames.double(), patch_size)
        variance, mean = torch.var_mean(patches, 2, keepdim=True)
        return (patches - mean) / variance.sqrt().clamp(min=1e-3)

    onset, apex = torch.from_numpy(pairs).unbind(1)
    return (normalized(apex) - normalized(onset)).abs().mean(2).numpy()


def farneback(pairs: np.ndarray, patch_size: int) -> np.ndarray:
    """Mean length of Farnebäck's flow less its median."""
    lengths = (np.linalg.norm(flow_less_median(*pair), axis=0) for pair in pairs)
    return np.stack([_pooled(length, patch_size) for length in lengths])


def dis(pairs: np.ndarray, patch_size: int) -> np.ndarray:
    """The same of DIS (Kroeger et al., ECCV 2016)."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    maps = []
    for onset, apex in pairs:
        flow = method.calc(grey(onset), grey(apex), None)  # type: ignore[call-overload]
        maps.append(_pooled(np.linalg.norm(flow - np.median(flow, (0, 1)), axis=2), patch_size))
    return np.stack(maps)


#: Maps (B, N) of pairs (B, 2, 3, S, S), uint8, for patches of a side in pixels.
PLAIN: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "difference": difference,
    "patch-normalised difference": patch_normalized_difference,
    "Farnebäck flow": farneback,
    "DIS flow": dis,
}


@torch.no_grad()
def micro_attention(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    """The map (B, N) of a model in evaluation mode, of pairs (B, 2, 3, S, S), uint8."""
    onset, apex = torch.from_numpy(pairs).to(model.mean.device).unbind(1)
    return model.movement_map(*model.encode_pair(onset, apex)).cpu().numpy()


def interval(values: Sequence[OfFaces]) -> tuple[float, float, float]:
    """Mean over repetitions and faces, and its 95 % interval of a bootstrap over faces."""
    of_faces = np.mean([list(v.values()) for v in values], 0)
    draws = np.random.default_rng(0).choice(of_faces, (4000, len(of_faces))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return float(of_faces.mean()), low, high
