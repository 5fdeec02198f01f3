"""Import of SLSTT checkpoints in the layout of the authors' public code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...safe_load import safe_load
from ..slstt import SLSTT, SpatialEncoder
from .vit import config_of, load_spatial_encoder, load_strictly

_RENAMED = {
    "vit.class_token": "cls_token",
    "vit.positional_embedding.pos_embedding": "pos_embed",
    "vit.patch_embedding.": "patch_embed.proj.",
    "vit.norm.": "norm.",
    "vit.fc.": "head.",
}
#: Within a block; their attention has its output projection outside.
_IN_BLOCK = {"proj.": "attn.proj.", "pwff.": "mlp.", "norm1.": "norm1.", "norm2.": "norm2."}
_BLOCK = re.compile(r"vit\.transformer\.blocks\.(\d+)\.(.*)")
_QKV = re.compile(r"attn\.proj_([qkv])\.(weight|bias)")
#: The best score of an epoch may be one of numpy's numbers; numpy 1 has its maker elsewhere.
_SCALAR = type(np.float64(0)).__reduce__(np.float64(0))[0]
_NUMPY = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


def _timm_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the vision transformer under timm's names, all else under theirs)."""
    vit, rest = {}, {}
    qkv: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        part = _QKV.fullmatch(block[2]) if block else None
        prefix = next((p for p in _RENAMED if name.startswith(p)), None)
        within = next((p for p in _IN_BLOCK if block and block[2].startswith(p)), None)
        if block and part:
            qkv.setdefault(f"blocks.{block[1]}.attn.qkv.{part[2]}", {})[part[1]] = tensor
        elif block and within:
            vit[f"blocks.{block[1]}.{_IN_BLOCK[within]}{block[2][len(within) :]}"] = tensor
        elif prefix:
            vit[_RENAMED[prefix] + name[len(prefix) :]] = tensor
        else:
            rest[name] = tensor
    for name, parts in qkv.items():
        if parts.keys() == set("qkv"):
            vit[name] = torch.cat([parts[letter] for letter in "qkv"])
        else:
            rest |= {f"{name} of {letter}": tensor for letter, tensor in parts.items()}
    return vit, rest


def load_official_slstt(path: str | Path, **overrides: Any) -> SLSTT:
    """Read a checkpoint of the authors' public code.

    The layout: ``{"state_dict": …}`` beside an epoch, scores and the optimiser's state, or a bare state dict, with keys
    ``vit.*``, ``lstm.*``, ``fc1.*`` and ``fc2.*``, each with or without ``module.`` in front. The file is read by a
    restricted unpickler: tensors, plain data and numpy's numbers, nothing else; only the state dict is used.

    Args:
        path: the file.
        overrides: settings of :class:`SLSTTConfig` that replace what the file implies. ``aggregator`` is "lstm" where
            the file has one; "mean" takes the transformer's own classifier (``vit.fc``).

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds anything but data, or is not of this layout; every misfit is named.
    """
    path = Path(path)
    content = safe_load(path, allow=_NUMPY)
    stored = content.get("state_dict", content)
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: 'state_dict' must be a dictionary of tensors")
    tensors = {str(name).removeprefix("module."): x for name, x in stored.items() if isinstance(x, Tensor)}
    vit, rest = _timm_names(tensors)
    config = replace(config_of(vit, path), aggregator="lstm" if "fc2.bias" in rest else "mean")
    if "fc2.bias" in rest:
        layers = {name for name in rest if name.startswith("lstm.weight_hh_l")}
        lstm_width = rest["fc1.weight"].shape[1] if "fc1.weight" in rest else config.lstm_width
        config = replace(
            config,
            lstm_width=lstm_width,
            lstm_layers=max(1, len(layers)),
            head_width=rest["fc2.weight"].shape[1] if "fc2.weight" in rest else config.head_width,
        )
    config = replace(config, **overrides)
    head = "fc2.bias" if config.aggregator == "lstm" else "head.bias"
    classes = {**vit, **rest}.get(head)
    if classes is None:
        raise ValueError(
            f"{path}: aggregator={config.aggregator!r} needs {head}, which the file does not have"
        )
    network = SLSTT(replace(config, classes=len(classes)))
    assert isinstance(network.encoder, SpatialEncoder)
    load_spatial_encoder(network.encoder, vit, path)
    if config.aggregator == "mean":
        aggregator = {name.replace("head.", "fc."): x for name, x in vit.items() if name.startswith("head.")}
        rest = {name: x for name, x in rest.items() if not name.startswith(("lstm.", "fc1.", "fc2."))}
    else:
        aggregator = {}
    load_strictly(network.aggregator, aggregator | rest, path)
    return network.eval()
