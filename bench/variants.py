"""Diagonal attention's native kernels, built in several ways and timed in turn: what of two constants is faster here?

python bench/variants.py [SCRIPT ...]

A SCRIPT is one for sed -E, applied to a copy of csrc/; the sources as they are come first. So

    python bench/variants.py 's/(int BY_FMA =).*/\\1 0;/' 's/(int STAGES = .*: )6/\\15/'

tries no exponential as a polynomial, and one stage less. Each is built by a process of its own, all at once, and its
results are held against the formula in fp64. Then they take turns: microseconds of one CUDA graph replay with a cold L2
cache (of one call on a CPU), medians of ROUNDS, and times the first. A variant that cannot be built, or is wrong, is
told with its message; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, CALLS = 7, 5
SECONDS = 90  # for a variant to check itself, or for a round of its times: a kernel may hang
FIRST = "as it is"


def copy_of(script: str, folder: Path) -> None:
    """The sources in ``folder``, changed; SystemExit where the script changes none."""
    for name in ("csrc", "micron_kernels", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    if script == FIRST:
        return
    files = sorted(x for x in (folder / "csrc").rglob("*") if x.is_file())
    before = [x.read_bytes() for x in files]
    if subprocess.run(["sed", "-E", "-i", script, *files]).returncode or before == [
        x.read_bytes() for x in files
    ]:
        sys.exit(f"{script}: changes nothing in csrc/")


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, checked before: bf16, forward and with gradients."""
    import torch
    from baselines import full_attention
    from bench_diagonal_attention import GPU_SHAPES

    from micron_kernels import diagonal_attention

    on_gpu = torch.cuda.is_available()
    for batch, heads, length, width in GPU_SHAPES:
        shape = (batch, heads, length, width) if on_gpu else (1, 1, min(length, 200), width)
        qkv = [
            torch.randn(shape, device="cuda" if on_gpu else "cpu").bfloat16().requires_grad_() for _ in "qkv"
        ]
        gradient = torch.randn_like(qkv[0])

        def both(q, k, v, gradient, attention=diagonal_attention):
            out = attention(q, k, v)
            return out, *torch.autograd.grad(out, (q, k, v), gradient)

        one = [x[:1].detach().requires_grad_() for x in (*qkv, gradient)]
        expected = both(*(x.double().detach().requires_grad_() for x in one), attention=full_attention)
        for got, right in zip(both(*one), expected, strict=True):
            error = ((got - right).norm() / right.norm()).item()
            assert error < 0.01, f"{shape}: error {error:.2g} of the norm"  # NaN fails too
        q, k, v = (x.detach() for x in qkv)
        yield f"forward {shape}", lambda q=q, k=k, v=v: diagonal_attention(q, k, v)
        yield f"forward + backward {shape}", lambda qkv=qkv, gradient=gradient: both(*qkv, gradient)


def serve() -> None:
    """One variant: a line of JSON with microseconds by case for each line that comes in; first of all an empty one."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    import torch

    on_gpu, functions = torch.cuda.is_available(), dict(cases())
    if on_gpu:
        import timing_gpu

        functions = {name: timing_gpu.captured(function) for name, function in functions.items()}

    def microseconds(function: Callable[[], object]) -> float:
        now = timing_gpu.now if on_gpu else time.perf_counter
        taken = []
        for _ in range(CALLS):
            if on_gpu:
                timing_gpu.before(function, True)
            start = now()
            function()
            taken.append((now() - start) * 1e6)
        return statistics.median(taken)

    print("{}", flush=True)
    faulthandler.cancel_dump_traceback_later()  # others have their turn
    for _ in sys.stdin:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps({name: microseconds(x) for name, x in functions.items()}), flush=True)
        faulthandler.cancel_dump_traceback_later()


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    paths = [str(folder), str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def measured(folders: dict[str, Path]) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Times by case and variant, and what is to be said of the variants that have none."""
    builds = {
        name: started(["setup.py", "-q", "build_ext", "--inplace"], folder)
        for name, folder in folders.items()
    }
    failures, variants = {}, {}
    for name, build in builds.items():
        text = "".join(build.communicate())
        if build.returncode:
            failures[name] = text
        else:
            variants[name] = started([__file__, "--serve"], folders[name])
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(1 + ROUNDS):  # of the first all of them prepare at once
        for name, process in list(variants.items()):
            if turn > 0:
                print(file=process.stdin, flush=True)
            if not (line := process.stdout.readline()):
                failures[name] = variants.pop(name).communicate()[1]
                continue
            for case, value in json.loads(line).items():
                times.setdefault(case, {}).setdefault(name, []).append(value)
    for process in variants.values():
        process.communicate()
    return times, failures


def main(scripts: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate([FIRST, *scripts])}
        for name, folder in folders.items():
            copy_of(name, folder)
        times, failures = measured(folders)
    for case, by_name in times.items():
        print(case)
        for name, values in by_name.items():
            ratios = [first / value for first, value in zip(by_name.get(FIRST, []), values, strict=False)]
            versus = f"{statistics.median(ratios):6.3f}×" if ratios else ""
            print(f"  {statistics.median(values):10.1f} µs {versus:7s}  {name}")
    for name, text in failures.items():
        print(f"{name}: no times\n{text[-2000:]}")
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="for sed -E, on csrc/")
        sys.exit(main(parser.parse_args().scripts))
