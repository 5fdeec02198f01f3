"""One curve, whatever computes it: reference operators, native ones, compiled, on a CPU or a GPU.

Held to the rule of the operators: the distance from fp64 may be twice that of the reference in fp32. Rounding
errors grow as training goes on, in all of them alike, so one curve is no more than one draw: several are pooled.
"""

import copy
import functools
import os

import pytest
import torch

from micron_kernels.info import OPERATORS
from micron_kernels.testing import assert_within_rounding
from micron_model import MicronBERT, preset
from micron_model.data import FramePairs, synthetic_clips
from micron_model.data.clips.pairs import collate

STEPS, BATCH, SEEDS = 100, 2, (0, 1)
#: Half the preset "tiny" in width and depth, a quarter of its decoder, at three times its rate: it learns as much in
#: half the steps.
SMALL = {"width": 64, "decoder_width": 64, "depth": 2, "decoder_depth": 1}
LEARNING_RATE = 1e-3


@functools.cache
def batches(seed):
    frames = FramePairs(synthetic_clips(range(4)), 64, seed)
    return [collate([frames[BATCH * step + i] for i in range(BATCH)]) for step in range(STEPS)]


@functools.cache
def start(seed):
    torch.manual_seed(seed)
    # Who asks whom differs too, so that both roles are seen.
    return MicronBERT(preset("tiny", tied_start=True, roles="code" if seed else "paper", **SMALL))


def curve(dtype=torch.float32, device="cpu", compiled=False):
    """The losses of every seed, (seeds · steps), fp64."""
    losses, first = [], None
    for seed in SEEDS:
        model = copy.deepcopy(start(seed)).to(device, dtype)
        if compiled and first is None:
            first = model
            # Blocks of one kind: it takes Inductor two and a half minutes to compile the encoder's every use, too.
            model.encoder.compile(backend="aot_eager")
            model.decoder.compile()
        elif compiled:  # other weights through the same code: nothing is compiled again
            weights = model.state_dict()
            model.encoder, model.decoder = first.encoder, first.decoder
            model.load_state_dict(weights)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        for step, batch in enumerate(batches(seed)):
            pair = {name: model.normalize(batch[name].to(device)).to(dtype) for name in ("frames", "later")}
            loss = model(pair, torch.Generator().manual_seed(step))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def curve_of_the_reference(monkeypatch, dtype):
    with monkeypatch.context() as patch:
        for ops in OPERATORS.values():
            for name in set(ops.IMPLEMENTATIONS) - {"reference"}:
                patch.delitem(ops.IMPLEMENTATIONS, name)
        return curve(dtype)


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patch:
        oracle, reference = (curve_of_the_reference(patch, dtype) for dtype in (torch.float64, torch.float32))
    assert oracle[STEPS - 10 : STEPS].mean() < 0.2 * oracle[:10].mean()  # it learns
    return oracle, reference - oracle


def check(name, tested, expected):
    oracle, plain_error = expected
    assert_within_rounding(name, tested.float(), oracle, plain_error=plain_error)


def test_native_operators_give_the_curve_of_the_reference(expected):
    if not all("native" in ops.IMPLEMENTATIONS for ops in OPERATORS.values()):
        pytest.skip("the extension was not built")
    check("native", curve(), expected)


@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="torch's Inductor then writes vectors and leaves out the headers that declare them",
)
def test_compilation_gives_the_same_curve(expected):
    check("compiled", curve(compiled=True), expected)


@pytest.mark.gpu
def test_a_gpu_gives_the_curve_of_the_cpu(expected):
    check("gpu", curve(device="cuda"), expected)
