"""Builds the compiled half of micron_kernels; everything else is declared in pyproject.toml.

The extension is one shared library on the LibTorch stable ABI: the CPU half always, the CUDA half where the torch
that it is built for has CUDA or a GPU is visible. Headers and libtorch_cpu come from the torch of the environment
that is installed into, which build isolation hides; torch itself is never imported. What cannot be built is left
out, and the reason goes into the package (micron_kernels/_build.json), for warnings and `micron_kernels.info`.

Environment: MICRON_BUILD=cpu|cuda|none, MAX_JOBS, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, CXXFLAGS, LDFLAGS.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
digest = runpy.run_path(str(ROOT / "micron_kernels" / "_sources.py"))["digest"]
for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a path may hold what the terminal's encoding lacks
sys.path.insert(0, str(ROOT / "tools"))
from find_cuda import Cuda, find_cuda, gencode  # noqa: E402
from find_torch import CannotBuild, Torch, find_torch  # noqa: E402

TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable ABI of torch 2.11
CXXFLAGS = shlex.split("-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wall")
NVCCFLAGS = ["-O3", "-std=c++17", "-DUSE_CUDA", TARGET, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
NVCCFLAGS += [
    "-Xptxas",
    "-v",
]  # what each kernel takes, into a log beside its object: tools/sass_report.py reads it
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
#: Beside the package's modules: why there is no extension, and whether that was wanted.
RECORD = "_build.json"
#: What a compiler, a linker or ninja says in the line that tells what went wrong.
ERROR = re.compile(r"\b(error|fatal)\s*:|cannot find|undefined reference|[Nn]o such file|not found|denied")


def kernel_sources() -> list[tuple[str, str]]:
    """(source, instruction set) of everything that is compiled once for each; sources relative to csrc."""
    pairs = []
    for source in sorted((ROOT / "csrc").glob("*/*.cpp")):
        operator = source.parent.name
        if operator == "cpu" or source.name == "cpu.cpp":
            continue
        sets = INSTRUCTION_SETS if operator == "diagonal_attention" else list(INSTRUCTION_SETS)[:3]
        pairs += [(f"{operator}/{source.name}", name) for name in sets if X86 or name == "portable"]
    return pairs


def sources(*patterns: str) -> list[str]:
    csrc = ROOT / "csrc"
    return [x.relative_to(csrc).as_posix() for pattern in patterns for x in sorted(csrc.glob(pattern))]


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


def pybind11_include(torch: Torch) -> Path:
    if importlib.util.find_spec("pybind11") is None:
        if (torch.include / "pybind11" / "pybind11.h").exists():  # without isolation; torch has a copy
            return torch.include
        raise CannotBuild("pybind11 was not found: pip install pybind11")
    import pybind11

    return Path(pybind11.get_include())


def words(name: str, default: str = "") -> list[str]:
    """An environment variable of words, quoted as for a shell."""
    text = os.environ.get(name) or default
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CannotBuild(f"{name}={text!r}: {error}") from None


def cxx() -> list[str]:
    """The C++ compiler: a path, which may hold spaces, or a command such as "ccache g++"."""
    whole = os.environ.get("CXX", "")
    command = [whole] if whole and shutil.which(whole) else words("CXX", "c++")
    if shutil.which(command[0]) is None:
        raise CannotBuild(
            f"the C++ compiler {shlex.join(command)!r} was not found: install one, or name it in CXX"
        )
    return command


def variable(flags: list[str]) -> str:
    """Flags for a ninja variable, which a shell will read."""
    text = shlex.join(flags)
    if "\n" in text:
        raise CannotBuild(f"a flag holds a line break: {text!r}")
    return text.replace("$", "$$")


def c_string(text: str) -> str:
    plain = (
        chr(x) if 32 <= x < 127 and x not in b'"\\' else f"\\{x:03o}"
        for x in text.encode(errors="backslashreplace")
    )
    return f'"{"".join(plain)}"'


def facts(torch: Torch, cuda: Cuda, flags: list[str]) -> str:
    """The header that tells the extension how it was built."""
    sets = "; ".join(
        f"{name}: {extra or 'baseline'}" for name, extra in INSTRUCTION_SETS.items() if X86 or not extra
    )
    definitions = {
        "MICRON_BUILD_FLAGS": f"{shlex.join(flags)} ({sets})",
        "MICRON_TORCH_VERSION": torch.version,
        "MICRON_CUDA_ARCHITECTURES": ";".join(cuda.architectures),
        "MICRON_NO_CUDA_REASON": cuda.reason,
    }
    return "".join(f"#define {name} {c_string(value)}\n" for name, value in definitions.items())


def ninja_file(torch: Torch, cuda: Cuda, flags: list[str]) -> str:
    """Every path in it is relative to the folder of the objects, where links lead to what lies elsewhere: no
    character of a path then has to be escaped for ninja, a shell and the compilers' lists of dependencies."""
    # pybind11 first: torch brings one of its own, which torch 2.11 forbids to those who keep to the stable ABI.
    torch_flags = ["-isystem", "pybind11", "-isystem", "torch", "-isystem", "python"]
    libraries = ["-Ltorch_lib", "-ltorch_cpu"]  # found beside the torch that was imported before: no rpath
    if cuda.sources:
        libraries += ["-Lcuda_lib", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    shared = ["-undefined", "dynamic_lookup", "-bundle"] if sys.platform == "darwin" else ["-shared"]
    definitions = ["-DMICRON_X86"] if X86 else []
    # Headers of the system are not in the lists of dependencies: with another torch, everything that sees it is stale.
    seen = f"-DMICRON_TORCH={torch.version}"
    lines = [
        f"cxx = {variable(cxx())}",
        f"flags = {variable([*flags, *definitions])}",
        f"torch_flags = {variable([*torch_flags, seen])}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
        "  description = compile $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = cuda/bin/nvcc -MD -MF $out.d {variable([*gencode(cuda.architectures), *NVCCFLAGS])} "
        "$torch_flags -c $in -o $out > $out.log 2>&1 || { cat $out.log; exit 1; }; grep -i warning $out.log || :",
        "  description = nvcc $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx $in -o $out {variable([*shared, *libraries, *words('LDFLAGS')])}",
        "  description = link $out",
    ]
    built = []

    def compile_(source: str, suffix: str, rule: str, extra: str) -> None:
        built.append(source.replace("/", "_") + suffix)
        lines.append(f"build {built[-1]}: {rule} csrc/{source}")
        lines.append(f"  extra = {extra}")

    for source in cuda.sources:  # first, since they take longest
        compile_(source, ".o", "nvcc", "")
    for source in sources("module.cpp", "cpu/*.cpp", "*/cpu.cpp"):
        # What runs once, when it is loaded, is not worth the time that -O3 takes to compile it.
        told = "-O1 -include facts.h" if source == "module.cpp" else ""
        compile_(source, ".o", "compile", f"$torch_flags {told}")
    for source, name in kernel_sources():
        compile_(source, f".{name}.o", "compile", f"-DMICRON_INSTRUCTION_SET={name} {INSTRUCTION_SETS[name]}")
    # Last: of what fails, a file of the project is named.
    lines.append(f"build sources.o: compile sources.cpp || {' '.join(built)}")
    lines.append(f"build _native.so: link {' '.join(built)} sources.o")
    return "\n".join(lines) + "\n"


def run_ninja(objects: Path) -> None:
    jobs = os.environ.get("MAX_JOBS")
    command = [find_ninja(), *(["-j", jobs] if jobs else [])]
    environment = {**os.environ, "LC_ALL": "C"}  # compilers then say "error" where they mean it
    process = subprocess.Popen(
        command, cwd=objects, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.decode(errors="backslashreplace").rstrip())
        print(said[-1], flush=True)
    if process.wait():
        failed = next((i for i, line in enumerate(said) if line.startswith("FAILED:")), -1)
        # The line after it is the command, which may hold any word.
        why = next(
            (line for line in said[failed + 2 if failed >= 0 else 0 :] if ERROR.search(line)),
            "it said nothing",
        )
        what = said[failed].split()[-1] if failed >= 0 else "ninja"
        raise CannotBuild(f"the compiler failed at {what}: {why[:300]}")


def compile_extension(objects: Path, wanted: str) -> Path:
    """The extension, built in ``objects``."""
    torch = find_torch(asked=wanted != "auto")
    cuda = find_cuda(sources("*/cuda.cu"), wanted, torch)
    flags = [*CXXFLAGS, TARGET, *words("CXXFLAGS")]
    places = {
        "csrc": ROOT / "csrc",
        "torch": torch.include,
        "torch_lib": torch.lib,
        "pybind11": pybind11_include(torch),
        "python": Path(sysconfig.get_paths()["include"]),
        "cuda": cuda.home,
        "cuda_lib": cuda.runtime,
    }
    for name, place in places.items():
        (objects / name).unlink(missing_ok=True)
        (objects / name).symlink_to(place, target_is_directory=True)

    def build_with(cuda: Cuda) -> None:
        print(f"micron_kernels: building against torch {torch.version} in {torch.include}")
        print(f"micron_kernels: CUDA half: {';'.join(cuda.architectures) or f'left out: {cuda.reason}'}")
        header = facts(torch, cuda, flags)
        # By itself, since all that sees pybind11 takes seconds to compile: what a checkout compares at import.
        sources = digest(ROOT / "csrc", cuda=bool(cuda.sources))
        declared = 'extern "C" const char* const micron_sources;'
        text = f"{declared}\nconst char* const micron_sources = {c_string(sources)};\n"
        for name, written in {"facts.h": header, "sources.cpp": text}.items():
            if not (objects / name).exists() or (objects / name).read_text() != written:
                (objects / name).write_text(written)
        (objects / "build.ninja").write_text(ninja_file(torch, cuda, flags), encoding="utf-8")
        run_ninja(objects)

    try:
        build_with(cuda)
    except CannotBuild as why:
        if wanted == "cuda" or not cuda.sources:
            raise
        build_with(Cuda.without(str(why)))
    return objects / "_native.so"


class BuildWithNinja(build_ext):
    built = False

    def run(self) -> None:
        """Without the compiler that setuptools sets up: it is not used, and some flags are too much for it."""
        into_source, self.inplace = self.inplace, False
        for extension in self.extensions:
            if into_source:
                remove_earlier(ROOT / self.get_ext_filename(extension.name))
            self.build_extension(extension)
        self.inplace = into_source
        if into_source:
            self.copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        objects = Path(self.build_temp).resolve()
        if self.editable_mode and os.access(ROOT, os.W_OK):  # where build_ext --inplace has its objects
            objects = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        wanted = os.environ.get("MICRON_BUILD") or "auto"
        remove_earlier(output)  # it would go into the wheel
        try:
            if wanted == "none":
                raise CannotBuild("left out by MICRON_BUILD=none")
            objects.mkdir(parents=True, exist_ok=True)
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(compile_extension(objects, wanted), output)
            self.built = True
        except (CannotBuild, OSError) as error:
            why = str(error).encode(errors="backslashreplace").decode()
            if wanted in ("cpu", "cuda"):
                raise SystemExit(f"micron_kernels: {why}") from None
            output.parent.mkdir(parents=True, exist_ok=True)
            record = json.dumps({"reason": why, "wanted": wanted == "none"})
            output.with_name(RECORD).write_text(record, encoding="utf-8")
            print(
                f"micron_kernels: installing in pure Python, without native kernels: {why}", file=sys.stderr
            )

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        if not self.built:
            shutil.copy(Path(self.build_lib, "micron_kernels", RECORD), ROOT / "micron_kernels")


def remove_earlier(binary: Path) -> None:
    for file in (binary, binary.with_name(RECORD)):
        file.unlink(missing_ok=True)


class BuildAfresh(build):
    def run(self) -> None:
        """All that lies in build/lib goes into a wheel, modules that the source no longer has too."""
        if Path(self.build_lib).resolve().is_relative_to(ROOT / "build"):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def writable_folders() -> dict[str, dict[str, str]]:
    """Options for a source tree that may not be written to: what setuptools writes there goes elsewhere."""
    if os.access(ROOT, os.W_OK):
        return {}
    folder = tempfile.mkdtemp(prefix="micron-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"build": {"build_base": folder}, "egg_info": {"egg_base": folder}}


if (os.environ.get("MICRON_BUILD") or "auto") not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(
        f"MICRON_BUILD={os.environ['MICRON_BUILD']}; it must be auto, cpu, cuda, none or not set"
    )
setup(
    ext_modules=[Extension("micron_kernels._native", sources=[], optional=True)],
    cmdclass={"build": BuildAfresh, "build_ext": BuildWithNinja},
    options=writable_folders(),
)
