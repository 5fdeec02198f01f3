"""Compare two frames by a plain ViT and `diagonal_attention`, and train it to tell movement from light.

    python examples/vit_two_frames.py

The diagonal attention between the patch tokens of onset and apex says which patches changed. Each frame has a light
of its own, so that the frame difference sees change everywhere; trained end to end on synthetic faces, the ViT sees
the movement, as a picture shows. The parts of the ViT have timm's names: `movement` and `patch_tokens` also take
`timm.create_model("vit_tiny_patch16_224")`, with frames of 224×224 (run with timm 1.0.31).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from micron_kernels import diagonal_attention, frame_difference, topk_mask
from micron_model.data import synthetic_clips
from micron_model.evaluation import auroc

SIZE, PATCH = 64, 8


class PatchEmbed(nn.Conv2d):
    def forward(self, frames):
        return super().forward(frames).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(*[self.norm1(x)] * 3, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, dim=64, depth=2, num_heads=4, num_classes=3):
        super().__init__()
        self.patch_embed = PatchEmbed(3, dim, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)  # the head is for single frames


def patch_tokens(vit, frames):
    """The last tokens (B, N, D) of the patches of frames (B, 3, H, W), uint8; without the class token."""
    x = vit.patch_embed(frames / 127.5 - 1)
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
    return vit.norm(vit.blocks(x))[:, 1:]


def movement(vit, onset, later):
    """Logits (B, N) that a patch moved between two frames (B, 3, H, W), uint8."""
    before, after = patch_tokens(vit, torch.cat([onset, later])).chunk(2)
    # p is low where a patch changed, but also where it looks like others: hence against p of `later` with itself.
    query, key = torch.cat([after, after])[:, None], torch.cat([after, before])[:, None]
    _, p = diagonal_attention(query, key, key, return_weights=True)  # [2B, 1, N]
    within, across = p[:, 0].clamp(min=torch.finfo(p.dtype).tiny).log().chunk(2)
    return within - across - 1  # what has not changed is more likely not to have moved


def faces(subjects):
    """Frames (B, 3, 3, H, W) at rest, at the onset and at the apex, and the quarter of patches that moved most."""
    clips = synthetic_clips(subjects)
    frames = np.stack([clip.read([0, clip.onset, clip.apex], SIZE) for clip in clips])
    moved = np.stack([clip.moved(clip.onset, clip.apex, SIZE, PATCH) for clip in clips])
    return torch.from_numpy(frames), topk_mask(torch.from_numpy(moved).float(), 0.25)[0]


def relight(frames):
    """Each frame (..., 3, H, W) in a light of its own: brighter or darker, and from another side."""
    gain, offset, right, down = torch.empty(4, *frames.shape[:-3], 1, 1, 1).uniform_(-1, 1)
    x = torch.linspace(-1, 1, SIZE)
    lit = frames * (1 + 0.2 * gain) + 20 * offset + 30 * (right * x + down * x[:, None])
    return lit.clamp(0, 255).byte()


def normalised_difference(onset, later):
    """By hand: each patch and colour brought to mean 0 and deviation 1 (less where it is flat) before."""
    x, y = (F.unfold(frames.float(), PATCH, stride=PATCH).unflatten(1, (3, -1)) for frames in (onset, later))
    x, y = ((patch - patch.mean(2, True)) / patch.std(2, keepdim=True).clamp(min=3) for patch in (x, y))
    return (x - y).abs().mean((1, 2))


@torch.no_grad()
def report(name, change, frames, moved):
    """Print the AUROC of change(onset, later) on the patches that move: at the apex against the same at rest."""
    rest, onset, apex = frames.unbind(1)
    values = torch.cat([change(onset, apex)[moved], change(onset, rest)[moved]])
    print(f"  {name:40} {auroc(values.numpy(), np.arange(len(values)) < len(values) // 2):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of training, of 32 pairs each")
    parser.add_argument("--out", type=Path, default=Path("out/vit_two_frames.png"), help="the picture")
    args = parser.parse_args()
    torch.manual_seed(0)
    vit = VisionTransformer()
    change = {
        "frame difference": lambda onset, later: frame_difference(later, onset, PATCH),
        "difference of patches normalised by hand": normalised_difference,
        "ViT": lambda onset, later: movement(vit, onset, later),
    }
    held_out, moved = faces(range(1000, 1012))
    lit = relight(held_out)
    print("patches that moved against the same at rest, on faces not trained on: AUROC, 0.5 is chance")
    report("frame difference, all in one light", change["frame difference"], held_out, moved)
    for name, function in change.items():
        report(name, function, lit, moved)
    frames, labels = faces(range(64))
    optimizer = torch.optim.AdamW(vit.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=args.steps)
    at_apex = torch.arange(32) % 2  # half of the pairs show no movement at all
    for _ in range(args.steps):
        drawn = torch.randint(len(frames), at_apex.shape)
        logits = movement(vit, relight(frames[drawn, 1]), relight(frames[drawn, 2 * at_apex]))
        target = labels[drawn] * at_apex[:, None].float()  # one patch in eight, hence the weight
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(3.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    report(f"ViT after {args.steps} steps", change["ViT"], lit, moved)
    rows = torch.tensor([0, 4, 8, 12])  # four faces, the last one at rest
    onset, later = lit[rows, 1], lit[rows, torch.tensor([2, 2, 2, 0])]
    truth = moved[rows] & torch.tensor([[True], [True], [True], [False]])
    seen = movement(vit, onset, later).detach().sigmoid()
    columns = {"onset": onset.permute(0, 2, 3, 1), "later frame": later.permute(0, 2, 3, 1)}
    maps = {"difference": frame_difference(later, onset, PATCH) * 5, "ViT: moved": seen, "moved most": truth}
    columns |= {name: values.unflatten(1, (-1, SIZE // PATCH)) for name, values in maps.items()}
    figure = Figure(figsize=(8, 7), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(rows), len(columns))):
        for column, (title, images) in zip(axes, columns.items(), strict=True):
            column.imshow(images[row], cmap="cividis", vmin=0, vmax=1)
            column.set(xticks=[], yticks=[], title="" if row else title)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    hits, found = (truth & (seen > 0.5)).sum(), (seen > 0.5).sum()
    print(f"{args.out}: {found} patches seen to move, {hits} of them among the {truth.sum()} that moved most")
