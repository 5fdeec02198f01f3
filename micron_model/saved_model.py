"""Models as folders: ``config.json`` and ``model.safetensors``, written whole, believed only where all of it fits."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .limits import check_bytes, open_file, read_json
from .model_card import Training, is_ours, write_card
from .whole_file import write_whole

_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_CONFIG, _WEIGHTS = constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE
_NAMES_OF_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

_Config = TypeVar("_Config")
_Model = TypeVar("_Model", bound="SavedModel")


def find_folder(name: str | Path) -> Path:
    """The folder of a model: a path is a path; ``hf://owner/name`` or ``hf://owner/name@revision`` is of the hub.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no model; or no such model on the hub that can be
            reached.
    """
    asked = _HUB.fullmatch(name) if isinstance(name, str) else None
    if asked:
        try:
            wanted = [_CONFIG, _WEIGHTS, "corpus.json"]
            return Path(snapshot_download(asked[1], revision=asked[2], allow_patterns=wanted))
        except OSError as error:
            raise FileNotFoundError(f"{name}: not to be had from the hub ({type(error).__name__})") from None
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: no such folder. A model of the Hugging Face hub is named hf://owner/name"
        )
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{name}: holds no {file}, so it is no folder of a model")
        open_file(
            folder / file
        ).close()  # who may not read it is told so; safetensors says that it is not there
    return folder


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value that JSON gave is of the type of a setting."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, k) for k in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        every = inner[:1] * len(value) if isinstance(value, list) and inner[-1:] == (...,) else inner
        return (
            isinstance(value, list)
            and len(value) == len(every)
            and all(_fits(v, k) for v, k in zip(value, every, strict=True))
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else value is None


def read_settings(kind: type[_Config], found: Any, where: str | Path) -> _Config:
    """A dataclass of settings from what JSON gave: each setting there, of its type, and no other.

    Raises:
        ValueError: names the settings that are not so.
    """
    hints = typing.get_type_hints(kind)
    default_of = {f.name: f.default for f in dataclasses.fields(typing.cast(Any, kind))}
    names = list(default_of)
    if not isinstance(found, dict):
        raise ValueError(f"{where}: holds a {type(found).__name__}; settings are an object")
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    usual = {name: default_of[name] for name in missing if default_of[name] is not dataclasses.MISSING}
    if missing and not unknown and len(usual) == len(missing):
        raise ValueError(
            f"{where}: settings missing: {', '.join(missing)}. If a version that did not know them saved it, add to "
            f"the file what they are by default ({json.dumps(usual)[1:-1]}), or train it anew"
        )
    if missing or unknown:
        what = kind.__name__.removesuffix("Config").lower()
        raise ValueError(
            f"{where}: holds another kind of model, no {what}: settings missing: {', '.join(missing) or 'none'}; not "
            f"known: {', '.join(map(repr, unknown)) or 'none'}"
        )
    values: dict[str, Any] = {}
    for name in names:
        inner = [x for x in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(x)]
        if inner and not (found[name] is None and _fits(None, hints[name])):
            values[name] = read_settings(typing.cast(type, inner[0]), found[name], where)
        elif _fits(found[name], hints[name]):
            values[name] = found[name]
        else:
            raise ValueError(f"{where}: {name} is {found[name]!r:.80}; it must be {hints[name]}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _depths(config: Any) -> int:
    """Blocks that settings state, of which each has tensors of its own."""
    total = 0
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            total += _depths(value)
        elif field.name.endswith("depth"):
            total += value
    return total


def name_of(dtype: torch.dtype) -> str:
    """As safetensors writes it."""
    return _NAMES_OF_TYPES.get(dtype, str(dtype))


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """How tensors, given by shape and type, are not those of a model; every name."""
    listed = []
    if missing := [name for name in wanted if name not in found]:
        listed.append(f"missing: {', '.join(missing)}")
    if unexpected := [name for name in found if name not in wanted]:
        listed.append(f"unexpected: {', '.join(unexpected)}")
    for name in wanted.keys() & found.keys():
        (shape, dtype), tensor = found[name], wanted[name]
        if shape != tuple(tensor.shape):
            listed.append(f"{name} has the shape {shape}, not {tuple(tensor.shape)}")
        if dtype != name_of(tensor.dtype):
            listed.append(f"{name} is {dtype}, not {name_of(tensor.dtype)}")
    return sorted(listed)


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises ValueError that names the tensors with NaN or infinity."""
    bad = [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if bad:
        raise ValueError(f"{path}: holds NaN or infinity in {', '.join(bad)}")


def _outline(path: Path, config: Any, build: Callable[[Any], _Model]) -> _Model:
    """The model without memory for its tensors."""
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path.parent / _CONFIG}: no model can be made of these settings ({reason})"
        ) from None


