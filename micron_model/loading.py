"""Models by name."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TypeVar

from .models.micron_bert import MicronBERT
from .models.official.micron_bert import load_official
from .recognizers.micron_bert import Recognizer

_Model = TypeVar("_Model", MicronBERT, Recognizer)


def load_model(name: str) -> MicronBERT:
    """A pre-trained model for inference: from a folder, from the hub, or a checkpoint of the authors' (a file).

    Raises:
        FileNotFoundError: there is no such file or folder, and no such model on the hub that can be reached.
        ValueError: it holds another kind of model, or the file is no such checkpoint.
    """
    if Path(name).is_file():
        return load_official(Path(name)).eval()
    return _load(MicronBERT, name, "model", "`micron demo` and `micron pretrain` write one")


def load_recognizer(name: str) -> Recognizer:
    """A recognizer for inference, from a folder or from the hub.

    Raises:
        FileNotFoundError: there is no such folder, and no such recognizer on the hub that can be reached.
        ValueError: it holds another kind of model.
    """
    return _load(Recognizer, name, "recognizer", "`micron finetune` writes one")


def _load(kind: type[_Model], name: str, what: str, way_out: str) -> _Model:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: holds no config.json, so it is no folder of a {what}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the hub's library says that it loads
            return kind.from_pretrained(name).eval()
    except OSError as error:
        raise FileNotFoundError(
            f"{what} {name!r}: no such folder, and not to be had from the hub ({type(error).__name__}). {way_out}"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: holds another kind of model, no {what} ({error})") from None
