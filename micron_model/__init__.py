"""Micro-expression recognition: μ-BERT, its self-supervised trainer, pictures and command line."""

from .models.config import MicronBERTConfig, preset
from .models.micron_bert import EncoderState, MicronBERT
from .models.official.micron_bert import load_official

__all__ = ["EncoderState", "MicronBERT", "MicronBERTConfig", "load_official", "preset"]
