"""Holds wheels to what they promise: python tools/check_wheel.py WHEEL...

- auditwheel: beside the libraries that every Linux has, the extension needs libtorch_cpu alone, by name;
- torch-abi-audit: of libtorch it uses nothing but the stable ABI of torch 2.11.

abi3audit has nothing to say here: it looks at extensions that use Python's limited API alone, which pybind11 does
not. A wheel is for one version of Python, and its name says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OLDEST_TORCH = (2, 11)
SCRIPTS = Path(sysconfig.get_path("scripts"))


def report(*command: str) -> Any:
    """What the tool says as JSON; CalledProcessError where it fails."""
    result = subprocess.run(
        [SCRIPTS / command[0], *command[1:]], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout)


def findings(wheel: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            extensions = [archive.extract(x, folder) for x in archive.namelist() if x.endswith(".so")]
        if not extensions:
            yield "holds no extension"
            return
        platform = report("auditwheel", "show", "--json", str(wheel))
        foreign = set(platform["external_libs"]) - {"libtorch_cpu.so"}
        if foreign:
            yield f"needs {', '.join(sorted(foreign))}"
        if platform["unsupported_isa"]:
            yield "needs a processor above the baseline"
        for path in extensions:
            (extension,) = report("torch-abi-audit", "--json", path)["extensions"]
            torch = extension["torch"]
            if not torch["stable"] or torch["unknown_shim_symbols"]:
                yield f"uses of libtorch {torch['unstable_symbols'] + torch['unknown_shim_symbols']}"
            needs = torch["min_torch_version"] or "0"
            if tuple(int(x) for x in needs.split(".")[:2]) > OLDEST_TORCH:
                yield f"needs torch {needs}: {torch['version_defining_symbols']}"


def main() -> int:
    found = [f"{wheel}: {finding}" for wheel in sys.argv[1:] for finding in findings(Path(wheel))]
    print("\n".join(found) or f"no finding in {', '.join(sys.argv[1:])}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
