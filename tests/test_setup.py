"""Installations into fresh environments, and what is left behind where the extension cannot be built.

The project that is installed is this one with csrc/ cut down to one small file, so that the ways to a build can be
walked in seconds; torch is lent to the environments by links.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

if not (ROOT / "setup.py").exists():
    pytest.skip("these tests run on an installed package, without its source", allow_module_level=True)

sys.path.insert(0, str(ROOT / "tools"))
import check_wheel  # noqa: E402
import find_cuda  # noqa: E402
from find_torch import CannotBuild, Torch  # noqa: E402

BINARY = "_native" + sysconfig.get_config_var("EXT_SUFFIX")
INHERITED = {
    name: value
    for name, value in os.environ.items()
    if name not in ("MICRON_BUILD", "CXX", "CXXFLAGS", "LDFLAGS", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")
}
USE = """
import sys, warnings
# An editable installation of what runs the tests would lend its binary.
sys.meta_path[:] = [x for x in sys.meta_path if getattr(x, "__name__", "") != "_EditableFinder"]
import torch, micron_kernels
from micron_kernels import _extension, info
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {call}
    {call}
print(*(str(w.message) for w in caught), sep="\\n")
print(len(caught), "warnings;", "native" if _extension.module else "reference")
print(info.describe())
"""
USE_NOTHING = USE.format(call="pass")
USE_TWICE = USE.format(call="micron_kernels.topk_mask(torch.rand(1, 4), 2)")


def run(command, environment=(), check=True, **options):
    environment = {**INHERITED, **dict(environment)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def write_project(folder: Path) -> Path:
    (folder / "tools").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", *FINDERS):
        shutil.copy(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("__pycache__", "_native*", "_build.json")
    shutil.copytree(ROOT / "micron_kernels", folder / "micron_kernels", ignore=ignored)
    (folder / "csrc" / "poi_topk").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "installed" / "module.cpp", folder / "csrc")
    (folder / "csrc" / "poi_topk" / "cuda.cu").write_text("#include <torch/headeronly/macros/Macros.h>\n")
    return folder


FINDERS = ("tools/find_torch.py", "tools/find_cuda.py")


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path / "project")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """What [build-system] requires, as files: nothing else is fetched."""
    folder = tmp_path_factory.mktemp("wheels")
    required = ["setuptools", "ninja", "pybind11"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    result = run([*command, "-c", ROOT / "constraints.txt", *required], check=False)
    if result.returncode:
        pytest.skip(f"pip cannot fetch {', '.join(required)}: {result.stderr[-300:]}")
    return folder


@pytest.fixture(scope="session")
def lent(tmp_path_factory):
    """A folder of packages with torch and what it needs, without anything that builds."""
    folder = tmp_path_factory.mktemp("lent")
    for entry in Path(torch.__file__).parents[1].iterdir():
        kept_out = ("micron", "setuptools", "ninja", "pybind11", "pip", "_distutils_hack", "__editable__")
        if not entry.name.startswith(kept_out) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def environment(tmp_path, lent):
    """A function that makes a fresh environment, with torch or without, and returns its interpreter."""

    def make(with_torch=True):
        folder = tmp_path / "environment"
        run([sys.executable, "-m", "venv", "--without-pip", folder])
        if with_torch:
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "lent.pth").write_text(f"{lent}\n")
        return folder / "bin" / "python"

    return make


@pytest.fixture
def pip(wheels):
    def pip(python, *arguments, environment=(), check=True, before=()):
        offline = ["--no-index", "--find-links", wheels, "--no-deps", "--no-cache-dir"]
        command = [*before, sys.executable, "-m", "pip", "--python", python, *arguments[:1], *offline]
        return run([*command, *arguments[1:]], environment, check)

    return pip


def made_read_only(folder: Path) -> list[str]:
    """What to put before a command for which ``folder`` is to be read-only; modes do not bind root."""
    if os.geteuid() != 0:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        return []
    if shutil.which("unshare") is None or run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("root without the right to mount has no read-only folders")
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    return ["unshare", "-m", "sh", "-c", mount, str(folder)]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_isolated_build_uses_the_torch_of_its_target_whatever_the_path(tmp_path, environment, pip):
    """From a read-only tree; the path and the compiler's hold what ninja, a shell, make or C would read."""
    odd = "My Projects, μ $HOME: #1 'a' \"b\" & 50%"
    project = write_project(tmp_path / odd)
    compiler = script(tmp_path / odd / "bin" / "c++", f'exec {os.environ.get("CXX", "c++")} "$@"')
    flags = {"CXX": str(compiler), "CXXFLAGS": "-DTEXT='\"a $b\"' -O0", "LDFLAGS": "-Wl,-rpath-link,'/a b'"}
    python = environment()
    pip(python, "install", str(project), environment=flags, before=made_read_only(project))
    output = run([python, "-c", USE_NOTHING], cwd=tmp_path).stdout
    assert "0 warnings; native" in output
    assert f"against torch {torch.__version__}" in output
    assert '-DTEXT="a $b"' in output
    assert "MICRON_BUILD=cuda" in output or torch.version.cuda or find_cuda.gpu_is_visible()


