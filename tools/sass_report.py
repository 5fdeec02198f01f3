"""What nvcc made of the CUDA kernels, without a GPU: a line for each kernel of a source.

python tools/sass_report.py [csrc/<operator>/cuda.cu ...] [--architecture 90a]

Registers a thread, spilled bytes, warps that the registers of an SM hold, instructions, and among those the products
of matrices (HGMMA), exponentials (MUFU.EX2; and how many of them are computed while products are under way), barrier
waits, and accesses to global memory by width in bytes.

Of kernels that do both at a time, also the cycles of an SM for a tile of 128 × 128 scores, by what is kept busy
(tensor cores, units of exponentials, shared memory, schedulers), and what the tile takes if products and
exponentials come in turn, or at once.
Times come from a GPU alone; this tells whether rows are read 16 bytes at a time, and what became of an inner loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


SCORES = 128 * 128


class Cycles(NamedTuple):
    """Of an SM for so many scores."""

    tensor: float  # the tensor cores, at 2048 multiplications of 16 bits a cycle
    exponentials: float  # their units, at 16 a cycle
    shared: float  # shared memory, at 128 bytes a cycle: operands of products, and keys that come in
    around: float  # instructions issued around the products, by four schedulers
    beside: float  # those of the inner loop of exponentials, these included

    @property
    def issued(self) -> float:
        return self.around + self.beside

    @property
    def in_turn(self) -> float:
        return max(self.tensor, self.around) + max(self.exponentials, self.beside)

    @property
    def at_once(self) -> float:
        return max(self.tensor, self.exponentials, self.shared, self.issued)


def _exponentials(block: list[str]) -> int:
    return sum(x.startswith("MUFU.EX2") for x in block)


class Kernel(NamedTuple):
    name: str
    registers: int
    spilled: int  # bytes stored
    stack: int
    static_shared: int
    blocks: list[list[str]]  # of instructions that follow each other, up to a branch or a wait for products

    @property
    def instructions(self) -> list[str]:
        return [x for block in self.blocks for x in block]

    def under_products(self) -> int:
        """Exponentials after a wait that leaves a group of products under way."""
        found, pending = 0, False
        for x in self.instructions:
            if x.startswith("WARPGROUP.DEPBAR"):
                pending = not x.endswith("0x0")
            found += pending and x.startswith("MUFU.EX2")
        return found

    def used_too_early(self) -> list[str]:
        """Instructions, in the order of the code, that touch sums of products that have not been waited for."""
        found, under_way, group = [], [], set()
        for x in self.instructions:
            registers = {int(n) for n in re.findall(r"\bR(\d+)", x)}
            if product := re.match(r"HGMMA\.64x(\d+)x16\S* R(\d+)", x):
                first = int(product[2])
                group |= set(range(first, first + int(product[1]) // 2))
                if "gsb0" in x:
                    under_way, group = [*under_way, group], set()
            elif x.startswith("WARPGROUP.DEPBAR"):
                left = int(x.rsplit(" ", 1)[1], 16)
                under_way = under_way[len(under_way) - left :] if left else []
            elif any(registers & sums for sums in (*under_way, group)):
                found.append(x)
        return found

    def cycles(self, columns: int) -> Cycles:
        """Of a kernel with products under way while exponentials are computed."""
        keys = max(int(x.split(".")[1].split("x")[1]) for x in self.instructions if x.startswith("HGMMA"))
        held = keys // 2  # scores of a product that a thread holds
        products = [b for b in self.blocks if any(x.startswith(f"HGMMA.64x{keys}x") for x in b)]
        count = sum(x.startswith("HGMMA") for block in products for x in block)
        # Of several forms of the inner loop the longest: the others find the diagonal, or have no keys to come.
        inner = max((b for b in self.blocks if _exponentials(b) > 0.8 * held), key=len)
        turns = SCORES / (64 * keys) * columns / 16  # products, each of which every scheduler issues once
        return Cycles(
            tensor=SCORES * columns / 2048,
            exponentials=_exponentials(inner) / held * SCORES / 16,
            shared=(turns * (64 + keys) * 16 + 128 * columns) * 2 / 128,
            around=sum(map(len, products)) / count * turns,
            beside=len(inner) / held * SCORES / 128,
        )

    def count(self, pattern: str) -> int:
        return sum(re.match(pattern, x) is not None for x in self.instructions)

    def widths(self, operation: str) -> dict[int, int]:
        """How many accesses of so many bytes: ``operation`` is LDG or STG."""
        found: dict[int, int] = {}
        for x in self.instructions:
            if x.startswith(operation):
                parts = x.split()[0].split(".")
                width = next((WIDTHS[part] for part in parts if part in WIDTHS), 4)
                found[width] = found.get(width, 0) + 1
        return found


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def tool(name: str) -> str | None:
    """A binary utility, of the triton package or of CUDA."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends/nvidia/bin" if spec and spec.origin else None
    return shutil.which(name, path=str(folder) if folder else None) or shutil.which(name)


