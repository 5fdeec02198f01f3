"""SLSTT: flow and its coding, features of ViT-B/16 at 384², a step of training; ours and the structure of theirs.

The structure of the authors' code, written by us: frame after frame through flow, coding and encoder, attention
matrices stored, every token of the last block computed, and nothing kept from one step to the next, so that the frozen
encoder runs again in each.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import timing
import timing_cpu
import torch
import torch.nn.functional as F
from bench_pretrain_step import autocast
from published_structure import attention, plain
from timing import Case, contest

from micron_model.data.clips.flow import ImagesOfClip
from micron_model.data.clips.synthetic import SyntheticClip
from micron_model.models.slstt import slstt_preset
from micron_model.models.vit import patchify
from micron_model.recognizers.base import Examples
from micron_model.recognizers.slstt import SLSTTRecipe, SLSTTRecognizer, SLSTTRecognizerConfig

CLASSES = ("negative", "positive", "surprise")
IMAGES = 11


def coded_frame_by_frame(faces, side):
    """Grey, flow from the onset, hue and length in floating point, for one frame after the other."""
    images = []
    for face in faces[1:]:
        before, after = (
            cv2.cvtColor(f.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY) for f in (faces[0], face)
        )
        flow = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        length, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
        hsv = np.zeros((*length.shape, 3), np.uint8)
        hsv[..., 0], hsv[..., 1] = np.minimum(angle / 2, 179), 255
        hsv[..., 2] = (length - length.min()) / (length.max() - length.min()) * 255
        images.append(cv2.resize(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), (side, side)).transpose(2, 0, 1))
    return np.stack(images)


@contest(cpu=(["ours", "published structure"], [2]))
def test_flow(bench, clips):
    """Clips of a face of 224², to images of 384²: ours in all threads, as when a database is prepared."""
    side, face = (384, 224) if bench.full else (64, 48)
    clip_input = ImagesOfClip(side, IMAGES)
    faces = [
        clip.read(clip_input.frames(clip.onset, clip.apex, clip.offset), face)
        for clip in (SyntheticClip(subject, "surprise") for subject in range(clips))
    ]
    assert all(len(of) == IMAGES + 1 for of in faces)

    def ours():
        threads = torch.get_num_threads()
        cv2.setNumThreads(1)
        with ThreadPoolExecutor(threads) as pool:
            return [torch.from_numpy(found) for found in pool.map(clip_input.encode, faces)]

    def theirs():
        cv2.setNumThreads(torch.get_num_threads())
        return [torch.from_numpy(coded_frame_by_frame(of, side)) for of in faces]

    peers = {"published structure": theirs}
    return Case("slstt flow", f"{clips} clips of {face}²", {"ours": ours}, peers, ours)


def class_token(encoder, image):
    """Of one image (3, H, W), normalised: all tokens through all blocks."""
    x = plain(encoder.patch_embed, patchify(image[None], encoder.patch_size))
    x = torch.cat([encoder.class_token, x], 1) + encoder.positions
    for block in encoder.blocks:
        x = x + attention(block.attn, block.norm1(x))[0]
        hidden = F.gelu(plain(block.mlp.fc1, block.norm2(x)), approximate="tanh")
        x = x + plain(block.mlp.fc2, hidden)
    return encoder.norm(x)[0, 0]


@pytest.fixture(scope="module")
def recognizer(request):
    full = request.config.getoption("--benchmark")
    config = slstt_preset("base" if full else "tiny", classes=len(CLASSES), frozen=True)
    torch.manual_seed(0)
    return SLSTTRecognizer(SLSTTRecognizerConfig(CLASSES, network=config)).eval()


def frame_by_frame(network, clips):
    """Features (B, T, D) of clips (B, T, 3, S, S)."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack([class_token(network.encoder, network.normalize(i[None])[0]) for i in c])
                for c in clips
            ]
        )


def clips_for(recognizer, bench, count):
    side = recognizer.config.network.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (count, IMAGES, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(bench.device)


#: Seconds a clip of ours, by operator, for the ratio of what comes after it.
ours_took = {}


def timed(bench, benchmark, operator, title, variant, function, clips, rounds):
    """An entry of few rounds on all threads: a call takes seconds, and its alternatives minutes."""

    def call():
        result = function()
        if bench.gpu:
            torch.cuda.synchronize()
        return result

    threads = torch.get_num_threads()
    way = "calls" if bench.gpu else timing_cpu.ONE if threads == 1 else f"{threads} threads"
    benchmark.group = f"{operator} {title}, {way}"
    result = benchmark.pedantic(call, rounds=rounds if bench.full else 1)
    info = {"operator": operator, "case": title, "way": way, "variant": variant}
    if bench.full:
        seconds = benchmark.stats["median"]
        ours_took.setdefault(operator, seconds if variant == "ours" else None)
        info |= {"clips_per_second": clips / seconds}
        if ours_took[operator]:
            info["times_ours"] = seconds / ours_took[operator]
    benchmark.extra_info |= info
    return result


@pytest.mark.parametrize("variant", ["ours", "published structure"])
def test_features(bench, benchmark, recognizer, variant):
    """Of four images, more of which take no less time each."""
    network = recognizer.to(bench.device).network
    clips = clips_for(recognizer, bench, 1)[:, :4]
    ways = {"ours": network.extract_features, "published structure": lambda x: frame_by_frame(network, x)}

    def run():
        with torch.no_grad(), autocast(bench):
            return ways[variant](clips).float()

    ways[variant](clips[:, :1])  # the first product of a size decides which library multiplies
    title = f"{'base, 384²' if bench.full else 'tiny'}, {clips.shape[1]} images"
    found = timed(bench, benchmark, "slstt features", title, variant, run, clips.shape[1] / IMAGES, rounds=3)
    if not bench.full:
        timing.close(found, ways["ours"](clips).float())


@pytest.mark.parametrize("variant", ["ours", "published structure"])
def test_loso(bench, benchmark, recognizer, variant):
    """A step of training, of one clip. Leaving each of 68 subjects of 442 clips out, 40 epochs, takes 1,184,560."""
    recognizer = recognizer.to(bench.device)
    recipe = SLSTTRecipe(preset="base" if bench.full else "tiny", freeze="encoder", epochs=1)
    clips, labels = clips_for(recognizer, bench, 1), torch.zeros(1, dtype=torch.int64)
    features = torch.randn(1, IMAGES * recognizer.network.encoder.width)

    def step(values):
        recipe.fit(recognizer, Examples(values, labels, ["casme2/1"], embedded=True), seed=0)

    def ours():
        step(features)

    def theirs():
        with autocast(bench):
            found = frame_by_frame(recognizer.network, clips).float()
        step(found.flatten(1).cpu())

    way = {"ours": ours, "published structure": theirs}[variant]
    if variant == "ours":
        way()  # warm
    title = f"{'base' if bench.full else 'tiny'}, a step of one clip"
    timed(bench, benchmark, "slstt loso", title, variant, way, 1, rounds=20 if variant == "ours" else 1)
