"""μ-BERT (Micron-BERT, Nguyen et al., CVPR 2023, arXiv 2304.03195)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micron_kernels import blockwise_mask, diagonal_attention, frame_difference, swap_patches, topk_mask
from micron_kernels.nn import DiagonalMicroAttention, FoldedDiagonalMicroAttention

from ..saved_model import SavedModel
from . import products
from .attention_products import split
from .config import MicronBERTConfig
from .patch_of_interest import DINO, crop_size, random_resized_crop
from .vit import Decoder, Encoder, at_least_fp32, patchify, unpatchify


class EncoderState(NamedTuple):
    """What the encoder knows of a batch of frames."""

    contextual: Tensor
    """Contextual token (B, D)."""
    patches: Tensor
    """Patch tokens (B, N, D)."""
    scores: Tensor
    """Attention of the contextual token to each patch in the last block, mean over heads, (B, N), fp32."""


class MicronBERT(
    SavedModel,
    library_name="micron-kernels",
    tags=["micro-expression"],
    license="mit",
):
    """μ-BERT: encoder, Patch of Interest, micro-attention, decoder, and the losses of pre-training.

    Frames are (B, 3, H, W), RGB. uint8 frames are normalised here; floating frames are taken as normalised
    already (see :meth:`normalize`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: MicronBERTConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.micro_attention: DiagonalMicroAttention | FoldedDiagonalMicroAttention = DiagonalMicroAttention(
            config.width, linear=products.Linear
        )
        self.decoder = Decoder(config)
        for layer in (getattr(self.micro_attention, name) for name in ("to_q", "to_k", "to_v", "proj")):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if config.tied_start:
            self.micro_attention.to_k.load_state_dict(self.micro_attention.to_q.state_dict())
        self.dino = DINO(config, self.encoder) if config.aggregation == "dino" else None
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.std), persistent=False)

    def normalize(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, 3, H, W) as (x/255 − mean)/std in fp32; floating frames as they are."""
        if frames.dtype != torch.uint8:
            return frames
        return (frames / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def denormalize(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) as floating frames in [0, 1], clipped."""
        return (frames * self.std[:, None, None] + self.mean[:, None, None]).clamp(0, 1)

    def patchify(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, H, W) as patches (B, N, P·P·3), each in the order row, column, channel."""
        return patchify(frames, self.config.patch_size)

    def unpatchify(self, patches: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
        """The inverse of :meth:`patchify`, on a square grid unless rows and columns are given."""
        side = round(patches.shape[1] ** 0.5)
        return unpatchify(patches, self.config.patch_size, rows or side, columns or side)

    def encode(self, frames: Tensor, flow: Tensor | None = None) -> EncoderState:
        """All that the encoder gives for frames (B, 3, H, W).

        With ``config.flow_input``, ``flow`` (B, 2, H, W) is that to them, see :meth:`flow`; 0 if not given.
        """
        frames = self.normalize(frames)
        return EncoderState(
            *self.encoder(frames if flow is None else torch.cat([frames, flow.to(frames)], 1))
        )

    def flow(self, onset: Tensor, apex: Tensor) -> Tensor | None:
        """Optical flow (B, 2, H, W) from onset to apex (B, 3, H, W) less its median, in pixels of a frame of 64 rows.

        By OpenCV on the CPU, without a gradient. None without ``config.flow_input``.
        """
        if not self.config.flow_input:
            return None
        from ..data.clips.flow import flow_less_median

        pairs = torch.stack([self._as_uint8(onset), self._as_uint8(apex)], 1).cpu().numpy()
        flows = np.stack([flow_less_median(*pair) for pair in pairs])
        return torch.from_numpy(flows * (64 / onset.shape[2])).to(self.mean)

    def _as_uint8(self, frames: Tensor) -> Tensor:
        return frames if frames.dtype == torch.uint8 else (self.denormalize(frames) * 255).round().byte()

    def encode_pair(self, onset: Tensor, apex: Tensor) -> tuple[EncoderState, EncoderState]:
        """Onset and apex (B, 3, H, W), encoded together; with ``config.flow_input`` the apex has the flow to it."""
        flow = self.flow(onset, apex)
        if flow is not None:
            flow = torch.cat([torch.zeros_like(flow), flow])
        both = self.encode(torch.cat([self.normalize(onset), self.normalize(apex)]), flow)
        size = onset.shape[0]
        return EncoderState(*(x[:size] for x in both)), EncoderState(*(x[size:] for x in both))

    def movement_map(self, onset: EncoderState, apex: EncoderState) -> Tensor:
        """How much each patch (B, N) changed between two encoded frames, fp32; its Patch of Interest plays no part.

        Log of the diagonal of micro-attention between the apex and itself, minus that between the onset and the apex:
        the first is what the diagonal would be had nothing changed, so that places are comparable.
        """
        tiny = torch.finfo(torch.float32).tiny
        _, across = self.forward_micro_attention(onset.patches, apex.patches)
        _, within = self.forward_micro_attention(apex.patches, apex.patches)
        return within.float().clamp(min=tiny).log() - across.float().clamp(min=tiny).log()

    def forward_encoder(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(contextual token (B, D), patch tokens (B, N, D)) of frames (B, 3, H, W)."""
        state = self.encode(frames)
        return state.contextual, state.patches

    def forward_poi(self, frames: Tensor | EncoderState) -> Tensor:
        """Patch-of-Interest scores (B, N) of frames (B, 3, H, W), or of a state that :meth:`encode` gave.

        The attention of the contextual token to the patches in the last block, mean over heads, in fp32. They
        sum to less than 1: the rest is the contextual token's attention to itself.
        """
        state = frames if isinstance(frames, EncoderState) else self.encode(frames)
        return state.scores

    def forward_micro_attention(
        self, swapped_patches: Tensor, later_patches: Tensor, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Micro-attention between two frames.

        Args:
            swapped_patches: (B, N, D), tokens of frame t (with patches of t+δ in it, in pre-training).
            later_patches: (B, N, D), tokens of frame t+δ.
            scores: (B, N), Patch-of-Interest scores of frame t+δ; used as ``config.poi`` says.

        Returns:
            latent (B, N, D) and the diagonal (B, N), fp32: how much patch i of one frame still looks like
            patch i of the other, among all. Where a hard Patch of Interest leaves a position out, the diagonal
            is 0 and the latent that of a zero weight.
        """
        attention = self.micro_attention
        length = swapped_patches.shape[1]
        query, key = later_patches, swapped_patches
        if self.config.roles == "code":
            query, key = key, query
        row_weight, rows = None, None
        if scores is not None and self.config.poi == "soft":
            row_weight = scores * length
        elif scores is not None and self.config.poi == "hard":
            rows = topk_mask(scores, self.config.poi_ratio)[1]
        if self.config.diag_att:
            latent, diagonal = attention(
                query, key, swapped_patches, row_weight=row_weight, rows=rows, return_weights=True
            )
        else:
            latent, diagonal = self._full_attention(query, key, swapped_patches, row_weight, rows)
        diagonal = diagonal[:, 0]
        if rows is not None:
            nothing = attention.output_bias.to(latent.dtype).expand(latent.shape[0], length, -1)
            latent = nothing.scatter(1, rows[..., None].expand_as(latent), latent)
            diagonal = diagonal.new_zeros(diagonal.shape[0], length).scatter(1, rows, diagonal)
        return latent, diagonal

    def _full_attention(
        self, query: Tensor, key: Tensor, value: Tensor, row_weight: Tensor | None, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The released checkpoint's variant: the whole attention matrix weights the values."""
        attention = self.micro_attention
        assert isinstance(attention, DiagonalMicroAttention)
        projected = attention.to_q(query), attention.to_k(key), attention.to_v(value)
        qkv = torch.stack(projected, 2).unsqueeze(3)  # [B, N, 3, 1, D]
        q, k, v = split(qkv)
        _, diagonal = diagonal_attention(
            q, k, v[..., :1], scale=attention.scale, rows=rows, return_weights=True
        )
        out = products.attention(qkv)
        if rows is not None:
            out = out.gather(1, rows[:, :, None].expand(-1, -1, out.shape[2]))
        if row_weight is not None:
            out = out * row_weight[..., None].to(out.dtype)
        return attention.proj(out), diagonal

    def forward_decoder(self, latent: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
        """Latent (B, N, D) to normalised pixels (B, N, P·P·3), on a square grid unless one is given."""
        side = round(latent.shape[1] ** 0.5)
        return self.decoder(latent, rows or side, columns or side)

    def forward_loss(self, frames: Tensor, reconstruction: Tensor, weight: Tensor | None = None) -> Tensor:
        """L_r: the mean squared error of ``reconstruction`` (B, N, P·P·3) over all patches of ``frames``.

        ``weight`` (B, N) or (B, 1), of mean 1, weights the patches.
        """
        target = self.patchify(self.normalize(frames))
        if self.config.normalized_target:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (at_least_fp32(reconstruction) - at_least_fp32(target)).square().mean(2)
        return error.mean() if weight is None else (error * weight).mean()

    def forward_aggregation(
        self,
        later: Tensor,
        contextual: Tensor,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """L_agg between crops of normalised frames t+δ (B, 3, H, W) and their contextual tokens (B, D).

        ``weight`` (B,), of mean 1, weights the frames.
        """
        if self.config.aggregation == "off":
            return contextual.new_zeros((), dtype=torch.float32)
        if self.dino is not None:
            loss = self.dino(self.encoder, later, generator)
        else:
            crops = random_resized_crop(later, crop_size(self.config, 0.5), self.config.crop_scale, generator)
            of_crop = at_least_fp32(self.encoder(crops, contextual_only=True)[0])
            loss = (of_crop - at_least_fp32(contextual)).square().mean(1)
        return loss.mean() if weight is None else (loss * weight).mean()

    def forward_movement(
        self, still: EncoderState, warped: EncoderState, moved: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """The movement loss: does the map rank the patches that moved most above the others?

        The mean of softplus(map of the other − map of the moved) over all pairs of a patch among the quarter that moved
        most and one that is not: a smooth bound of 1 − AUROC of the map in each frame (ours).

        Args:
            still, warped: of a face and the same face moved, as :meth:`encode_pair` gives them.
            moved: (B, N), how far each patch moved.
            weight: (B,), of mean 1, weights the pairs.
        """
        change = self.movement_map(still, warped)
        most = topk_mask(moved.float(), 0.25)[0].to(change.dtype)
        pairs = most[:, :, None] * (1 - most)[:, None]  # [B, N, N]
        margin = change[:, :, None] - change[:, None]
        loss = (F.softplus(-margin) * pairs).sum((1, 2)) / pairs.sum((1, 2))
        return loss.mean() if weight is None else (loss * weight).mean()

    def forward(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """One step of pre-training, up to the loss.

        Args:
            batch: ``frames`` and ``later``, frames t and t+δ (B, 3, H, W), uint8 or normalised (training with
                ``config.gamma`` 0 needs neither); optionally ``swap`` (B, N) bool, which patches of t to take from t+δ,
                otherwise ``blockwise_mask`` draws it; and ``weight`` (B,), of mean 1, the weight of each pair in the
                losses. With ``config.movement`` also ``still``, ``warped`` and ``moved``, see
                :class:`~micron_model.data.clips.warps.WarpedPair`.
            generator: source of randomness of masks and crops, on the CPU.

        Returns:
            losses ``loss``, ``loss_reconstruction``, ``loss_aggregation``, ``loss_movement``; ``contextual_variance``,
            the mean over channels of the variance of the contextual token over the batch (0 means it has collapsed).
            And, except in training with ``config.gamma`` 0, which needs none of them: ``swap``, ``diagonal``,
            ``scores`` (B, N); ``swapped`` (B, 3, H, W) and ``reconstruction`` (B, N, P·P·3), normalised.
        """
        config = self.config
        if self.training and not config.gamma:
            return self._movement_alone(batch, generator)
        frames, later = batch["frames"], batch["later"]
        size = frames.shape[0]
        rows, columns = (side // config.patch_size for side in frames.shape[2:])
        swap = batch.get("swap")
        if swap is None:
            swap = blockwise_mask(size, (rows, columns), config.swap_ratio, generator).to(frames.device)
        mean, std = (self.mean, self.std) if frames.dtype == torch.uint8 else (None, None)
        swapped = swap_patches(frames, later, swap, config.patch_size, mean=mean, std=std)
        normalized_later = self.normalize(later)

        flow = self.flow(frames, later)
        if flow is not None:  # a swapped patch brings its flow
            per_pixel = swap.unflatten(1, (rows, columns)).repeat_interleave(config.patch_size, 1)
            per_pixel = per_pixel.repeat_interleave(config.patch_size, 2)[:, None]
            flow = torch.cat([flow * per_pixel, flow])
        both = self.encode(torch.cat([swapped, normalized_later]), flow)
        swapped_state = EncoderState(*(x[:size] for x in both))
        later_state = EncoderState(*(x[size:] for x in both))
        scores = self.forward_poi(later_state)
        latent, diagonal = self.forward_micro_attention(swapped_state.patches, later_state.patches, scores)
        reconstruction = self.forward_decoder(latent, rows, columns)

        pair_weight = batch.get("weight")
        weight = None if pair_weight is None else pair_weight[:, None]
        if config.reconstruction_weight == "motion":
            motion = frame_difference(later, frames, config.patch_size)
            motion = motion / motion.mean(1, keepdim=True).clamp(min=torch.finfo(motion.dtype).tiny)
            weight = motion if weight is None else motion * weight
        loss_reconstruction = self.forward_loss(frames, reconstruction, weight)
        loss_aggregation = self.forward_aggregation(
            normalized_later, later_state.contextual, generator, pair_weight
        )
        loss_movement = loss_reconstruction.new_zeros(())
        if config.movement and "warped" in batch:
            pair = self.encode_pair(batch["still"], batch["warped"])
            loss_movement = self.forward_movement(*pair, batch["moved"], pair_weight)
        loss = config.gamma * loss_reconstruction + config.beta * loss_aggregation
        return {
            "loss": loss + config.movement * loss_movement,
            "loss_reconstruction": loss_reconstruction.detach(),
            "loss_aggregation": loss_aggregation.detach(),
            "loss_movement": loss_movement.detach(),
            "contextual_variance": later_state.contextual.detach().float().var(0, correction=0).mean(),
            "swap": swap,
            "diagonal": diagonal.detach(),
            "scores": scores.detach(),
            "swapped": swapped.detach(),
            "reconstruction": reconstruction.detach(),
        }

    def _movement_alone(
        self, batch: dict[str, Tensor], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """A step of training without L_r, which needs neither swapped frames nor the decoder."""
        before, after = self.encode_pair(batch["still"], batch["warped"])
        weight = batch.get("weight")
        loss_movement = self.forward_movement(before, after, batch["moved"], weight)
        warped = self.normalize(batch["warped"])
        loss_aggregation = self.forward_aggregation(warped, after.contextual, generator, weight)
        return {
            "loss": self.config.movement * loss_movement + self.config.beta * loss_aggregation,
            "loss_reconstruction": torch.zeros_like(loss_movement.detach()),
            "loss_aggregation": loss_aggregation.detach(),
            "loss_movement": loss_movement.detach(),
            "contextual_variance": after.contextual.detach().float().var(0, correction=0).mean(),
        }

    def compare(self, onset: Tensor, apex: Tensor) -> tuple[Tensor, Tensor]:
        """What changed between two frames (B, 3, H, W): features (B, N, D) and the diagonal (B, N), fp32.

        Onset takes the place of the swapped frame and apex that of the later one, with the Patch of Interest
        of the apex: how the authors used both after pre-training is not published; this is ours.
        """
        before, after = self.encode_pair(onset, apex)
        return self.forward_micro_attention(before.patches, after.patches, after.scores)

    def extract_features(self, onset: Tensor, apex: Tensor) -> Tensor:
        """The features (B, N, D) of :meth:`compare`, trainable end to end."""
        return self.compare(onset, apex)[0]

    def fold(self) -> None:
        """For inference: fold micro-attention's four projections into two, in place; the same function.

        The state dict changes with it, so save before.

        Raises:
            ValueError: the model uses the whole attention (``diag_att=False``), which cannot be folded, or is
                folded already.
        """
        if not self.config.diag_att:
            raise ValueError("diag_att=False: only diagonal micro-attention can be folded")
        if not isinstance(self.micro_attention, DiagonalMicroAttention):
            raise ValueError("the model is folded already")
        self.micro_attention = self.micro_attention.fold()

    def update_teacher(self, progress: float) -> None:
        """After an optimiser step: move the DINO teacher, where there is one; ``progress`` in [0, 1]."""
        if self.dino is not None:
            self.dino.update_teacher(self.encoder, progress)

    def forget_step(self) -> None:
        """In place of :meth:`update_teacher`, where a step was skipped."""
        if self.dino is not None:
            self.dino.forget_outputs()
