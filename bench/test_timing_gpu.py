"""A timed run on a GPU, on a CPU: its events, graphs and counters are stood in for, all else is as there."""

import json
import time
from pathlib import Path

import baselines
import bench_poi_topk
import ceilings
import gpu_targets
import pytest
import timing
import timing_gpu
import torch

from micron_kernels import _extension

BENCH = Path(__file__).parent
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(_extension.module is None, reason="the native kernels are what is timed here")


class Event:
    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Runs pytest with ``--benchmark --device cuda`` and more arguments: (status, entries by group, variant)."""
    # Triton's kernels would be timed in its interpreter; pytest-benchmark times nothing in a process of pytest-xdist.
    for name in ("TRITON_INTERPRET", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    for name, stand_in in {
        "Event": Event,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 1 << 30,
        "get_device_name": lambda device: "Some GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(timing_gpu, "captured", lambda function: function)
    monkeypatch.setattr(timing_gpu, "_cold", lambda: torch.empty(1))
    monkeypatch.setattr(timing_gpu, "SHORT", 1.0)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 3)
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", 64)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 16)
    small = timing.Bench(CPU, full=False, gpu=True)
    monkeypatch.setattr(timing, "Bench", lambda device, full, gpu: small)
    path = tmp_path / "results.json"

    def run(*arguments):
        options = ["--benchmark", "--device=cuda", f"--benchmark-json={path}", "-p", "no:cacheprovider"]
        status = pytest.main([*map(str, arguments), *options])
        entries = json.loads(path.read_text())["benchmarks"] if path.exists() else []
        return status, {(e["group"], e["extra_info"]["variant"]): e for e in entries}

    run.path = path
    yield run
    ceilings.matrix_rate.cache_clear()
    ceilings.copy_bandwidth.cache_clear()
    timing._built.cache_clear()


def test_attention(gpu):
    status, entries = gpu(BENCH / "bench_diagonal_attention.py", "-k", "64 and 784 and 512 and calls")
    assert status == 0
    for name in ("forward bf16", "forward + backward bf16", "rows N/4 bf16", "forward fp32"):
        group = f"diagonal_attention {name} (64, 1, 784, 512), calls"
        native = entries[group, "native"]["extra_info"]
        assert native["times_ours"] == 1
        assert ("share_of_matrix_rate" in native) == ("bf16" in name)
        assert entries[group, "eager"]["extra_info"]["times_ours"] > 0
        assert entries[group, "compiled"]["stats"]["median"] > 0
        assert (group, "efficient") not in entries  # it has no kernel for a CPU


def test_the_other_operators(gpu, capfd):
    files = [BENCH / f"bench_{name}.py" for name in ("frame_difference", "poi_topk", "swap_patches")]
    status, entries = gpu(*files, "-k", "(uint8 and 224 and 256) or (test_topk_mask and 1024) or [256-calls")
    assert status == 0
    native = [entry for (_, variant), entry in entries.items() if variant == "native"]
    assert {entry["extra_info"]["operator"] for entry in native} == {
        "poi_topk"
    }  # the others have Triton alone
    timed = {entry["extra_info"]["operator"] for entry in entries.values()}
    assert timed == {"frame_difference", "poi_topk", "swap_patches"}
    for entry in native:
        assert entry["extra_info"]["share_of_copy_bandwidth"] > 0
        assert entry["options"]["timer"] == "Instant"
    printed = capfd.readouterr().out
    assert "TB/s" in printed
    assert "poi_topk topk_mask (2, 49), calls: times topk + scatter ≥ 4: " in printed
    assert json.loads(gpu.path.read_text())["machine_info"]["machine"] == "Some GPU"
    assert gpu.path.with_suffix(".png").stat().st_size > 0


SELECT = BENCH / "bench_poi_topk.py::test_select_tokens"


def failing(*arguments):
    raise RuntimeError("out of memory,\n as it were")


def test_a_peer_that_fails_says_why_and_the_others_are_timed(gpu, monkeypatch, capfd):
    monkeypatch.setattr(baselines, "topk_gather", failing)
    status, entries = gpu(SELECT, "-k", "calls and 256 and 784")
    assert status == 0
    assert {variant for _, variant in entries} == {"native"}
    assert "torch.topk failed: RuntimeError: out of memory, as it were" in capfd.readouterr().out


def test_a_wrong_result_of_ours_is_not_timed_and_the_others_are(gpu, monkeypatch, capfd):
    monkeypatch.setattr(
        bench_poi_topk, "select_tokens", lambda tokens, scores, k, impl: (tokens[:, :k] + 1, k)
    )
    status, entries = gpu(SELECT, "-k", "calls and 256 and 784")
    assert status == 1
    assert {variant for _, variant in entries} == {"torch.topk", "compiled"}
    assert all("times_ours" not in entry["extra_info"] for entry in entries.values())
    assert "relative error" in capfd.readouterr().out


def test_a_call_that_an_idle_gpu_waits_for_is_replayed_too(gpu, monkeypatch):
    idle = [True]

    def launched_late(*arguments, wrapped=baselines.topk_gather):
        if idle[0]:
            time.sleep(0.05)
        idle[0] = True
        return wrapped(*arguments)

    monkeypatch.setattr(timing_gpu, "before", lambda function, short: idle.__setitem__(0, False))
    monkeypatch.setattr(timing_gpu, "SHORT", 0.03)
    monkeypatch.setattr(baselines, "topk_gather", launched_late)
    _, entries = gpu(SELECT, "-k", "graph and 256 and 784 and topk")
    assert "torch.topk" in {variant for _, variant in entries}


def test_what_a_lost_device_leaves_ends_the_run(gpu, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "synchronize", failing)
    status, _ = gpu(SELECT, "-W", "ignore:Not saving anything")
    assert status == 3
    assert "the CUDA context is broken" in capfd.readouterr().out


def test_what_was_timed_before_an_interrupt_is_kept(gpu, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 4:  # of the rounds, not of what comes before them
            raise KeyboardInterrupt
        return torch.zeros(0)

    monkeypatch.setattr(timing, "close", lambda tested, expected: None)
    monkeypatch.setattr(baselines, "topk_gather", interrupted)
    status, entries = gpu(SELECT, "-k", "calls and 256 and 784")
    assert status == pytest.ExitCode.INTERRUPTED
    assert {variant for _, variant in entries} == {"native"}


def test_a_second_run_keeps_the_results_of_other_files(gpu):
    gpu(BENCH / "bench_swap_patches.py", "-k", "1024")
    _, entries = gpu(BENCH / "bench_poi_topk.py::test_topk_mask", "-k", "1024")
    assert {entry["extra_info"]["operator"] for entry in entries.values()} == {"swap_patches", "poi_topk"}


def test_an_option_that_needs_times_is_refused_without_them(capfd):
    assert (
        pytest.main([str(BENCH / "bench_swap_patches.py"), "--benchmark-autosave"])
        == pytest.ExitCode.USAGE_ERROR
    )
    assert "--benchmark-autosave needs --benchmark" in capfd.readouterr().err


def test_a_pytest_benchmark_that_empties_the_results_is_refused(monkeypatch, capfd):
    monkeypatch.setattr("pytest_benchmark.__version__", "5.2.3")
    assert pytest.main([str(BENCH / "bench_swap_patches.py")]) == pytest.ExitCode.USAGE_ERROR
    assert "pytest-benchmark 5.2.3 is installed; bench/ needs 5.3 or later" in capfd.readouterr().err


def test_the_targets_are_judged():
    variants = {
        "triton": {"extra_bytes": 1, "share_of_matrix_rate": 0.5},
        "eager": {"extra_bytes": 1000, "times_ours": 2.6},
    }
    case = f"forward {gpu_targets.LARGE}"
    row = {
        "operator": "diagonal_attention",
        "case": case,
        "way": "calls",
        "ours": "triton",
        "best_peer": "eager",
    }
    table = gpu_targets.table([row | {"variants": variants}])
    assert "times the best peer ≥ 2.5: 2.6 reached" in table
    assert "of the matrix rate ≥ 0.6: 0.5 missed" in table
    assert "of eager's extra memory ≤ 0.01: 0.001 reached" in table
    assert f"forward {gpu_targets.SMALL}, times the best peer: not measured" in table
    assert "swap_patches" not in table


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["flash", "flex"])
def test_the_peers_by_logsumexp_compute_the_same(kernel):
    q, k, v = torch.randn(3, 2, 3, 17, 16)
    if kernel == "flash":
        result = baselines.diagonal_from_logsumexp(q, k, v, baselines.flash_logsumexp(q, k, v))
    else:
        result = baselines.flex_diagonal(q, k, v)
    timing.close(result, baselines.full_attention(q, k, v))
