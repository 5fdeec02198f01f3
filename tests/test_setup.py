"""What setup.py leaves behind when it cannot build the extension."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

if not (ROOT / "setup.py").exists():
    pytest.skip("these tests run on an installed package, without its source", allow_module_level=True)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "the C++ compiler 'no-such-compiler' was not found"),
        ({"CXX": "false"}, "the compiler reported the errors above"),
        ({"MICRON_BUILD": "none"}, "left out by MICRON_BUILD=none"),
    ],
    ids=["no compiler", "errors", "none"],
)
def test_a_binary_of_an_earlier_build_does_not_stay(tmp_path, environment, reason):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    binary = "_native" + sysconfig.get_config_var("EXT_SUFFIX")
    stale = [tmp_path / "micron_kernels" / binary, tmp_path / "lib" / "micron_kernels" / binary]
    for file in stale:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"an earlier build")
    inherited = {name: value for name, value in os.environ.items() if name not in ("CXX", "MICRON_BUILD")}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-lib", "lib"]
    result = subprocess.run(
        command, cwd=tmp_path, env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    assert f"installing in pure Python, without native kernels: {reason}" in result.stderr
    assert not any(file.exists() for file in stale)
