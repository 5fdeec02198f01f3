"""The calls that ``make sanitize`` watches on a GPU, on a CPU."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

if not TOOLS.exists():
    pytest.skip("these tests run on an installed package, without its source", allow_module_level=True)

spec = importlib.util.spec_from_file_location("small_calls", TOOLS / "small_calls.py")
small_calls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small_calls)


def test_every_case_agrees_with_the_reference(monkeypatch, capsys):
    monkeypatch.setattr(
        small_calls, "why_not", lambda available, impl, *_, **__: None if impl == "native" else "is not asked"
    )
    if "native" not in small_calls.OPERATORS["swap_patches"].IMPLEMENTATIONS:
        pytest.skip("the extension was not built")
    assert small_calls.main(["--device", "cpu"]) == 0
    assert "0 cases of triton, 33 cases of native, 0 wrong" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    monkeypatch.setattr(small_calls, "why_not", lambda available, impl, *_, **__: None)
    of_case = small_calls.results
    monkeypatch.setattr(
        small_calls,
        "results",
        lambda case, impl, device: [
            x + (impl == "native") if x.is_floating_point() else x for x in of_case(case, "reference", device)
        ],
    )
    assert small_calls.main(["--device", "cpu", "--operator", "swap_patches"]) == 1
    assert "6 cases of triton, 6 cases of native, 6 wrong" in capsys.readouterr().out


def test_nothing_to_call_is_no_success(monkeypatch):
    monkeypatch.setattr(small_calls, "why_not", lambda *_, **__: "is not there")
    assert small_calls.main(["--device", "cpu"]) == 1


@pytest.mark.parametrize("script", ["tools/sanitize_gpu.sh", "bench/gpu.sh"])
def test_the_scripts_for_a_gpu_say_why_they_do_nothing_without_one(script, tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": small_calls.sys.executable}
    command = ["bash", str(TOOLS.parent / script), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no CUDA GPU" in result.stderr
