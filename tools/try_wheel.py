"""Installs a wheel into a fresh environment and uses it there: python tools/try_wheel.py WHEEL [PYTHON...]

Nothing but what the wheel brings is installed, and no file of this repository is on the path. Each PYTHON gets an
environment of its own; it is this one if none is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
USE = """
import torch, micron_kernels
from micron_kernels import diagonal_attention, frame_difference, mask_tokens, swap_patches
query, key, value = torch.randn(3, 2, 1, 97, 40)
frames = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
calls = {
    "diagonal_attention": lambda impl: diagonal_attention(query, key, value, impl=impl),
    "frame_difference": lambda impl: frame_difference(frames, frames.flip(0), 8, impl=impl),
    "mask_tokens": lambda impl: mask_tokens(query[:, 0], value[:, 0, :, 0], 0.25, impl=impl),
    "swap_patches": lambda impl: swap_patches(frames, frames.flip(0), torch.rand(2, 16) < 0.5, 8, impl=impl),
}
for name, call in calls.items():
    torch.manual_seed(0)
    native = call("native")
    torch.manual_seed(0)
    torch.testing.assert_close(native, call("reference"))
print("native kernels of", micron_kernels.__version__, "at", micron_kernels.__file__)
"""
COMMANDS = (
    "micron info",
    "micron data make-lookalike casme2 tree --subjects 3 --clips 3 --side 64",
    "micron evaluate casme2 tree --recognizer flow --scheme 3 --allow-differences --no-detect --no-shuffled --seeds 1 "
    "--out scores",
)  # fmt: skip


def try_wheel(wheel: Path, python: str) -> None:
    """Raises CalledProcessError where a step fails."""
    with tempfile.TemporaryDirectory() as folder:

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, env=environment, check=True)

        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MICRON"))}
        run(python, "-m", "venv", "own")
        programs = Path(folder, "own", "bin")
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        run(
            str(programs / "pip"),
            "install",
            "--quiet",
            "--no-compile",
            "--only-binary",
            ":all:",
            "-c",
            str(CONSTRAINTS),
            str(wheel),
        )
        run(str(programs / "python"), "-c", USE)
        for command in COMMANDS:
            run(*command.split())


def main() -> None:
    wheel, pythons = Path(sys.argv[1]).resolve(), sys.argv[2:] or [sys.executable]
    for python in pythons:
        try_wheel(wheel, python)
        print(f"{wheel.name}: installed and used by {python}")


if __name__ == "__main__":
    main()
