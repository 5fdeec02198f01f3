"""Micro-expression recognition: μ-BERT, its self-supervised trainer, pictures and command line."""

from .config import MicronBERTConfig, preset
from .micron_bert import EncoderState, MicronBERT
from .official import load_official

__all__ = ["EncoderState", "MicronBERT", "MicronBERTConfig", "load_official", "preset"]
