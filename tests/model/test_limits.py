"""Files of a few kilobytes that state, or unpack to, more than a machine holds; and what is no file."""

import ast
import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import openpyxl
import pytest

from micron_model.addresses import Address
from micron_model.data import find_clips
from micron_model.data.clips.faces import find_face
from micron_model.data.clips.frames import FrameError, VideoClip, read_image
from micron_model.data.clips.image_header import image_size
from micron_model.data.clips.inputs import StoredValues
from micron_model.data.databases.given_faces import read_boxes
from micron_model.data.databases.sheets import read_tables
from micron_model.data.shards.read import nearest_pair, read_shard
from micron_model.evaluation.predictions import read_predictions
from micron_model.limits import TooLarge, free_memory, read_csv, read_file, read_json
from micron_model.prediction import _face_of
from writers import grey, write_video


@pytest.fixture(autouse=True)
def quick_and_small():
    """Nothing here may take long or much, whatever a file states."""
    resource = pytest.importorskip("resource")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, "kB"
    assert time.monotonic() - began < 60


# Images

FORMATS = [".jpg", ".png", ".bmp", ".tif", ".webp"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_size_that_a_header_states_is_that_of_the_image(suffix, channels):
    if suffix == ".jpg" and channels == 4:
        return
    for height, width in ((5, 9), (300, 7), (1, 5000)):
        image = np.random.default_rng(0).integers(0, 255, (height, width, channels), np.uint8)
        assert image_size(cv2.imencode(suffix, image)[1].tobytes()) == (width, height)


@pytest.mark.parametrize("setting", [(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_the_size_of_any_jpeg_is_found(setting):
    data = cv2.imencode(".jpg", np.zeros((40, 70, 3), np.uint8), setting)[1].tobytes()
    exif = (
        b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0\xff\xc0\0\x11" + bytes(8)
    )  # a size within a segment
    assert image_size(data[:2] + b"\xff\xff" + exif[1:] + data[2:]) == (70, 40)


def large_jpeg():
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30000, 30000)
    return bytes(data)


def large_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def large_bmp():
    data = bytearray(cv2.imencode(".bmp", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    data[18:26] = struct.pack("<ii", 30000, -30000)
    return bytes(data)


def large_tiff():
    data = bytearray(cv2.imencode(".tif", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    for tag in (256, 257):
        at = data.index(struct.pack("<HHI", tag, 3, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 30000)
    return bytes(data)


def large_webp():
    return (
        b"RIFF"
        + struct.pack("<I", 30)
        + b"WEBPVP8X"
        + struct.pack("<II", 10, 0)
        + b"\x2f\x75\0" * 2
        + bytes(30)
    )


@pytest.mark.parametrize("make", [large_jpeg, large_png, large_bmp, large_tiff, large_webp])
def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch, make):
    path = tmp_path / "x.png"
    path.write_bytes(make())
    with pytest.raises(
        FrameError, match=r"x\.png: has 30\d\d\d × 30\d\d\d pixels, .* MICRON_MAX_PIXELS=9\d+ allows"
    ):
        read_image(path)
    monkeypatch.setenv("MICRON_MAX_PIXELS", "10")
    path.write_bytes(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    with pytest.raises(FrameError, match="has 4 × 4 pixels, and 10 are allowed"):
        read_image(path)
    monkeypatch.setenv("MICRON_MAX_PIXELS", "16")
    read_image(path)


@pytest.mark.parametrize(
    "content", [b"P6 9 9 255 ", b"GIF89a" + bytes(20), b"v/1\x01" + bytes(20), b"#?RADIANCE\n"]
)
def test_formats_that_no_suffix_names_are_not_decoded(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(FrameError, match="is not an image that can be decoded"):
        read_image(path)


@pytest.mark.parametrize("shape", [(5000, 1), (1, 5000), (1, 1), (2, 100_000)])
def test_thin_images_have_no_face_and_no_traceback(tmp_path, refused, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    assert find_face(image) is None
    (tmp_path / "thin").mkdir()
    for i in range(20):
        (tmp_path / "thin" / f"{i}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (clip,), _ = find_clips([tmp_path / "thin"])
    with pytest.raises(FrameError, match="no face was found"):
        _face_of(clip)


# Videos


@pytest.mark.parametrize("frames", [2**31 - 1, 10**6])
def test_a_video_that_states_more_frames_than_it_can_hold_is_named(tmp_path, frames):
    path = write_video(tmp_path / "v.avi", grey(20))
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8 + 16  # of the file, and below of the stream
    data[at : at + 4] = struct.pack("<I", frames)
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = struct.pack("<I", frames)
    path.write_bytes(data)
    with pytest.raises(
        FrameError, match=rf"v\.avi: states {frames} frames, which its {len(data)} bytes cannot hold"
    ):
        VideoClip.open(path)


# Shards


def member(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def zeros(name="a.00000000.jpg", size=2**28):
    """A tar of zeros, as chunks."""
    yield member(name, size).tobuf()
    for _ in range(size >> 20):
        yield bytes(2**20)
    yield bytes(1024)


@pytest.mark.parametrize("compressor", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_is_not_unpacked_beyond_what_it_can_hold(tmp_path, compressor):
    path = tmp_path / "a.tar"
    path.write_bytes(compressor(b"".join(zeros(size=2**26))))
    began = time.monotonic()
    runs, problems = read_shard(str(path))
    assert runs == []
    assert "cannot be read to its end (unpacks to more than 100 times what it holds)" in problems[0].reason
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_states_its_length_is_read_as_far_as_there_is_something(tmp_path, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(member("a", 2**33, kind).tobuf() + bytes(2**25)))
    assert read_shard(str(path))[0] == []
    path.write_bytes(member("a", 2**33, kind).tobuf())
    assert read_shard(str(path))[0] == []


def test_a_sparse_member_is_passed_over(tmp_path):
    info = tarfile.TarInfo("a.00000000.jpg")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
                        "GNU.sparse.size": str(2**33)}  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO())
    runs, problems = read_shard(str(tmp_path / "a.tar"))
    assert runs == []
    assert "is sparse, which would unpack to what is not there: passed over" in problems[0].reason


def test_a_shard_larger_than_the_memory_is_named_with_the_way_out(shards, monkeypatch):
    monkeypatch.setenv("MICRON_MAX_BYTES", "20000")
    assert "holds more than 20000 bytes" in read_shard(shards[0])[1][0].reason
    assert "a larger MICRON_MAX_BYTES allows it" in read_shard(shards[0])[1][0].reason
    monkeypatch.setenv("MICRON_MAX_BYTES", str(10**8))
    assert read_shard(shards[0])[1] == []


def test_a_command_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("MICRON_MAX_BYTES", str(2**20))
    header = member("a.00000000.jpg", 2**33).tobuf()
    (tmp_path / "header").write_bytes(header)
    script = f"cat {tmp_path}/header /dev/zero"
    began = time.monotonic()
    _, problems = read_shard(Address(f"pipe:{script}"))
    assert "holds more than" in problems[0].reason
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "numbers", [[0, 3], [0, 1, 50, 58, 300], [5, 6, 7, 20, 31, 33, 900], list(range(0, 90, 13))]
)
def test_the_nearest_pair_is_that_of_all_pairs(numbers):
    for delta in range(1, 40):
        pairs = [(t, later) for t in numbers for later in numbers if t < later]
        expected = min(pairs, key=lambda pair: abs(pair[1] - pair[0] - delta))
        assert nearest_pair(numbers, delta) == expected


def test_a_long_run_of_frames_far_apart_is_drawn_from_quickly():
    began = time.monotonic()
    assert nearest_pair([i * i for i in range(100_000)], 7) == (9, 16)
    assert time.monotonic() - began < 3


# Tables and settings


def test_a_sheet_of_too_many_cells_is_left_where_it_passes_them(tmp_path, monkeypatch):
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    for _ in range(3000):
        sheet.append(["x"] * 4)
    book.save(tmp_path / "s.xlsx")
    assert len(read_tables(tmp_path / "s.xlsx")[0]["Sheet"]) == 3000
    monkeypatch.setenv("MICRON_MAX_CELLS", "100")
    with pytest.raises(
        TooLarge, match=r"s\.xlsx: has more than 100 cells; a larger MICRON_MAX_CELLS allows it"
    ):
        read_tables(tmp_path / "s.xlsx")
    monkeypatch.setenv("MICRON_MAX_BYTES", "5000")
    with pytest.raises(
        TooLarge, match=r"s\.xlsx: unpacks to \d+ bytes, and 5000 are allowed; MICRON_MAX_BYTES="
    ):
        read_tables(tmp_path / "s.xlsx")


def test_settings_that_are_nested_without_end_are_named(tmp_path):
    for content in (b"[" * 10**6, b'{"a":' * 10**6):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: is nested too deep"):
            read_json(tmp_path / "a.json")


def test_a_file_that_grows_is_read_as_far_as_is_allowed(tmp_path):
    (tmp_path / "a").write_bytes(bytes(5000))
    with pytest.raises(TooLarge, match="holds more than 4999 bytes"):
        read_file(tmp_path / "a", 4999)
    assert read_file(tmp_path / "a", 5000) == bytes(5000)


def test_free_memory_is_some():
    assert 2**20 < free_memory() < 2**50


# What is no file


@pytest.fixture(params=["pipe", "/dev/zero", "folder"])
def no_file(request, tmp_path):
    path = tmp_path / "x"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to(request.param)
    return path


@pytest.mark.parametrize(
    ("read", "suffix"),
    [
        (read_image, ".png"), (VideoClip.open, ".mp4"), (read_json, ".json"), (read_csv, ".csv"), (read_file, ""),
        (read_boxes, ".csv"), (read_tables, ".xlsx"), (read_tables, ".csv"), (read_predictions, ".csv"),
    ],
)  # fmt: skip
def test_no_reader_waits_for_a_pipe_or_reads_without_end(no_file, read, suffix):
    path = no_file.rename(no_file.with_suffix(suffix)) if suffix else no_file
    with pytest.raises((ValueError, OSError), match=r"x.*(is no regular file|folder|directory)"):
        read(path)


@pytest.mark.parametrize("suffix", [".tar", ".mp4", ""])
def test_no_command_waits_for_a_pipe(no_file, tmp_path, small, refused, suffix):
    from micron_model.recognizers.micron_bert import MicronBERTRecognizer

    path = no_file.rename(no_file.with_suffix(suffix)) if suffix else no_file
    MicronBERTRecognizer.from_pretrained_backbone(small(), ("a", "b"), regions=2).save_pretrained(
        tmp_path / "recognizer"
    )
    printed = refused(
        ["predict", str(path), "--model", str(tmp_path / "recognizer"), "--out", str(tmp_path / "out")]
    )
    assert "x" in printed
    if suffix == ".tar":
        problems = read_shard(str(path))[1]
        assert "cannot be read to its end" in problems[0].reason


def test_a_csv_is_read_as_it_is(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"x\ny",2\n')
    assert read_csv(tmp_path / "a.csv") == [["a", "b"], ["x\ny", "2"]]
    for content, message in ((b"\xff", "is not text in UTF-8"), (b'"' + b"x" * 200_000, "field larger than")):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.csv: {message}"):
            read_csv(tmp_path / "a.csv")


def test_files_of_numpy_are_parsed_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """Python 3.11 raises SystemError, once in some thousands of files, where two threads parse at once."""
    np.savez(tmp_path / "kept.npz", values=np.zeros(3))
    parse, parsing, most = ast.literal_eval, [], []

    def slow_parse(header):
        parsing.append(header)
        time.sleep(0.02)
        most.append(len(parsing))
        parsing.pop()
        return parse(header)

    monkeypatch.setattr(ast, "literal_eval", slow_parse)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(StoredValues([tmp_path / "kept.npz"]).__getitem__, [slice(None)] * 8))
    assert len(read) == len(most) == 8
    assert max(most) == 1
