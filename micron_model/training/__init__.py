"""Self-supervised pre-training."""

from .checkpoint import CheckpointError
from .pretrain import NonFiniteLossError, PretrainConfig, Stopped, pretrain

__all__ = ["CheckpointError", "NonFiniteLossError", "PretrainConfig", "Stopped", "pretrain"]
