"""Import of checkpoints in the layout of the authors' public code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...limits import check_bytes
from ...safe_load import safe_load
from ...saved_model import check_finite, differences, name_of
from ..config import MicronBERTConfig
from ..micron_bert import MicronBERT
from ..vit import sincos_positions

#: Their names to ours, by prefix. All else in such a checkpoint is a copy (``student.``, ``teacher.``) or belongs
#: to a loss.
_PREFIXES = {
    "backbone.blocks.": "encoder.blocks.",
    "backbone.norm.": "encoder.norm.",
    "backbone.patch_embed.proj.": "encoder.patch_embed.",
    "backbone.cls_token": "encoder.contextual",
    "att.": "micro_attention.",
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.pred.",
}
_POSITIONS = {"backbone.pos_embed": "encoder", "decoder_pos_embed": "decoder"}
_DROPPED = ("student.", "teacher.", "dino_loss_fn.", "fc.")
#: What the checkpoint that was released was trained on, by its authors' word; as the paths of a corpus.
SEEN = ("CASME2",)
_HEADS = {"num_heads": 4, "decoder_num_heads": 4}  # fixed in their code, not in the tensors


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, arguments) of a checkpoint, by an unpickler that builds plain data and Namespaces only."""
    content = safe_load(path, allow=[argparse.Namespace])
    tensors = content.get("model", content)
    arguments = content.get("args", {})
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(tensors, dict) or not isinstance(arguments, dict):
        raise ValueError(
            f"{path}: 'model' must be a dictionary of tensors and 'args' a Namespace or dictionary"
        )
    tensors = {str(name).removeprefix("module."): x for name, x in tensors.items() if isinstance(x, Tensor)}
    return tensors, arguments


def _config(
    tensors: dict[str, Tensor], arguments: dict[str, Any], overrides: dict[str, Any]
) -> MicronBERTConfig:
    """The settings that the shapes of the tensors imply."""

    def depth(prefix: str) -> int:
        blocks = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
        if blocks != {str(i) for i in range(len(blocks))}:
            raise ValueError(f"the blocks under {prefix} are not numbered from 0 on")
        return len(blocks)

    patch_size = round((tensors["decoder_pred.bias"].numel() / 3) ** 0.5)
    grid = round((tensors["backbone.pos_embed"].shape[1] - 1) ** 0.5)
    hidden, width = tensors["backbone.blocks.0.mlp.fc1.weight"].shape
    implied = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth("backbone.blocks."),
        "mlp_ratio": hidden / width,
        "decoder_width": tensors["decoder_embed.weight"].shape[0],
        "decoder_depth": depth("decoder_blocks."),
        **_HEADS,
        "roles": "code",
        "poi": "off",
        "aggregation": "off",
        "diag_att": bool(arguments.get("diag_att", False)),
    }
    return MicronBERTConfig(**(implied | overrides))


def _check_positions(path: Path, name: str, stored: Tensor) -> None:
    """Positions are fixed, so they are not loaded; another formula would silently be another model."""
    grid = round((stored.shape[1] - 1) ** 0.5)
    if not torch.allclose(stored[0, 1:].float(), sincos_positions(stored.shape[2], grid), atol=1e-4):
        raise ValueError(f"{path}: {name} does not hold the fixed sine-cosine positions of μ-BERT")


def load_official(path: str | Path, **overrides: Any) -> MicronBERT:
    """Read a checkpoint of the authors' public code.

    The layout: ``{"model": state dict, "args": Namespace}`` or a bare state dict, with keys ``backbone.*``,
    ``att.*`` and ``decoder_*``, each with or without ``module.`` in front; a convolutional or a linear patch
    embedding. The copies that DINO keeps (``student.*``, ``teacher.*``) are dropped. The file is read by a
    restricted unpickler: tensors, plain data and ``argparse.Namespace``, nothing else.

    Args:
        path: the file.
        overrides: settings of :class:`MicronBERTConfig` that replace what the file implies. By default the
            model computes what the authors' code computes: ``roles="code"``, ``poi="off"``, and ``diag_att``
            as in the stored arguments (False without them).

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds anything but data, or is not of this layout.
    """
    path = Path(path)
    tensors, arguments = _read(path)
    check_finite(tensors, path)
    try:
        return _build(path, tensors, arguments, overrides).eval()
    except KeyError as error:
        raise ValueError(
            f"{path}: {error.args[0]} is missing: not a checkpoint of the authors' layout"
        ) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a checkpoint of the authors' layout ({reason})") from None


def _build(
    path: Path, tensors: dict[str, Tensor], arguments: dict[str, Any], overrides: dict[str, Any]
) -> MicronBERT:
    """The model of a checkpoint's tensors; may raise whatever tensors of other shapes make it stumble over."""
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            state[_PREFIXES[prefix] + name[len(prefix) :]] = tensor
        elif name in _POSITIONS:
            _check_positions(path, name, tensor)
        elif not name.startswith(_DROPPED):
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{path}: keys that are not of the authors' layout: {', '.join(sorted(unknown)[:5])}"
        )
    config = _config(tensors, arguments, overrides)
    with torch.device("meta"):
        outline = MicronBERT(config)
    held = [*outline.parameters(), *outline.buffers()]
    check_bytes(sum(x.numel() * x.element_size() for x in held), f"{path}: the model of its tensors")
    embedding = state.get("encoder.patch_embed.weight")
    if embedding is not None and embedding.dim() == 4:  # [D, C, P, P] of a convolution to [D, P·P·C]
        state["encoder.patch_embed.weight"] = embedding.permute(0, 2, 3, 1).flatten(1)
    wanted = {name: x for name, x in outline.state_dict().items() if not name.startswith("dino.")}
    if listed := differences(wanted, {name: (tuple(x.shape), name_of(x.dtype)) for name, x in state.items()}):
        raise ValueError(f"{path}: does not fit a μ-BERT of its size: {'; '.join(listed)}")
    model = MicronBERT(config)
    model.load_state_dict(state, strict=False)
    if model.dino is not None:  # its teacher copied the weights before they were loaded
        model.dino.teacher_encoder.load_state_dict(model.encoder.state_dict())
    return model
