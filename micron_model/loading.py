"""Models by name."""

from __future__ import annotations

from pathlib import Path

from .micron_bert import MicronBERT
from .official import load_official


def load_model(name: str) -> MicronBERT:
    """A model for inference: from a folder, from the hub, or a checkpoint of the authors' (a file).

    Raises:
        FileNotFoundError: there is no such file or folder, and no such model on the hub that can be reached.
        ValueError: the file is no such checkpoint.
    """
    if Path(name).is_file():
        return load_official(Path(name)).eval()
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name}: holds no config.json, so it is no folder of a model")
    try:
        return MicronBERT.from_pretrained(name).eval()
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r}: no such folder, and not to be had from the hub ({type(error).__name__}). `micron demo` "
            "and `micron pretrain` write one"
        ) from None
