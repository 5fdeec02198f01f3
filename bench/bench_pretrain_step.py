"""One optimiser step of μ-BERT, and inference, against the structure of the published code."""

import contextlib
import copy

import torch
from published_structure import PublishedStructure, rectangles
from timing import Case, contest

from micron_kernels import blockwise_mask
from micron_model import MicronBERT, MicronBERTConfig, preset
from micron_model.models.patch_of_interest import crop_size


def block_operations(length: int, width: int) -> float:
    """Of a block: 12·D² weights and two products of attention."""
    return 2.0 * length * 12 * width**2 + 2 * 2.0 * length**2 * width


def encoder_operations(config: MicronBERTConfig, size: int, contextual_only: bool = False) -> float:
    """Of one frame of ``size`` pixels through the encoder: what the model needs, not what a kernel computes twice."""
    patches = (size // config.patch_size) ** 2
    length, width = patches + 1, config.width
    embed = 2.0 * patches * 3 * config.patch_size**2 * width
    last = block_operations(length, width)
    if contextual_only:  # keys and values of all tokens, the rest for one
        last = 2.0 * length * 2 * width**2 + 2.0 * 10 * width**2 + 2 * 2.0 * length * width
    return embed + (config.depth - 1) * block_operations(length, width) + last


def micro_attention_operations(config: MicronBERTConfig) -> float:
    """Four projections and one product of N × N."""
    patches, width = config.grid**2, config.width
    return 2.0 * patches * 4 * width**2 + 2.0 * patches**2 * width


def step_operations(config: MicronBERTConfig) -> float:
    """Floating-point operations of a step for one pair: 3 times those of forward (a product has two gradients).

    Two encoded frames, a crop's contextual token, micro-attention, decoder. Norms, GELU, softmax, optimiser and
    what attention computes again in backward are not counted.
    """
    patches, width = config.grid**2, config.decoder_width
    decoder = config.decoder_depth * block_operations(patches, width)
    decoder += 2.0 * patches * width * (config.width + 3 * config.patch_size**2)
    encoded = 2 * encoder_operations(config, config.image_size)
    encoded += encoder_operations(config, crop_size(config, 0.5), contextual_only=True)
    return 3 * (encoded + micro_attention_operations(config) + decoder)


def frames_of(bench, batch, config):
    side = config.image_size
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    noise = torch.randint(-3, 4, frames.shape, generator=generator)
    later = (frames + noise).clamp(0, 255).to(torch.uint8)
    return frames.to(bench.device), later.to(bench.device)


def autocast(bench):
    """bf16 on a GPU, for ours and theirs; fp32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if bench.device.type == "cuda" else contextlib.nullcontext()


def settings(bench):
    sizes = {} if bench.full else {"image_size": 32, "width": 32, "decoder_width": 32}
    return preset("base", **sizes)


def stepper(bench, model, forward, pairs, *arguments, fused):
    """A function that does one optimiser step and gives (loss, norm of the gradient).

    At a rate of 0 every call finds the same weights, and the optimiser's work is the same. The optimiser is fused
    for ours, as in the trainer; otherwise what torch takes by default.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused or None)

    def step():
        with autocast(bench):
            loss = forward(pairs, torch.Generator().manual_seed(0), *arguments)["loss"]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach().float(), norm.float()])

    return step


@contest(
    cpu=(["ours", "published structure"], [2]),
    cuda=(["ours compiled", "ours", "published structure"], [16, 64, 128]),
)
def test_step(bench, batch):
    config = settings(bench)
    torch.manual_seed(0)
    model = MicronBERT(config).to(bench.device).train()
    frames, later = frames_of(bench, batch if bench.full else 2, config)
    grid = (config.grid, config.grid)
    swap = blockwise_mask(len(frames), grid, config.swap_ratio, torch.Generator().manual_seed(0))
    pairs = {"frames": frames, "later": later, "swap": swap.to(bench.device)}
    ours = {"ours": stepper(bench, model, model, pairs, fused=True)}
    if bench.device.type == "cuda":
        compiled = copy.deepcopy(model)
        compiled.encoder.compile(dynamic=False)
        compiled.decoder.compile(dynamic=False)
        ours = {"ours compiled": stepper(bench, compiled, compiled, pairs, fused=True), **ours}
    published, blocks = PublishedStructure(model), rectangles(swap, config.grid)
    peers = {"published structure": stepper(bench, model, published, pairs, blocks, fused=False)}
    return Case(
        "pretrain_step",
        f"base, {len(frames)} pairs, {'bf16' if bench.device.type == 'cuda' else 'fp32'}",
        ours,
        peers,
        expected=peers["published structure"],
        operations=step_operations(config) * len(frames),
    )


@contest(
    cpu=(["folded", "ours", "published structure"], [4]),
    cuda=(["folded", "ours", "published structure"], [128]),
)
def test_inference(bench, batch):
    """Features and the map of micro-attention of frame pairs."""
    config = settings(bench)
    torch.manual_seed(0)
    model = MicronBERT(config).to(bench.device).eval()
    folded = MicronBERT(config).to(bench.device).eval()
    folded.load_state_dict(model.state_dict())
    folded.fold()
    published = PublishedStructure(model)
    onset, apex = frames_of(bench, batch if bench.full else 2, config)

    def run(function):
        with torch.no_grad(), autocast(bench):
            return [x.float() for x in function(onset, apex)]

    return Case(
        "inference",
        f"base, {len(onset)} pairs, {'bf16' if bench.device.type == 'cuda' else 'fp32'}",
        {"folded": lambda: run(folded.compare), "ours": lambda: run(model.compare)},
        {"published structure": lambda: run(published.compare)},
        expected=lambda: run(published.compare),
        operations=len(onset)
        * (2 * encoder_operations(config, config.image_size) + micro_attention_operations(config)),
    )
