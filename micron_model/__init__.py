"""Micro-expression recognition: networks, recognizers, their trainers, honest evaluation, pictures and command line.

Names are imported when they are first asked for, so that ``import micron_model`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .evaluation.config import EvaluateConfig
    from .evaluation.evaluator import evaluate, inputs_of
    from .evaluation.task import finetune, load_task
    from .loading import load_model, load_recognizer
    from .models.config import MicronBERTConfig, preset
    from .models.micron_bert import EncoderState, MicronBERT
    from .models.official.micron_bert import load_official
    from .models.official.slstt import load_official_slstt
    from .models.official.vit import import_timm_vit
    from .models.slstt import SLSTT, SLSTTConfig
    from .prediction import predict
    from .training.config import PretrainConfig
    from .training.pretraining import pretrain

_HOMES = {
    "EncoderState": "models.micron_bert",
    "EvaluateConfig": "evaluation.config",
    "MicronBERT": "models.micron_bert",
    "MicronBERTConfig": "models.config",
    "PretrainConfig": "training.config",
    "SLSTT": "models.slstt",
    "SLSTTConfig": "models.slstt",
    "evaluate": "evaluation.evaluator",
    "finetune": "evaluation.task",
    "import_timm_vit": "models.official.vit",
    "inputs_of": "evaluation.evaluator",
    "load_model": "loading",
    "load_official": "models.official.micron_bert",
    "load_official_slstt": "models.official.slstt",
    "load_recognizer": "loading",
    "load_task": "evaluation.task",
    "predict": "prediction",
    "preset": "models.config",
    "pretrain": "training.pretraining",
}

__all__ = [
    "SLSTT",
    "EncoderState",
    "EvaluateConfig",
    "MicronBERT",
    "MicronBERTConfig",
    "PretrainConfig",
    "SLSTTConfig",
    "evaluate",
    "finetune",
    "import_timm_vit",
    "inputs_of",
    "load_model",
    "load_official",
    "load_official_slstt",
    "load_recognizer",
    "load_task",
    "predict",
    "preset",
    "pretrain",
]


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
