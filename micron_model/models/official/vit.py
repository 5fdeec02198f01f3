"""Vision transformers under timm's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from ...safe_load import safe_load
from ...saved_model import check_finite, differences
from ..slstt import SLSTT, SLSTTConfig, SpatialEncoder

HUB = "hf://"
_RENAMED = {"cls_token": "class_token", "pos_embed": "positions"}


def config_of(tensors: Mapping[str, Tensor], path: Path) -> SLSTTConfig:
    """The sizes of the spatial encoder that timm's tensors imply; heads are of width 64, as in every plain ViT.

    Raises:
        ValueError: they are not those of a plain vision transformer.
    """
    try:
        positions, embedding = tensors["pos_embed"], tensors["patch_embed.proj.weight"]
        hidden, width = tensors["blocks.0.mlp.fc1.weight"].shape
        grid = round((positions.shape[1] - 1) ** 0.5)
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        if positions.shape != (1, 1 + grid**2, width) or embedding.shape[:2] != (width, 3) or width % 64:
            raise ValueError(
                f"{path}: positions of shape {tuple(positions.shape)} and a patch embedding of shape "
                f"{tuple(embedding.shape)} are not those of a plain vision transformer with heads of width 64"
            )
    except KeyError as error:
        raise ValueError(
            f"{path}: {error.args[0]} is missing: not the weights of a plain vision transformer"
        ) from None
    return SLSTTConfig(
        image_size=grid * embedding.shape[-1],
        patch_size=embedding.shape[-1],
        width=width,
        depth=len(blocks),
        num_heads=width // 64,
        mlp_ratio=hidden / width,
    )


def load_spatial_encoder(encoder: SpatialEncoder, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill ``encoder`` with timm's tensors, all of them but the classifier (``head.*``).

    Raises:
        ValueError: some are missing, of another shape, or unknown; the message lists them.
    """
    state = {}
    for name, tensor in tensors.items():
        if name.startswith("head."):
            continue
        if name == "patch_embed.proj.weight":  # [D, C, P, P] of a convolution to [D, P·P·C]
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        state[_RENAMED.get(name, name).replace("patch_embed.proj.", "patch_embed.")] = tensor
    load_strictly(encoder, state, path)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """``load_state_dict`` that names every tensor that is missing, unknown, of another shape or not finite."""
    state = {name: x.float() for name, x in state.items()}
    listed = differences(module.state_dict(), {name: (tuple(x.shape), "F32") for name, x in state.items()})
    if listed:
        raise ValueError(f"{path}: does not fit: {'; '.join(listed)}")
    check_finite(state, path)
    module.load_state_dict(state)


def _read(source: str | Path) -> tuple[dict[str, Tensor], Path]:
    if isinstance(source, str) and source.startswith(HUB):
        try:
            path = Path(hf_hub_download(source.removeprefix(HUB), "model.safetensors"))
        except OSError as error:
            raise FileNotFoundError(
                f"{source}: not to be had from the hub ({type(error).__name__}); give the path of a file instead"
            ) from None
    else:
        path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; of the hub, give {HUB}owner/name")
    if path.suffix != ".safetensors":
        content = safe_load(path)
        return {
            str(name): x for name, x in content.get("model", content).items() if isinstance(x, Tensor)
        }, path
    try:
        return safetensors.torch.load_file(path), path
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: is no safetensors file, or damaged ({error})") from None


def import_timm_vit(source: str | Path, config: SLSTTConfig | None = None) -> SLSTT:
    """An SLSTT whose spatial encoder has the weights of a timm vision transformer; the rest is random.

    The published SLSTT starts from Google's ViT-B/16 at 384², ImageNet-21k then 1k: timm's
    ``vit_base_patch16_384.orig_in21k_ft_in1k`` (not ``augreg``).

    Args:
        source: a safetensors file or a checkpoint (``.pth``) of timm's names, read without running anything in it; or
            ``hf://owner/name`` for the hub.
        config: settings of everything but the spatial encoder, whose sizes the tensors imply.

    Returns:
        The network in evaluation mode, with exact GELU, which is timm's.

    Raises:
        FileNotFoundError: there is no such file, or the hub does not have it or cannot be reached.
        ValueError: it does not hold the weights of a plain vision transformer; every misfit is named.
    """
    tensors, path = _read(source)
    implied = config_of(tensors, path)
    sizes = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_ratio")
    network = SLSTT(
        replace(config or SLSTTConfig(), gelu="exact", **{name: getattr(implied, name) for name in sizes})
    )
    assert isinstance(network.encoder, SpatialEncoder)
    load_spatial_encoder(network.encoder, tensors, path)
    return network.eval()
