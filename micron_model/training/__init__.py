"""Self-supervised pre-training."""

from .checkpoint import CheckpointError
from .config import PretrainConfig
from .distributed import RankLostError
from .pretraining import NonFiniteLossError, Stopped, pretrain

__all__ = ["CheckpointError", "NonFiniteLossError", "PretrainConfig", "RankLostError", "Stopped", "pretrain"]
