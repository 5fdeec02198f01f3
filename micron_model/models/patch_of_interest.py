"""Patch of Interest: the crops and the losses that make the contextual token find the face.

The module's scores are one row of the encoder's last attention (see ``vit.Encoder``). What trains them is
L_agg, which pulls the contextual token of a crop to that of the whole frame: by plain MSE (the paper), or by
self-distillation (DINO, Caron et al., ICCV 2021; the authors' code).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from .config import MicronBERTConfig
from .products import Linear, linear
from .vit import Encoder, at_least_fp32


def random_resized_crop(
    frames: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator | None
) -> Tensor:
    """A random square of each frame, resized to ``size`` by bilinear interpolation.

    Args:
        frames: (B, C, H, W), floating.
        size: side of the result in pixels.
        scale: range of the crop's area as a share of the frame's; drawn uniformly.
        generator: source of randomness, on the CPU.

    Returns:
        (B, C, size, size).
    """
    low, high = scale
    batch = frames.shape[0]
    on_cpu: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are
    side = (low + (high - low) * torch.rand(batch, generator=generator, **on_cpu)).sqrt()
    centre = (2 * torch.rand(batch, 2, generator=generator, **on_cpu) - 1) * (1 - side)[:, None]
    theta = torch.zeros(batch, 2, 3, **on_cpu)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = centre
    shape = [batch, frames.shape[1], size, size]
    with torch.autocast(frames.device.type, enabled=False):  # half-precision coordinates would be pixels off
        wide = at_least_fp32(frames)
        grid = F.affine_grid(theta.to(wide), shape, align_corners=False)
        crops = F.grid_sample(wide, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return crops.to(frames.dtype)


def crop_size(config: MicronBERTConfig, share: float) -> int:
    """About ``share`` of the frame's side, in whole patches."""
    return max(1, round(config.grid * share)) * config.patch_size


class DINOHead(nn.Module):
    """Three linear layers, L2 normalisation, and a last layer whose rows have length 1."""

    def __init__(self, in_width: int, hidden: int, bottleneck: int, out: int):
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(in_width, hidden),
            nn.GELU(),
            Linear(hidden, hidden),
            nn.GELU(),
            Linear(hidden, bottleneck),
        )
        self.last = nn.Parameter(torch.empty(out, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.last, dim=-1))


class DINO(nn.Module):
    """Self-distillation of the contextual token over 2 global and several local crops.

    The teacher starts as an exact copy of the student, is never trained by gradients, and follows the student
    as a moving average. Holds the student's head only: the student's encoder stays where it is. The centre follows
    the teacher's outputs of a whole step, over its accumulated batches and over all ranks.
    """

    center: Tensor
    outputs: Tensor
    """Sum of the teacher's outputs since the last :meth:`update_teacher`, and their number, (out + 1,)."""

    def __init__(self, config: MicronBERTConfig, encoder: Encoder):
        super().__init__()
        self.config = config
        self.head = DINOHead(config.width, config.dino_hidden, config.dino_bottleneck, config.dino_out)
        self.teacher_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.dino_out))
        self.register_buffer("outputs", torch.zeros(config.dino_out + 1), persistent=False)

    def forward(self, encoder: Encoder, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        """Cross-entropy (B,) between teacher and student, the mean over all pairs of different crops of a frame."""
        config = self.config
        whole, local = config.image_size, crop_size(config, 3 / 7)  # 96 pixels of 224, as in DINO
        global_crops = torch.cat(
            [random_resized_crop(frames, whole, config.crop_scale, generator) for _ in range(2)]
        )
        outputs = [self.head(encoder(global_crops, contextual_only=True)[0])]
        if config.local_crops:
            local_crops = torch.cat(
                [
                    random_resized_crop(frames, local, config.local_crop_scale, generator)
                    for _ in range(config.local_crops)
                ]
            )
            outputs.append(self.head(encoder(local_crops, contextual_only=True)[0]))
        student = F.log_softmax(torch.cat(outputs).float() / config.student_temperature, -1)
        with torch.no_grad():
            raw = self.teacher_head(self.teacher_encoder(global_crops, contextual_only=True)[0]).float()
            teacher = F.softmax((raw - self.center) / config.teacher_temperature, -1)
            if self.training:
                self.outputs += F.pad(raw, (0, 1), value=1.0).sum(0)
        student_crops, teacher_crops = student.chunk(2 + config.local_crops), teacher.chunk(2)
        losses = [
            -(t * s).sum(-1)
            for i, t in enumerate(teacher_crops)
            for j, s in enumerate(student_crops)
            if i != j
        ]
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def update_teacher(self, encoder: Encoder, progress: float) -> None:
        """After an optimiser step: move the teacher towards the student, and the centre towards its outputs.

        ``progress`` in [0, 1] is the share of training done. Every rank must call it.
        """
        start = self.config.teacher_momentum
        momentum = 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2
        teacher: list[Tensor] = [*self.teacher_encoder.parameters(), *self.teacher_head.parameters()]
        student: list[Tensor] = [*encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.outputs)
        total, count = self.outputs[:-1], self.outputs[-1]
        mean = torch.where(count > 0, total / count.clamp(min=1), self.center)
        self.center.lerp_(mean, 1 - self.config.center_momentum)
        self.forget_outputs()

    def forget_outputs(self) -> None:
        """In place of :meth:`update_teacher`, where a step was skipped."""
        self.outputs.zero_()