def test_a_source_distribution_makes_a_wheel_whose_every_foreign_library_is_found(
    tmp_path, project, environment, pip
):
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path], cwd=project)
    (archive,) = tmp_path.glob("*.tar.gz")
    ccache = script(
        tmp_path / "bin" / "ccache", f'echo used >> {shlex.quote(str(tmp_path / "log"))}\nexec "$@"'
    )
    build = {
        "CXX": "ccache c++",
        "CXXFLAGS": "-O0",
        "LDFLAGS": "-Wl,--no-as-needed -Ltorch_lib -lc10",
        "PATH": f"{ccache.parent}{os.pathsep}{os.environ['PATH']}",
    }
    pip(environment(), "wheel", "--wheel-dir", tmp_path, str(archive), environment=build)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert f"micron_kernels/{BINARY}" in names
    assert "micron_kernels/_build.json" not in names
    assert (tmp_path / "log").exists()
    assert list(check_wheel.findings(wheel)) == ["needs libc10.so"]


def test_without_a_compiler_the_first_call_warns_once_with_reason_and_mend(
    project, tmp_path, environment, pip
):
    python = environment()
    pip(python, "install", str(project), environment={"CXX": "no-such-compiler"})
    output = run([python, "-c", USE_TWICE], cwd=tmp_path).stdout
    reason = "the C++ compiler 'no-such-compiler' was not found"
    assert "1 warnings; reference" in output
    warning = output.splitlines()[0]
    assert f"runs in plain PyTorch, which is slower: the extension was not built: {reason}" in warning
    assert warning.endswith(f"--force-reinstall --no-deps --no-cache-dir {project}") or "uv pip" in warning
    assert f"none: the extension was not built: {reason}" in output


def test_without_torch_nothing_is_built_unless_it_was_asked_for(project, environment, pip):
    python = environment(with_torch=False)
    pip(python, "install", str(project))
    (record,) = python.parents[1].glob("lib/python*/site-packages/micron_kernels/_build.json")
    said = f"torch was not installed in {python.parents[1]} when micron-kernels was: install torch first"
    assert json.loads(record.read_text()) == {"reason": said, "wanted": False}
    failed = pip(python, "install", str(project), environment={"MICRON_BUILD": "cpu"}, check=False)
    assert failed.returncode != 0
    assert said in failed.stdout + failed.stderr


def build_in_place(project, environment=(), check=True):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-lib", "lib"]
    return run(command, {"CXXFLAGS": "-O0", **dict(environment)}, check, cwd=project)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "the C++ compiler 'no-such-compiler' was not found"),
        ({"CXX": "false"}, "the compiler failed at module.cpp.o: it said nothing"),
        ({"CXX": "c++", "CXXFLAGS": "-O0 -include missing.h"}, "missing.h: No such file"),
        ({"CXXFLAGS": "-DA='"}, 'CXXFLAGS="-DA=\'": No closing quotation'),
        ({"MAX_JOBS": "many"}, "the compiler failed at ninja: ninja: fatal: invalid -j parameter"),
        ({"MICRON_BUILD": "none"}, "left out by MICRON_BUILD=none"),
        ({"MICRON_BUILD": "cpu", "CXX": "no-such-compiler"}, "the C++ compiler 'no-such-compiler'"),
    ],
    ids=["no compiler", "silent", "errors", "quotes", "jobs", "none", "asked for"],
)
def test_a_binary_of_an_earlier_build_does_not_stay(project, environment, reason):
    stale = [project / "micron_kernels" / BINARY, project / "lib" / "micron_kernels" / BINARY]
    for file in stale:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"an earlier build")
    asked = environment.get("MICRON_BUILD") == "cpu"
    result = build_in_place(project, environment, check=not asked)
    assert (result.returncode != 0) == asked
    assert reason in result.stderr
    assert not any(file.exists() for file in stale)
    record = project / "micron_kernels" / "_build.json"
    assert record.exists() != asked
    assert asked or reason in json.loads(record.read_text())["reason"]


