"""Self-supervised pre-training."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .checkpoint import CheckpointError
    from .config import PretrainConfig
    from .distributed import RankLostError
    from .pretraining import NonFiniteLossError, Stopped, pretrain

_HOMES = {
    "CheckpointError": "checkpoint",
    "NonFiniteLossError": "pretraining",
    "PretrainConfig": "config",
    "RankLostError": "distributed",
    "Stopped": "pretraining",
    "pretrain": "pretraining",
}

__all__ = ["CheckpointError", "NonFiniteLossError", "PretrainConfig", "RankLostError", "Stopped", "pretrain"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
