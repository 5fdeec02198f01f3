"""Several processes, as torchrun starts them, and once by torchrun itself; gloo on the CPU."""

import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from micron_model.training import checkpoint
from micron_model.training.log import read_log
from processes import Started, micron, start_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without")

SMALL = [
    "pretrain", "--preset", "tiny", "--training.device", "cpu", "--training.batch-size", "4",
    "--model.image-size", "32", "--model.width", "32", "--model.depth", "1", "--model.decoder-width", "32",
    "--model.decoder-depth", "1", "--model.dino-hidden", "32", "--model.local-crops", "2",
]  # fmt: skip


def start(ranks, out, *arguments):
    arguments = [*SMALL, "--out", str(out), *arguments]
    return start_ranks(ranks, micron, arguments) if ranks > 1 else [Started(micron, arguments, COLUMNS="200")]


def said_by(processes):
    """What they printed until they ended, as one line."""
    return re.sub(r"\s+", " ", " ".join(x.wait().stderr for x in processes))


def run(ranks, out, *arguments, fails=False):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(x) for x in start(ranks, out, *arguments)]
        said = said_by(processes)
        assert any(x.returncode for x in processes) == fails, said
    return said


def curve(folder):
    return torch.tensor(
        [[e["loss"], e["loss_aggregation"], e["gradient_norm"]] for e in read_log(folder)],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--model.poi", "hard", "--training.steps", "6"],
        # Each option that needs sums over ranks or skips a parameter.
        ["--model.aggregation", "dino", "--model.poi", "off", "--training.steps", "6", "--training.motion", "4", "255",
         "--training.candidates", "1.5"],
    ],
    ids=["mse", "dino"],
)  # fmt: skip
def test_two_ranks_have_the_losses_of_one_process(options, tmp_path):
    run(2, tmp_path / "two", *options, "--training.accumulate", "2")
    run(1, tmp_path / "one", *options, "--training.accumulate", "4")
    torch.testing.assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=2e-5, atol=1e-6)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("two", "one")]
    assert states[0].keys() == states[1].keys()  # no prefix of a wrapper
    for name, x in states[0].items():
        y = states[1][name]
        # A row softmax ignores the keys' bias: its gradient is rounding alone, which Adam makes as large as any.
        if name.endswith("qkv.bias"):
            x, y = (torch.cat([z.chunk(3)[0], z.chunk(3)[2]]) for z in (x, y))
        if not name.endswith("to_k.bias"):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def steps_of(folder):
    return len(read_log(folder)) if (folder / "log.jsonl").exists() else 0


def test_a_rank_that_dies_ends_the_others_and_the_run_resumes(tmp_path):
    options = ["--training.steps", "30", "--training.checkpoint-every", "5"]
    run(2, tmp_path / "whole", *options)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(x) for x in start(2, tmp_path / "killed", *options))
        first.wait_until(lambda: steps_of(tmp_path / "killed") >= 7)
        second.kill()
        second.wait()
        first.terminate()  # as torchrun does when one has ended
        said = said_by([first])
        assert first.returncode != 0
    assert steps_of(tmp_path / "killed") < 30
    assert "rank 0 of 2: another rank has ended or cannot be reached" in said
    assert "--resume goes on from the last checkpoint" in said
    refused = run(1, tmp_path / "killed", *options, "--resume", fails=True)
    assert "belongs to a run of 2 ranks, this one has 1" in refused
    assert "allow it with --training.other-ranks" in refused
    run(2, tmp_path / "killed", *options, "--resume")
    assert torch.equal(curve(tmp_path / "killed"), curve(tmp_path / "whole"))


def test_a_signal_stops_all_ranks_after_one_step_and_another_number_may_go_on(tmp_path):
    options = ["--training.steps", "400", "--training.checkpoint-every", "400"]
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(x) for x in start(2, tmp_path / "run", *options))
        first.wait_until(lambda: steps_of(tmp_path / "run") >= 3)
        second.terminate()  # one rank alone is told
        said = said_by([first, second])
    step = checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"]
    assert 3 <= step < 400
    assert f"stopped by SIGTERM after step {step}" in said
    with start(1, tmp_path / "run", *options, "--training.other-ranks", "--resume")[0] as alone:
        alone.wait_until(lambda: steps_of(tmp_path / "run") >= step + 3)
        alone.terminate()
        assert alone.wait().returncode == 128 + signal.SIGTERM


def test_ranks_that_see_other_data_are_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib\n"
        "from micron_model import preset\n"
        "from micron_model.data import synthetic_clips\n"
        "from micron_model.training import PretrainConfig, pretrain\n"
        "clips = synthetic_clips(range(1 + int(os.environ['RANK'])))\n"
        "config = PretrainConfig(steps=1, device='cpu')\n"
        f"pretrain(config, preset('tiny'), clips, pathlib.Path({str(tmp_path)!r}))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, script],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "the ranks see different data: ['3 clips" in done.stderr
