"""Models that someone else made and named: a path is a path, and what does not fit whole is refused."""

import json
import re
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from micron_model import MicronBERT
from micron_model.limits import TooLarge
from micron_model.loading import load_model, load_recognizer
from micron_model.recognizers.micron_bert import MicronBERTRecognizer


@pytest.fixture
def recognizer(small):
    return MicronBERTRecognizer.from_pretrained_backbone(small(), ("happiness", "surprise"), regions=2)


@pytest.fixture
def folder(recognizer, tmp_path):
    recognizer.save_pretrained(tmp_path / "recognizer")
    return tmp_path / "recognizer"


@pytest.fixture
def no_hub(monkeypatch):
    """What the hub was asked for; it has nothing."""
    asked = []

    def answer(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("not reached")

    monkeypatch.setattr("micron_model.saved_model.snapshot_download", answer)
    return asked


@pytest.mark.parametrize(
    "name", ["out/recognizer", "owner/model", "recognizer", "./owner/model", "hf:/owner/model"]
)
def test_a_name_that_is_not_there_is_not_asked_of_the_hub(no_hub, tmp_path, monkeypatch, refused, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for load in (
        load_model,
        load_recognizer,
        MicronBERT.from_pretrained,
        MicronBERTRecognizer.from_pretrained,
    ):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)}: no such folder.* hf://owner/name"):
            load(name)
    (tmp_path / "v.mp4").touch()
    assert "no such folder" in refused(["predict", "v.mp4", "--model", name])
    assert no_hub == []


def test_the_hub_is_asked_where_the_user_says_so(no_hub):
    for name in ("hf://owner/my-model_1.0", "hf://owner/my-model_1.0@v2"):
        with pytest.raises(FileNotFoundError, match=f"{name}: not to be had from the hub"):
            load_recognizer(name)
    assert no_hub == [("owner/my-model_1.0", None), ("owner/my-model_1.0", "v2")]


def test_what_the_hub_gave_is_loaded_as_a_folder_is(folder, monkeypatch):
    monkeypatch.setattr("micron_model.saved_model.snapshot_download", lambda name, **_: str(folder))
    assert load_recognizer("hf://owner/model").config.classes == ("happiness", "surprise")


def changed(change):
    """A function that changes the tensors in a folder."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def spoil(value):
    def change(tensors):
        tensors["head.weight"][0, 3] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"head.bias": x["head.bias"]}, "fewer than the 3 blocks"),
        (
            lambda x: {n: t for n, t in x.items() if not n.startswith("head.")},
            "missing: head.weight, head.bias",
        ),
        (lambda x: x | {"a": torch.ones(2), "b.c": torch.ones(1)}, "unexpected: a, b.c"),
        (
            lambda x: {f"module.{n}": t for n, t in x.items()},
            "missing: backbone.*unexpected: module.backbone",
        ),
        (lambda x: {n: t.half() for n, t in x.items()}, "head.weight is F16, not F32"),
        (lambda x: {n: t.double() for n, t in x.items()}, "head.weight is F64, not F32"),
        (lambda x: x | {"head.weight": x["head.weight"].int()}, "head.weight is I32, not F32"),
        (lambda x: x | {"head.bias": torch.ones(3)}, r"head.bias has the shape \(3,\), not \(2,\)"),
        (lambda x: x | {"norm.weight": x["norm.weight"][None]}, "norm.weight has the shape"),
        (spoil(float("nan")), "NaN or infinity in head.weight"),
        (spoil(float("-inf")), "NaN or infinity in head.weight"),
    ],
)
def test_weights_that_are_not_all_of_the_model_are_refused(folder, change, message):
    changed(change)(folder)
    with pytest.raises(ValueError, match=rf"(?s)model\.safetensors: .*{message}"):
        load_recognizer(folder)


def test_every_name_that_is_missing_is_listed(recognizer, folder):
    names = list(recognizer.state_dict())
    changed(lambda x: {n: x[n] for n in names[::2]})(folder)
    with pytest.raises(ValueError, match="missing") as error:
        load_recognizer(folder)
    assert all(name in str(error.value) for name in names[1::2])


def reconfigured(folder, **settings):
    path = folder / "config.json"
    found = json.loads(path.read_text())
    for name, value in settings.items():
        (found["model"] if name in found["model"] else found)[name] = value
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10**9}, "no model can be made of these settings"),
        ({"width": 10**6}, "head.weight has the shape"),
        ({"depth": 10**9}, "fewer than the 1000000001 blocks"),
        ({"depth": -1}, "depth=-1; it must be at least 1"),
        ({"depth": True}, "depth is True; it must be <class 'int'>"),
        ({"depth": "2"}, "depth is '2'"),
        ({"depth": 1}, "unexpected: backbone.encoder.blocks.1"),
        ({"image_size": 8 * 10**7}, "the model of its settings would take .* MICRON_MAX_BYTES="),
        ({"patch_size": 0}, "patch_size=0"),
        ({"mean": [0.0]}, r"mean is \[0.0\]"),
        ({"std": [0.0, 1.0, 1.0]}, "each must be positive"),
        ({"std": [float("nan")] * 3}, "std is"),
        ({"roles": "both"}, "roles is 'both'"),
        ({"mlp_ratio": 1e300}, "no model can be made of these settings|shape"),
        ({"classes": "ab"}, "classes is 'ab'"),
        ({"classes": ["a", 1]}, "classes is"),
        ({"classes": ["a", "b", "c"]}, "head.weight has the shape"),
        ({"regions": 10**6}, "regions=1000000"),
        ({"something": 1}, "not known: 'something'"),
        ({"model": None}, "settings are an object"),
    ],
)
def test_settings_that_are_not_those_of_the_weights_are_refused(folder, settings, message):
    reconfigured(folder, **settings)
    with pytest.raises(ValueError, match=message):
        load_recognizer(folder)


def test_a_setting_that_is_missing_is_refused_and_what_it_is_by_default_loads(folder):
    path = folder / "config.json"
    found = json.loads(path.read_text())
    del found["inner_rates"]
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"config\.json: settings missing: inner_rates\. .*add") as refused:
        load_recognizer(folder)
    (default,) = re.findall(r'"inner_rates": \[\]', str(refused.value))
    path.write_text(json.dumps(found)[:-1] + f", {default}}}")
    assert load_recognizer(folder).config.inner_rates == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**5],
    ids=["empty", "list", "null", "cut", "not UTF-8", "deep", "deep objects", "long number"],
)
def test_settings_that_are_none_are_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_recognizer(folder)


def with_header(header, rest=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        b"\xff" * 64,
        with_header(b"{"),
        with_header(b"[" * 10**5),
        with_header({"head.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        with_header({"head.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}}, bytes(8)),
        with_header({"head.bias": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_damaged_safetensors_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: is damaged, or no file of safetensors"):
        load_recognizer(folder)


def test_a_folder_that_is_half_written_is_no_model(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        load_recognizer(folder)


def test_a_model_needs_the_memory_that_its_settings_state(folder, monkeypatch):
    monkeypatch.setenv("MICRON_MAX_BYTES", "1000")
    with pytest.raises(TooLarge, match="and 1000 are allowed"):
        load_recognizer(folder)
    monkeypatch.setenv("MICRON_MAX_BYTES", "none")
    with pytest.raises(ValueError, match="it must be a positive whole number"):
        load_recognizer(folder)
    monkeypatch.setenv("MICRON_MAX_BYTES", str(10**9))
    load_recognizer(folder)
