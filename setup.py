"""Builds the compiled half of micron_kernels; everything else is declared in pyproject.toml.

The extension is one shared library on the LibTorch stable ABI: the CPU half always, the CUDA half where nvcc is
found. Without a compiler, or when the build fails, the installation goes on in pure Python and says so.

Environment: MICRON_BUILD=cpu|cuda|none, MAX_JOBS, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, CXXFLAGS, LDFLAGS.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable ABI of torch 2.11
CXXFLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
]
NVCCFLAGS = ["-O3", "-std=c++17", "-DUSE_CUDA", TARGET, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
AVX512 = (
    "-march=x86-64-v4 -mprefer-vector-width=512 -Wno-uninitialized -Wno-maybe-uninitialized"  # GCC bug 105593
)
#: Flags by instruction set. Every kernel is compiled once for each, in a namespace of that name.
INSTRUCTION_SETS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c -mbmi2",
    "avx512": AVX512,
    "avx512_bf16": AVX512 + " -mavx512bf16",
}
X86 = platform.machine().lower() in ("x86_64", "amd64")
#: Code for 8.0 serves 8.6 and 8.9 too, and its PTX every chip that has none here: PTX for an "a" runs nowhere else.
DEFAULT_CUDA_ARCHITECTURES = "8.0+PTX;9.0a;10.0a;12.0a"


class CannotBuild(Exception):
    """Why there is no compiled half, in one line."""


def kernel_sources() -> list[tuple[str, str]]:
    """(source, instruction set) of everything that is compiled once for each."""
    pairs = []
    for source in sorted((ROOT / "csrc").glob("*/*.cpp")):
        if source.parent.name == "cpu" or source.name == "cpu.cpp":
            continue
        sets = INSTRUCTION_SETS if source.parent.name == "diagonal_attention" else list(INSTRUCTION_SETS)[:3]
        pairs += [(str(source), name) for name in sets if X86 or name == "portable"]
    return pairs


def host_sources() -> list[str]:
    csrc = ROOT / "csrc"
    return [
        str(p)
        for p in (csrc / "module.cpp", *sorted(csrc.glob("cpu/*.cpp")), *sorted(csrc.glob("*/cpu.cpp")))
    ]


def cuda_home() -> Path | None:
    """The CUDA toolkit: by the environment, by nvcc on the path, or where it is by default."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named)
    on_path = shutil.which("nvcc")
    for home in ([Path(on_path).resolve().parents[1]] if on_path else []) + [Path("/usr/local/cuda")]:
        if (home / "bin" / "nvcc").exists() and cuda_runtime(home) is not None:
            return home
    return None


def cuda_runtime(home: Path) -> Path | None:
    """The folder of libcudart_static.a."""
    folders = [home / "lib64", home / "lib", *home.glob("targets/*/lib")]
    return next((folder for folder in folders if (folder / "libcudart_static.a").exists()), None)


def cuda_sources(build: str) -> tuple[list[str], Path, str]:
    """(sources, home of CUDA, why there are no sources)."""
    sources = [str(p) for p in sorted((ROOT / "csrc").glob("*/cuda.cu"))]
    home = cuda_home()
    reason = ""
    if build == "cpu":
        reason = "left out by MICRON_BUILD=cpu"
    elif not sources:
        reason = "this version has no CUDA kernels"
    elif home is None or not (home / "bin" / "nvcc").exists():
        reason = "nvcc was not found; set CUDA_HOME"
    elif cuda_runtime(home) is None:
        reason = f"libcudart_static.a was not found in {home}"
    if reason and build == "cuda":
        raise CannotBuild(f"MICRON_BUILD=cuda, but {reason}")
    return ([] if reason else sources), home or Path(), reason


def gencode(architectures: str) -> list[str]:
    """nvcc flags for a TORCH_CUDA_ARCH_LIST such as "8.0;9.0a+PTX"."""
    flags = []
    for architecture in architectures.split(";"):
        number = architecture.removesuffix("+PTX").replace(".", "")
        if not number:
            continue
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild("torch is not installed in the build environment: use --no-build-isolation")
    return Path(next(iter(spec.submodule_search_locations)))


def find_ninja() -> str:
    spec = importlib.util.find_spec("ninja")
    beside_python = Path(sys.executable).with_name("ninja")
    found = shutil.which("ninja") or (str(beside_python) if beside_python.exists() else None)
    if found is None and spec is not None:
        import ninja

        found = str(Path(ninja.BIN_DIR) / "ninja")
    if found is None:
        raise CannotBuild("ninja was not found: pip install ninja")
    return found


