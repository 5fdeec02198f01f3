"""Damaged files of every kind that is read: each is read, or ends in one line with its path.

Input i of a kind is a function of (seed, kind, i), so that a failure can be made again. ``MICRON_FUZZ_SECONDS``, of
each kind, ``MICRON_FUZZ_INPUTS``, at which it ends earlier, and ``MICRON_FUZZ_SEED`` change how long and what; ``make
fuzz`` runs for hours.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import openpyxl
import pytest
import torch

from micron_model import MicronBERT, load_official, preset
from micron_model.data.clips.frames import read_image
from micron_model.data.databases.given_faces import read_boxes, read_landmarks
from micron_model.data.databases.listed import usual_columns
from micron_model.data.databases.prepared import Kept, _load, _store
from micron_model.data.databases.sheets import read_sheet
from micron_model.data.shards.read import read_shard
from micron_model.evaluation.predictions import read_predictions
from micron_model.recognizers.micron_bert import MicronBERTRecognizer
from micron_model.safe_load import safe_load

SECONDS = float(os.environ.get("MICRON_FUZZ_SECONDS", "3"))
INPUTS = int(os.environ.get("MICRON_FUZZ_INPUTS", "1000000000"))
SEED = int(os.environ.get("MICRON_FUZZ_SEED", "0"))
#: The longest that a file of some kilobytes may take, in seconds of the processor: others may have the machine.
_SLOWEST = 20.0
_NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
_WORDS = [
    b"[",
    b"{",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"../",
    b"\xff\xd8",
    b"PK\x05\x06",
]

pytestmark = pytest.mark.filterwarnings("ignore")


class Kind(NamedTuple):
    """A kind of file: whole ones to damage, and what reads one at a path."""

    suffix: str
    samples: list[bytes]
    read: Callable[[Path], object]


def _archive(members: dict[str, bytes], compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def damage(data: bytes, samples: list[bytes], rng: random.Random) -> bytes:
    """``data`` with one to eight changes; of an archive, or of what is compressed, also within."""
    if rng.random() < 0.5 and zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {i.filename: archive.read(i) for i in archive.infolist()}
            packed = any(i.compress_type for i in archive.infolist())
        chosen = rng.choice(sorted(members))
        members[chosen] = damage(members[chosen], [members[chosen]], rng)
        return _archive(members, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    if rng.random() < 0.5 and data[:2] == b"\x1f\x8b":
        return gzip.compress(damage(gzip.decompress(data), samples, rng), 1)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed) + 1)
        # Headers are short and decide most.
        at = rng.randrange(min(len(changed), 512) + 1) if rng.random() < 0.5 else at
        until = min(len(changed), at + rng.choice((1, 2, 4, 8, 64, 512)))
        match rng.randrange(8):
            case 0:
                del changed[at:]
            case 1:
                del changed[at:until]
            case 2:
                changed[at:at] = changed[at:until] * rng.choice((1, 1, 2, 50))
            case 3:
                changed[at:until] = rng.randbytes(until - at)
            case 4 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 5:
                size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                changed[at : at + size] = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, order)
            case 6:
                changed[at:at] = rng.choice(_WORDS)
            case _:
                other = rng.choice(samples)
                start = rng.randrange(len(other) + 1)
                changed[at:until] = other[start : start + until - at]
    return bytes(changed)


def _saved(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _tar(compress: Callable[[bytes], bytes] = lambda data: data) -> bytes:
    file = io.BytesIO()
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key in ("a", "b"):
            members = {f"{key}.json": b'{"clip": "c", "subject": "s", "fps": 30, "frames": [0, 1, 7]}'}
            members |= {f"{key}.{n:08d}.jpg": jpeg for n in (0, 1, 7)}
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return compress(file.getvalue())


def _sheet() -> bytes:
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in (
        ["notes"],
        ["Subject", "Filename", "Onset", "Offset", "Emotion"],
        [1, "EP02", 46, 59, "fear"],
        ["02", "EP03", "/"],
    ):
        book.active.append(row)
    book.save(file)
    return file.getvalue()


_PREDICTIONS = b"""dataset,subject,clip,truth,prediction,logit_a,logit_b,fold,seed,selection
smic,smic/1,s1_ne_01,a,b,-0.5,1.5,smic/1,0,last
smic,smic/2,s2_ne_01,a,a,2.5,1.5,smic/2,0,last
"""
_BOXES = b"clip,x,y,width,height\ns1,1,2,30,40\ns2,1.5,2,3e1,40\n"
_LANDMARKS = ",".join(["clip", *(f"{axis}{i}" for i in range(1, 69) for axis in "xy")]).encode()
_LANDMARKS += b"\ns1/EP01" + b",1.5,2e1" * 68 + b"\n"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small = preset("tiny", image_size=16, width=8, depth=1, decoder_width=8, decoder_depth=1)
    recognizer = MicronBERTRecognizer.from_pretrained_backbone(MicronBERT(small), ("a", "b"), regions=2)
    recognizer.save_pretrained(folder)
    weights, settings = (folder / name for name in ("model.safetensors", "config.json"))

    def in_place_of(path: Path) -> Callable[[Path], object]:
        whole = path.read_bytes()

        def read(damaged: Path) -> object:
            path.write_bytes(damaged.read_bytes())
            try:
                return MicronBERTRecognizer.from_pretrained(folder)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), str(damaged))) from None
            finally:
                path.write_bytes(whole)

        return read

    state = {
        "model": {"a.weight": torch.randn(4, 3), "a.bias": torch.zeros(4)},
        "step": 3,
        "list": [1, (2.5, None)],
    }
    images = [np.random.default_rng(0).integers(0, 255, (9, 7, c), np.uint8) for c in (1, 3)]
    _store(folder / "kept.npz", Kept(images[0][None], 3, True, ""))
    landmarks = io.BytesIO()
    np.save(landmarks, np.zeros((68, 2)))
    encoded = [
        cv2.imencode(s, i)[1].tobytes() for s in (".jpg", ".png", ".bmp", ".tif", ".webp") for i in images
    ]
    return {
        "checkpoint": Kind(
            ".pt", [_saved(state), _saved(state, _use_new_zipfile_serialization=False)], safe_load
        ),
        "official checkpoint": Kind(".pth", [_saved({"model": recognizer.state_dict()})], load_official),
        "safetensors": Kind(".safetensors", [weights.read_bytes()], in_place_of(weights)),
        "settings": Kind(".json", [settings.read_bytes()], in_place_of(settings)),
        "tar": Kind(
            ".tar", [_tar(), _tar(lambda data: gzip.compress(data, 1))], lambda p: read_shard(str(p))
        ),
        "image": Kind(".png", encoded, read_image),
        "csv of predictions": Kind(".csv", [_PREDICTIONS], read_predictions),
        "csv of boxes": Kind(".csv", [_BOXES], read_boxes),
        "csv of landmarks": Kind(".csv", [_LANDMARKS], read_landmarks),
        "landmarks": Kind(".npy", [landmarks.getvalue()], lambda p: read_landmarks(p.parent)),
        "prepared clip": Kind(".npz", [(folder / "kept.npz").read_bytes()], _load),
        "xlsx": Kind(
            ".xlsx", [_sheet()], lambda p: read_sheet(p, usual_columns("Onset", "Apex", "Offset", "Emotion"))
        ),
    }


KINDS = ["checkpoint", "official checkpoint", "safetensors", "settings", "tar", "image", "csv of predictions",
         "csv of boxes", "csv of landmarks", "landmarks", "prepared clip", "xlsx"]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_end_in_a_line_with_their_path(name, kinds, tmp_path):
    kind = kinds[name]
    for i, sample in enumerate(kind.samples):
        whole = tmp_path / f"whole-{i}{kind.suffix}"
        whole.write_bytes(sample)
        if name != "official checkpoint":
            kind.read(whole)
    path = tmp_path / f"damaged{kind.suffix}"
    began, tried, refused = time.monotonic(), 0, 0
    while time.monotonic() - began < SECONDS and tried < INPUTS:
        rng = random.Random(f"{SEED} {name} {tried}")
        path.write_bytes(damage(rng.choice(kind.samples), kind.samples, rng))
        started = time.process_time()
        told = f"{name}: input {tried} of seed {SEED}, kept in {path}"
        message = ""
        try:
            kind.read(path)
        except ValueError as error:
            refused, message = refused + 1, str(error) or "nothing"
        except BaseException as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
        assert not message or str(path) in message, f"{told}: {message}"  # the command puts it into one line
        assert time.process_time() - started < _SLOWEST, told
        tried += 1
    print(f"{name}: {tried} inputs, {refused} refused")
    assert tried > 5
    # What is wrong with a shard is listed, not raised; a prepared clip is prepared again.
    assert refused or name in ("tar", "prepared clip")