def disassembler() -> str | None:
    return tool("nvdisasm")


def built(source: Path, architecture: str, cubin: Path) -> str | None:
    """What ``compile_`` gives, of the object that setup.py left in build/: None where there is none of this
    architecture, or one that is older than a source."""
    extract = tool("cuobjdump")
    newest = max(x.stat().st_mtime for x in (ROOT / "setup.py", *(ROOT / "csrc").rglob("*.*")))
    for object_ in (ROOT / "build").glob(f"temp.*/{source.parent.name}_{source.stem}.cu.o"):
        log = object_.with_name(object_.name + ".log")
        if extract is None or object_.stat().st_mtime < newest or not log.exists():
            continue
        if f"'sm_{architecture}'" in log.read_text():
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run(
                    [extract, "-xelf", "all", str(object_)], cwd=folder, check=True, capture_output=True
                )
                (code,) = Path(folder).glob(f"*.sm_{architecture}.cubin")
                shutil.copy(code, cubin)
            return log.read_text()
    return None


def compile_(source: Path, architecture: str, cubin: Path) -> str:
    """The compiler's log, with what ptxas says of each kernel; RuntimeError with it where that fails."""
    if log := built(source, architecture, cubin):
        return log
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    command = [
        str(nvcc()), f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-cubin", "-O3", "-std=c++17",
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Xptxas", "-v",
        "-isystem", str(Path(torch.origin).parent / "include"), str(source), "-o", str(cubin),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    log = result.stdout + result.stderr
    if result.returncode:
        raise RuntimeError(log)
    return log


def kernels(log: str, architecture: str, cubin: Path | None) -> list[Kernel]:
    """Of a compiled source; without instructions where there is no ``cubin`` or no disassembler."""
    disassemble, blocks = disassembler(), {}
    if disassemble is not None and cubin is not None:
        sass = subprocess.run(
            [disassemble, "-c", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        for section in re.split(r"\.section\s+\.text\.", sass)[1:]:
            name = re.split(r"[,\s]", section, maxsplit=1)[0]
            blocks[name] = [[]]
            for label, text in re.findall(
                r"^(?:(\.L\w+):|\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?)\s*;)",
                section,
                re.MULTILINE,
            ):
                if text:
                    blocks[name][-1].append(text)
                if label or text.startswith(("BRA", "WARPGROUP.DEPBAR")):
                    blocks[name].append([])
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        name, _, compiled_for = part.split("'")[:3]
        if compiled_for != f"sm_{architecture}":
            continue
        numbers = {
            key: int(next(iter(re.findall(rf"(\d+) {text}", part)), 0))
            for key, text in (
                ("registers", "registers"),
                ("spilled", "bytes spill stores"),
                ("stack", "bytes stack frame"),
                ("static_shared", "bytes smem"),
            )
        }
        found.append(Kernel(name, blocks=blocks.get(name, []), **numbers))
    return found


def readable(name: str) -> str:
    demangle = shutil.which("c++filt")
    if demangle is None:
        return name
    plain = subprocess.run([demangle, name], capture_output=True, text=True).stdout.strip()
    return re.sub(r"micron::\w+::|\(anonymous namespace\)::|^void |\(.*$", "", plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, default=sorted((ROOT / "csrc").glob("*/cuda.cu")))
    parser.add_argument("--architecture", default="90a", help="as nvcc writes it (default: %(default)s)")
    options = parser.parse_args()
    if nvcc() is None or disassembler() is None:
        parser.error("needs nvcc, and nvdisasm of CUDA or of the triton package")
    tiles = []
    print(
        "registers spilled warps instructions HGMMA  EX2 under waits  loads (bytes: count)     stores  kernel"
    )
    for source in options.sources:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            for k in kernels(compile_(source, options.architecture, cubin), options.architecture, cubin):
                loads, stores = (
                    " ".join(f"{w}:{n}" for w, n in sorted(k.widths(x).items())) for x in ("LDG", "STG")
                )
                print(
                    f"{k.registers:9d} {k.spilled:7d} {65536 // (k.registers * 32):5d} "
                    f"{len(k.instructions):12d} {k.count('HGMMA'):5d} {k.count('MUFU.EX2'):4d} {k.under_products():5d} "
                    f"{k.count('SYNCS.PHASECHK'):5d}  {loads:24s} {stores:6s}  {readable(k.name)}"
                )
                if k.under_products():  # the last argument of the template: chunks of 64 columns
                    name = readable(k.name)
                    tiles.append((name, k.cycles(64 * int(name.rstrip(">").split(", ")[-1]))))
    if tiles:
        print("\ntensor exponentials shared issued  in turn  at once  cycles of an SM for 128 × 128 scores")
    for name, cycles in tiles:
        print(
            f"{cycles.tensor:6.0f} {cycles.exponentials:12.0f} {cycles.shared:6.0f} {cycles.issued:6.0f} "
            f"{cycles.in_turn:8.0f} {cycles.at_once:8.0f}  {name}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