def quote(flags: list[str]) -> str:
    """Flags for a ninja variable, which a shell will read."""
    import shlex

    return " ".join(shlex.quote(flag).replace("$", "$$") for flag in flags)


def ninja_file(output: Path, objects: Path, build: str) -> str:
    torch = torch_folder()
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise CannotBuild(f"the C++ compiler {compiler!r} was not found")
    cuda, home, no_cuda = cuda_sources(build)
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
    architectures = ";".join(wanted.replace(",", " ").replace(";", " ").split())
    flags = [*CXXFLAGS, TARGET, *os.environ.get("CXXFLAGS", "").split()]
    sets = "; ".join(
        f"{name}: {extra or 'baseline'}" for name, extra in INSTRUCTION_SETS.items() if X86 or not extra
    )
    includes = ["-isystem", str(torch / "include"), "-isystem", sysconfig.get_paths()["include"]]
    facts = {
        "MICRON_BUILD_FLAGS": f"{' '.join(flags)} ({sets})",
        "MICRON_CUDA_ARCHITECTURES": architectures if cuda else "",
        "MICRON_NO_CUDA_REASON": no_cuda,
    }
    definitions = ["-DMICRON_X86"] if X86 else []
    libraries = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if cuda:
        libraries += [
            f"-L{cuda_runtime(home)}",
            "-lcudart_static",
            "-ldl",
            "-lrt",
            "-lpthread",
        ]
    shared = ["-undefined", "dynamic_lookup", "-bundle"] if sys.platform == "darwin" else ["-shared"]
    lines = [
        f"cxx = {compiler}",
        f"flags = {quote([*flags, *definitions])}",
        f"torch_flags = {quote(includes)}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {home / 'bin' / 'nvcc'} -MD -MF $out.d {quote([*gencode(architectures), *NVCCFLAGS])} "
        "$torch_flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx $in -o $out {quote([*shared, *libraries, *os.environ.get('LDFLAGS', '').split()])}",
    ]
    built = []

    def compile_(source: str, suffix: str, rule: str, extra: str) -> None:
        target = objects / (str(Path(source).relative_to(ROOT / "csrc")).replace(os.sep, "_") + suffix)
        lines.append(f"build {target}: {rule} {source}")
        lines.append(f"  extra = {extra}")
        built.append(str(target))

    for source in host_sources():
        is_module = Path(source).name == "module.cpp"
        extra = quote([f'-D{name}="{value}"' for name, value in facts.items()]) if is_module else ""
        compile_(source, ".o", "compile", f"$torch_flags {extra}")
    for source, name in kernel_sources():
        compile_(source, f".{name}.o", "compile", f"-DMICRON_INSTRUCTION_SET={name} {INSTRUCTION_SETS[name]}")
    for source in cuda:
        compile_(source, ".o", "nvcc", "")
    lines.append(f"build {output}: link {' '.join(built)}")
    return "\n".join(lines) + "\n"


class BuildWithNinja(build_ext):
    built = False

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = Path(self.build_temp).resolve()
        try:
            if os.environ.get("MICRON_BUILD") == "none":
                raise CannotBuild("left out by MICRON_BUILD=none")
            objects.mkdir(parents=True, exist_ok=True)
            output.parent.mkdir(parents=True, exist_ok=True)
            file = objects / "build.ninja"
            file.write_text(ninja_file(output, objects, os.environ.get("MICRON_BUILD") or "auto"))
            jobs = os.environ.get("MAX_JOBS")
            command = [find_ninja(), "-f", str(file), *(["-j", jobs] if jobs else [])]
            if subprocess.run(command, cwd=objects).returncode:
                raise CannotBuild("the compiler reported the errors above")
            self.built = True
        except (CannotBuild, OSError) as why:
            output.unlink(missing_ok=True)  # of an earlier build: it would go into the wheel
            if os.environ.get("MICRON_BUILD") in ("cpu", "cuda"):
                raise SystemExit(f"micron_kernels: {why}") from None
            print(
                f"micron_kernels: installing in pure Python, without native kernels: {why}", file=sys.stderr
            )

    def copy_extensions_to_source(self) -> None:
        """For an editable installation: without a new binary, an older one must not stay."""
        if not self.built:
            (ROOT / self.get_ext_filename("micron_kernels._native")).unlink(missing_ok=True)
        super().copy_extensions_to_source()


def extensions() -> list[Extension]:
    build = os.environ.get("MICRON_BUILD") or "auto"
    if build not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"MICRON_BUILD={build}; it must be cpu, cuda, none or not set")
    return [Extension("micron_kernels._native", sources=[], optional=True)]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildWithNinja})
