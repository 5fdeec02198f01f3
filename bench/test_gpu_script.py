"""``bench/gpu.sh``, with a python that has a GPU and does nothing."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu.sh")
PYTHON = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
    *get_device_capability*) echo 9.0 ;;
    *micron_kernels.info*) echo "micron_kernels  0.1.0" ;;
    *max-time=0.001*bench_pretrain_step*) echo warming >>"$CALLS"; sleep 1; echo "the step is warm" >>"$CALLS" ;;
    *max-time=0.001*) echo warming >>"$CALLS"; sleep 60; echo "warmed to the end" >>"$CALLS" ;;
    *"setup.py build_ext"*) until [[ $(grep -c ^warming "$CALLS") -eq $WARMED ]]; do sleep 0.01; done ;;
    *--benchmark-json*) echo "  poi_topk topk_mask: times topk + scatter ≥ 4: 5 reached" ;;
esac
"""
KERNEL = "void micron::diagonal_attention::pass_kernel<(bool)0, __nv_bfloat16, (int)2>(micron::Pass<T2>)"
SANITIZER = f"""#!/bin/bash
[[ "$*" == *racecheck* ]] || exit 0
echo "========= Error: Race reported between Write access at {KERNEL}+0x2150"
for address in 4970 4980 4c70; do
    echo "=========     and Read access at {KERNEL}+0x$address [384 hazards]"
done
echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
exit 9
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script with these parts: what it printed, and the calls of python."""
    for name, text in {"python": PYTHON, "compute-sanitizer": SANITIZER}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PYTHON": str(tmp_path / "python"),
        "COMPUTE_SANITIZER": str(tmp_path / "compute-sanitizer"),
        "CALLS": str(tmp_path / "calls"),
    }

    def run(*parts, **settings):
        (tmp_path / "calls").write_text("")
        command = [str(SCRIPT), str(tmp_path / "out"), *parts]
        warmed = {"WARMED": "5" if "benchmark" in parts else "0"}
        done = subprocess.run(
            command, env=environment | warmed | settings, capture_output=True, text=True, timeout=50
        )
        return done, (tmp_path / "calls").read_text()

    return run


def test_the_benchmark_waits_for_the_step_alone_to_be_compiled(script):
    done, calls = script("build", "benchmark")  # no 60 seconds of the others' warm-up are waited for
    assert done.returncode == 0
    warmed = [line for line in calls.splitlines() if "--benchmark-max-time=0.001" in line]
    timed = [line for line in calls.splitlines() if "--benchmark-json" in line and line not in warmed]
    assert len(warmed) == len(timed) == 5
    assert all("out/results.json" in line for line in timed)
    assert not any("out/results.json" in line for line in warmed)
    assert "warmed to the end" not in calls
    assert calls.index("the step is warm") < calls.index("out/results.json")


def test_a_step_that_compiles_for_too_long_is_not_waited_for(script):
    done, calls = script("build", "benchmark", WARM_UP_SECONDS="0")
    assert (done.returncode, "the step is warm" in calls, "out/results.json" in calls) == (0, False, True)


def test_a_lost_step_loses_no_operator(script):
    _, calls = script("benchmark")
    timed = [line for line in calls.splitlines() if "out/results.json" in line]
    assert len(timed) == 5
    assert "bench_pretrain_step" in timed[-1]


def test_the_summary_is_of_the_parts_that_ran(script):
    done, _ = script("build")
    assert "micron_kernels  0.1.0" in done.stdout
    done, calls = script("benchmark")
    assert "micron_kernels  0.1.0" not in done.stdout
    assert "5 reached" in done.stdout
    assert "max-time" not in calls  # without another part there is nothing beside which to compile


def test_a_race_is_in_the_summary_with_its_kernel_once(script):
    done, _ = script("sanitizer")
    assert done.returncode == 1
    assert (
        done.stdout.count(f"racecheck: ========= Error: Race reported between Write access at {KERNEL}\n")
        == 1
    )
    assert done.stdout.count(f"and Read access at {KERNEL}\n") == 1
    assert "sanitize: errors from racecheck" in done.stdout


def test_an_unknown_part_is_refused_before_anything_runs(script):
    done, calls = script("build", "bench")
    assert (done.returncode, "not bench" in done.stderr) == (2, True)
    assert "setup.py" not in calls
