"""The path that measures a GPU, on a CPU: its events, graphs and counters are stood in for, all else is as there."""

import time
from types import SimpleNamespace

import baselines
import bench_diagonal_attention
import bench_frame_difference
import bench_poi_topk
import bench_swap_patches
import ceilings
import gpu_targets
import pytest
import report
import timing
import timing_gpu
import torch

CPU = torch.device("cpu")


class Event:
    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu_bench(monkeypatch):
    """A Bench that takes the CPU for a GPU; its rows are taken away again."""
    monkeypatch.delenv(
        "TRITON_INTERPRET", raising=False
    )  # or Triton's kernels would be timed in its interpreter
    properties = SimpleNamespace(L2_cache_size=1 << 10)
    for name, stand_in in {
        "Event": Event,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 1 << 30,
        "get_device_properties": lambda device: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(timing_gpu, "captured", lambda function: function)
    monkeypatch.setattr(timing_gpu, "ROUNDS", 3)
    monkeypatch.setattr(timing_gpu, "SHORT", 1.0)
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", 64)
    monkeypatch.setattr(ceilings, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(report, "ROWS", [])
    torch.manual_seed(0)
    yield timing.Bench(CPU, full=False, timed=True, gpu=True)
    ceilings.matrix_rate.cache_clear()
    ceilings.copy_bandwidth.cache_clear()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", bench_diagonal_attention.GPU_CASES, ids=str)
def test_diagonal_attention(gpu_bench, case):
    bench_diagonal_attention.test_forward(gpu_bench, case)
    if case[1] == torch.bfloat16:
        bench_diagonal_attention.test_forward_and_backward(gpu_bench, case)
        bench_diagonal_attention.test_rows(gpu_bench, case[0])
    forward = report.ROWS[0]["variants"]
    assert forward["native"]["times_ours"] == 1
    for peer in ("eager", "compiled", "flash", "flex"):
        assert forward[peer]["milliseconds"] > 0, peer
    assert "NotImplementedError" in forward["efficient"]["error"]  # it has no kernel for a CPU
    assert ("share_of_matrix_rate" in forward["native"]) == (case[1] == torch.bfloat16)


def test_the_other_operators(gpu_bench):
    bench_frame_difference.test_forward(gpu_bench, torch.uint8, 224, (256, 1))
    bench_swap_patches.test_forward(gpu_bench, 256)
    bench_poi_topk.test_forward(gpu_bench, (256, 784, 512))
    assert [row["timed"] for row in report.ROWS] == ["calls", "graph replays"] * 6
    for row in report.ROWS:
        assert row["times_best_peer"] > 0
        assert row["variants"]["native"]["share_of_copy_bandwidth"] > 0
    assert "topk_mask" in gpu_targets.table(report.ROWS)
    assert "TB/s" in report.tables()


def failing():
    raise RuntimeError("out of memory,\n as it were")


def test_a_peer_that_fails_leaves_its_error_and_the_others_are_timed(gpu_bench):
    x = torch.ones(4)
    gpu_bench.compare("op", "case", {"native": lambda: x}, {"a": failing, "b": lambda: x}, expected=lambda: x)
    variants = report.ROWS[0]["variants"]
    assert variants["a"] == {"error": "RuntimeError: out of memory, as it were"}
    assert report.ROWS[0]["best_peer"] == "b"


def test_a_wrong_result_of_ours_is_not_timed_and_fails_after_the_others_are(gpu_bench):
    x = torch.ones(4)
    ours = {"triton": lambda: x + 1, "native": lambda: x}
    with pytest.raises(AssertionError, match="triton: AssertionError: relative error"):
        gpu_bench.compare("op", "case", ours, {"eager": lambda: x}, expected=lambda: x)
    assert report.ROWS[0]["ours"] == "native"
    assert "milliseconds" not in report.ROWS[0]["variants"]["triton"]
    report.tables()


def test_nothing_that_works_leaves_a_row_of_errors(gpu_bench):
    with pytest.raises(AssertionError, match="out of memory"):
        gpu_bench.compare("op", "case", {"native": failing}, {}, expected=lambda: torch.ones(1), moved=1.0)
    assert "error" in report.ROWS[0]["variants"]["native"]
    assert "op" in report.tables()


def test_what_a_lost_device_leaves_ends_the_run(gpu_bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", failing)
    with pytest.raises(pytest.exit.Exception, match="broke the CUDA context"):
        gpu_bench.compare("op", "case", {"native": failing}, {}, expected=lambda: torch.ones(1))


def test_the_targets_are_judged():
    variants = {
        "triton": {"extra_bytes": 1, "share_of_matrix_rate": 0.5},
        "eager": {"extra_bytes": 1000},
    }
    case = f"forward {gpu_targets.LARGE}"
    row = {"operator": "diagonal_attention", "case": case, "timed": "calls", "ours": "triton"}
    row |= {"variants": variants, "times_best_peer": 2.6}
    table = gpu_targets.table([row])
    assert "times the best peer ≥ 2.5: 2.6 reached" in table
    assert "of the matrix rate ≥ 0.6: 0.5 missed" in table
    assert "of eager's extra memory ≤ 0.01: 0.001 reached" in table
    assert f"forward {gpu_targets.SMALL}, times the best peer: not measured" in table
    assert "swap_patches" not in table


def test_results_and_plot_are_written(gpu_bench, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    x = torch.ones(4)
    gpu_bench.compare("op", "case", {"native": lambda: x}, {"eager": lambda: x}, expected=lambda: x)
    path = report.write(torch.device("cuda"), str(tmp_path / "gpu.json"))
    assert {"machine", "driver", "cuda", "torch", "triton", "date"} <= set(
        report.json.loads(path.read_text())
    )
    pytest.importorskip("matplotlib")
    report.plot(path)
    assert path.with_suffix(".png").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["flash", "flex"])
def test_the_peers_by_logsumexp_compute_the_same(kernel):
    q, k, v = torch.randn(3, 2, 3, 17, 16)
    if kernel == "flash":
        result = baselines.diagonal_from_logsumexp(q, k, v, baselines.flash_logsumexp(q, k, v))
    else:
        result = baselines.flex_diagonal(q, k, v)
    timing.close(result, baselines.full_attention(q, k, v))
