"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .models.micron_bert import MicronBERT
from .models.official.micron_bert import load_official
from .recognizers.micron_bert import Recognizer

_Model = TypeVar("_Model", MicronBERT, Recognizer)


def load_model(name: str) -> MicronBERT:
    """A pre-trained model for inference: a folder, ``hf://owner/name`` of the hub, or a checkpoint of the authors' (a
    file).

    Raises:
        FileNotFoundError: there is no such file or folder, or no such model on the hub that can be reached.
        ValueError: it holds another kind of model, or not all of its weights, or the file is no such checkpoint.
    """
    if Path(name).is_file():
        return load_official(Path(name)).eval()
    return _say_who_writes(
        lambda: MicronBERT.from_pretrained(name), "`micron demo` and `micron pretrain` write one"
    )


def load_recognizer(name: str) -> Recognizer:
    """A recognizer for inference, from a folder or, ``hf://owner/name``, from the hub.

    Raises:
        FileNotFoundError: there is no such folder, or no such recognizer on the hub that can be reached.
        ValueError: it holds another kind of model, or not all of its weights.
    """
    return _say_who_writes(lambda: Recognizer.from_pretrained(name), "`micron finetune` writes one")


def _say_who_writes(load: Callable[[], _Model], who: str) -> _Model:
    try:
        return load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {who}") from None