def _load(path: Path, config: Any, build: Callable[[Any], _Model]) -> _Model:
    """The model of ``config`` with the tensors in ``path``; nothing of their size is made before they fit it."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            stated = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in found.items()}
            if _depths(config) > len(stated):
                raise ValueError(
                    f"{path}: holds {len(stated)} tensors, fewer than the {_depths(config)} blocks that its "
                    "settings state"
                )
            outline = _outline(path, config, build)
            if listed := differences(outline.state_dict(), stated):
                raise ValueError(f"{path}: does not hold the weights of this model: {'; '.join(listed)}")
            held = [*outline.parameters(), *outline.buffers()]
            check_bytes(sum(x.numel() * x.element_size() for x in held), f"{path}: the model of its settings")
            tensors = {name: file.get_tensor(name) for name in stated}
    except SafetensorError as error:
        raise ValueError(f"{path}: is damaged, or no file of safetensors ({error})") from None
    check_finite(tensors, path)
    model = build(config)
    model.load_state_dict(tensors)
    return model


class SavedModel(nn.Module, PyTorchModelHubMixin):
    """A module whose one argument is a dataclass of settings, ``config``; saved in a folder, pushed to the hub."""

    config: Any

    @classmethod
    def _config_class(cls) -> type:
        return typing.get_type_hints(cls.__init__)["config"]

    @classmethod
    def from_pretrained(cls: type[_Model], pretrained_model_name_or_path: str | Path) -> _Model:  # type: ignore[override]
        """The model in a folder, or of the hub (``hf://owner/name``, ``hf://owner/name@revision``), for inference.

        Raises:
            FileNotFoundError: there is no such folder or model.
            ValueError: settings or weights are damaged, not all there, not finite, or those of another model.
            TooLarge: the model would take more memory than ``MICRON_MAX_BYTES``, or half of what is free.
        """
        folder = find_folder(pretrained_model_name_or_path)
        path = folder / _CONFIG
        found = read_json(path)
        try:
            config: Any = read_settings(cls._config_class(), found, path)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from None
        return _load(folder / _WEIGHTS, config, cls).eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        training: Training | None = None,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Write the model into a folder: weights, a card, settings; each file whole or not at all.

        Args:
            save_directory: the folder. A card (``README.md``) that a person wrote there is left as it is.
            training: what the card says of how the model came to be.
            config: as the hub's library passes it on; the model's own settings are what is written.
            model_card_kwargs: as the hub's library passes it on; the card is ours.

        Raises:
            ValueError: the model has other tensors than one of its settings, which could not be loaded again.
            RuntimeError: a file cannot be written; it is named.
        """
        folder = Path(save_directory)
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        outline = _outline(folder / _CONFIG, self.config, type(self))
        held = {name: (tuple(x.shape), name_of(x.dtype)) for name, x in tensors.items()}
        if listed := differences(outline.state_dict(), held):
            raise ValueError(
                f"{folder}: this {type(self).__name__} cannot be saved: {'; '.join(listed)}. Save a model before "
                "fold() or a change of its dtype; both are done again after it is loaded"
            )
        write_whole(folder / _WEIGHTS, save(tensors, metadata={"format": "pt"}))
        if is_ours(folder / "README.md"):
            parameters = sum(x.numel() for x in self.parameters())
            card = write_card(type(self).__name__, self.config, parameters, training or Training())
            write_whole(folder / "README.md", card)
        # Last: a folder without settings is no model.
        write_whole(folder / _CONFIG, json.dumps(dataclasses.asdict(self.config), indent=2, sort_keys=True))
