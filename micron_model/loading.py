"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .limits import read_json
from .models.micron_bert import MicronBERT
from .models.official.micron_bert import load_official
from .recognizers.base import BUILT_IN, Recipe, Recognizer, name_of, recipe_class
from .saved_model import find_folder

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


def load_recognizer(name: str | Path, recipe: type[Recipe] | None = None) -> Recognizer:
    """A recognizer of any kind for inference, from a folder or, ``hf://owner/name``, from the hub.

    Args:
        name: the folder, or the name on the hub.
        recipe: that of a recognizer outside this package. A folder may name code, but does not decide that it is run.

    Raises:
        FileNotFoundError: there is no such folder, or no such recognizer on the hub that can be reached.
        ValueError: it holds another kind of model, or not all of its weights, or a recognizer outside this package and
            ``recipe`` is not that.
    """
    return _say_who_writes(lambda: _recognizer_in(find_folder(name), recipe), "`micron finetune` writes one")


def _recognizer_in(folder: Path, recipe: type[Recipe] | None) -> Recognizer:
    path = folder / "config.json"
    said = read_json(path)
    if not isinstance(said, dict):
        raise ValueError(f"{path}: holds a {type(said).__name__}; settings are an object")
    kind = said.get("recognizer")
    if not isinstance(kind, str):
        raise ValueError(f"{path}: holds another kind of model, no recognizer: it names none")
    if recipe is None:
        if kind not in BUILT_IN:
            raise ValueError(
                f"{path}: holds a recognizer of {kind!r}, which is not part of this package, and its code is not run "
                f"unasked: ask for it with --recognizer {kind}, or load_recognizer(…, recipe=…)"
            )
        recipe = recipe_class(kind)
    if name_of(recipe) != kind:
        raise ValueError(f"{path}: holds a recognizer of {kind!r}, not of {name_of(recipe)!r}")
    return recipe.recognizer.from_pretrained(folder)


def _say_who_writes(load: Callable[[], _Model], who: str) -> _Model:
    try:
        return load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {who}") from None