def test_an_extension_of_other_sources_than_the_checkout_holds_is_not_used(project):
    build_in_place(project, {"MICRON_BUILD": "cpu"})
    (project / "csrc" / "poi_topk" / "kernel.h").write_text("// as a pull brings it\n")
    output = run([sys.executable, "-c", USE_TWICE], cwd=project).stdout
    assert "1 warnings; reference" in output
    reason = f"the extension was built from other sources than {project / 'csrc'} holds"
    warning = output.splitlines()[0]
    assert f"runs in plain PyTorch, which is slower: {reason}. To build it: " in warning
    assert warning.endswith(f" -e {project}")
    assert f"none: {reason}" in output
    build_in_place(project, {"MICRON_BUILD": "cpu"})
    (project / "csrc" / "poi_topk" / "cuda.cu").write_text("// no part of this build\n")
    assert "0 warnings; native" in run([sys.executable, "-c", USE_NOTHING], cwd=project).stdout


def test_who_wanted_no_extension_is_not_warned(project):
    build_in_place(project, {"MICRON_BUILD": "none"})
    output = run([sys.executable, "-c", USE_TWICE], cwd=project).stdout
    assert "0 warnings; reference" in output
    assert "left out by MICRON_BUILD=none" in output


@pytest.fixture
def torch_with_cuda(tmp_path):
    """The path of a torch that says it has CUDA, with the headers and libraries of the one that is here."""
    folder = tmp_path / "packages" / "torch"
    folder.mkdir(parents=True)
    for name in ("include", "lib"):
        (folder / name).symlink_to(Path(torch.__file__).parent / name)
    (folder / "__init__.py").touch()
    (folder / "version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\n")
    return folder


def test_a_failing_nvcc_does_not_cost_the_cpu_half(project, tmp_path, torch_with_cuda):
    said = "host_config.h:151:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported"
    script(tmp_path / "cuda" / "bin" / "nvcc", f"echo '{said}'; exit 1")
    (tmp_path / "cuda" / "lib64").mkdir()
    (tmp_path / "cuda" / "lib64" / "libcudart_static.a").touch()
    build = {"PYTHONPATH": str(torch_with_cuda.parent), "CUDA_HOME": str(tmp_path / "cuda")}
    build_in_place(project, build)
    output = run([sys.executable, "-c", USE_NOTHING], cwd=project).stdout
    assert "0 warnings; native" in output
    assert f"half not built: the compiler failed at poi_topk_cuda.cu.o: {said}" in output
    failed = build_in_place(project, {**build, "MICRON_BUILD": "cuda"}, check=False)
    assert failed.returncode != 0
    assert said in failed.stderr


@pytest.mark.skipif(find_cuda.cuda_home() is None, reason="there is no nvcc")
def test_a_cuda_half_is_linked_and_loads_beside_any_torch(project):
    build_in_place(project, {"MICRON_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0a"})
    output = run([sys.executable, "-c", USE_NOTHING], cwd=project).stdout
    assert "0 warnings; native" in output
    assert "CUDA 9.0a" in output


def test_the_cuda_half_is_built_for_a_torch_with_cuda_or_beside_a_gpu(monkeypatch, tmp_path):
    for name, file in (("bin", "nvcc"), ("lib64", "libcudart_static.a")):
        (tmp_path / name).mkdir()
        script(tmp_path / name / file, "echo sm_80; echo sm_90")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def built(wanted, cuda, gpu):
        monkeypatch.setattr(find_cuda, "gpu_is_visible", lambda: gpu)
        return find_cuda.find_cuda(["x.cu"], wanted, Torch(tmp_path, tmp_path, "2.13.0", cuda))

    assert built("auto", cuda=True, gpu=False).architectures == ["8.0+PTX", "9.0a"]  # what this nvcc knows
    assert built("auto", cuda=False, gpu=True).sources == ["x.cu"]
    assert built("cuda", cuda=False, gpu=False).sources == ["x.cu"]
    assert "MICRON_BUILD=cuda builds it" in built("auto", cuda=False, gpu=False).reason
    assert "MICRON_BUILD=cpu" in built("cpu", cuda=True, gpu=True).reason
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a,10.0f;12.0+PTX")
    assert built("auto", cuda=True, gpu=True).architectures == ["8.0", "9.0a", "10.0f", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    assert "'Hopper'" in built("auto", cuda=True, gpu=True).reason
    with pytest.raises(CannotBuild, match="MICRON_BUILD=cuda, but TORCH_CUDA_ARCH_LIST holds 'Hopper'"):
        built("cuda", cuda=True, gpu=True)


def test_a_torch_older_than_the_stable_abi_is_named(torch_with_cuda):
    assert Torch.read(torch_with_cuda)[2:] == ("2.11.0", True)
    (torch_with_cuda / "version.py").write_text("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None\n")
    with pytest.raises(CannotBuild, match=r"torch 2\.9\.1\+cpu in .* is older than 2\.11: upgrade torch"):
        Torch.read(torch_with_cuda)
