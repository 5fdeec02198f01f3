"""Every command on small real input, and what it says of bad input."""

import json
import re

import cv2
import numpy as np
import pytest
import skimage.io
import torch
from rich.console import Console

from micron_model import MicronBERT, preset, visualize
from micron_model.cli import main
from micron_model.data import SyntheticClip, synthetic_clips
from micron_model.demo import LEVELS, DemoConfig, in_words, run_demo
from micron_model.models.config import MOVEMENT
from micron_model.training import PretrainConfig
from micron_model.training.log import read_log
from micron_model.visualize import change_maps
from writers import read_png, write_images, write_video

SMALL = [
    *("--preset", "tiny", "--model.image-size", "32", "--model.width", "32", "--model.decoder-width", "32"),
    *("--model.depth", "1", "--model.decoder-depth", "1"),
    *("--training.steps", "3", "--training.batch-size", "4"),
]


@pytest.fixture
def model_folder(small, tmp_path):
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def faces(tmp_path):
    clip = synthetic_clips([0])[0]
    write_images(tmp_path / "faces", clip.read([clip.onset, clip.apex], 80))
    return [str(tmp_path / "faces" / f"img{i}.png") for i in (1, 2)]


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "diagonal_attention", "reference", "opencv", "linear_grad_weight", "matrices"):
        assert word in printed


@pytest.mark.parametrize("source", ["image_folder", "video", "both"])
def test_pretrain_on_files(source, image_folder, video, tmp_path, capsys):
    data = {"image_folder": [image_folder], "video": [video], "both": [image_folder, video]}[source]
    out = tmp_path / "out"
    assert main(["pretrain", "--data", *map(str, data), "--out", str(out), *SMALL]) == 0
    assert f"{len(data)} clips, {44 * len(data)} frames" in capsys.readouterr().err
    assert MicronBERT.from_pretrained(out / "model").config.width == 32


def test_pretrain_on_synthetic_clips_and_resume(tmp_path, capsys):
    arguments = ["pretrain", "--out", str(tmp_path / "out"), *SMALL]
    assert main(arguments) == 0
    assert "192 synthetic clips" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "exists: resume continues that run" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--resume"]) == 0


def test_presets_are_where_options_start(capsys):
    for name, size in (("tiny", 64), ("base", 224)):
        with pytest.raises(SystemExit):
            main(["pretrain", "--preset", name, "--help"])
        assert re.search(
            rf"--model\.image-size INT.*?\(default: {size}\)", capsys.readouterr().out, re.DOTALL
        )


def test_heatmap(faces, model_folder, tmp_path, capsys):
    out = tmp_path / "pictures" / "map.png"
    assert main(["heatmap", *faces, "--model", str(model_folder), "--out", str(out)]) == 0
    assert "heat maps" in capsys.readouterr().err
    assert read_png(out).shape[1] > 600


def test_heatmap_finds_the_face_and_lays_the_apex_over_the_onset(model_folder, tmp_path, capsys, monkeypatch):
    clip = SyntheticClip(1, "surprise")
    face = clip.read([clip.onset], 96)[0]
    for name, x in (("onset", 60), ("apex", 64)):
        frame = np.full((3, 140, 200), 80, np.uint8)
        frame[:, 20:116, x : x + 96] = face
        skimage.io.imsave(tmp_path / f"{name}.png", frame.transpose(1, 2, 0), check_contrast=False)
    shown = []
    monkeypatch.setattr(
        "micron_model.cli.change_maps", lambda model, *pair: shown.append(pair) or change_maps(model, *pair)
    )
    arguments = [
        "heatmap",
        *(str(tmp_path / f"{n}.png") for n in ("onset", "apex")),
        "--model",
        str(model_folder),
    ]
    assert main([*arguments, "--out", str(tmp_path / "map.png")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "map.png"), "--no-stabilize"]) == 0
    assert "no face" not in capsys.readouterr().err
    held, left = (float((onset.float() - apex.float()).abs().mean()) for onset, apex in shown)
    assert held < 0.2 * left
    behind = (shown[0][0] == 80).all(1).float().mean()
    assert behind < 0.1  # of the whole picture it is three quarters


def test_heatmap_says_that_no_face_was_found_and_that_the_apex_is_left(model_folder, tmp_path, capsys):
    paths = []
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{i}.png"))
        skimage.io.imsave(paths[i], noise)
    assert main(["heatmap", *paths, "--model", str(model_folder), "--out", str(tmp_path / "map.png")]) == 0
    said = capsys.readouterr().err
    assert "no face was found: its central square is shown" in " ".join(said.split())
    assert "35% must" in " ".join(said.split())


def test_demo_writes_everything_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr("micron_model.demo.TRAINED_SUBJECTS", range(2))
    monkeypatch.setattr("micron_model.demo.HELD_OUT_SUBJECTS", range(1000, 1002))
    small = {"image_size": 32, "width": 32, "decoder_width": 32, "depth": 1, "decoder_depth": 1}
    config = DemoConfig(
        model=preset("tiny", **(MOVEMENT | small)),
        training=PretrainConfig(steps=2, batch_size=4, evaluate_every=1),
    )
    results = run_demo(config, tmp_path, Console(quiet=True))
    losses = [entry["loss"] for entry in read_log(tmp_path) if "loss" in entry]
    assert json.loads((tmp_path / "results.json").read_text())["auroc"] == results["auroc"]
    page = (tmp_path / "report.html").read_text()
    for name in ("film", "maps", "auroc", "losses", "onset", "apex"):
        assert read_png(tmp_path / f"{name}.png").std() > 5
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    for of_level in results["auroc"].values():
        assert set(of_level) == {"none", "light", "head", "all"}
        assert all(f"{found['mean']:.3f}" in page for found in of_level.values())
    assert "movement=1.0" in page
    assert MicronBERT.from_pretrained(tmp_path / "model").config == config.model
    with (
        monkeypatch.context() as patched
    ):  # another demo replaces it, and is the same; its pictures take seconds
        patched.setattr("micron_model.demo.write_report", lambda *_: results)
        run_demo(config, tmp_path, Console(quiet=True))
    assert [entry["loss"] for entry in read_log(tmp_path) if "loss" in entry] == losses
    assert not (tmp_path / "report.html").exists()


def test_demo_says_where_plain_means_are_ahead():
    def measured(trained, flow):
        values = {"micro-attention untrained, head held": 0.6, "difference": 0.7, "Farnebäck flow": flow,
                  "micro-attention trained, head held, in its outline": trained}  # fmt: skip
        noise = np.random.default_rng(0).normal(0, 0.01, (2, 12))
        return {
            name: {
                level: {str(i): value + noise[int(name.endswith("flow")), i] for i in range(12)}
                for level in LEVELS
            }
            for name, value in values.items()
        }

    assert in_words(measured(0.95, 0.85)).startswith("Given the outline of the face, it is ahead")
    assert "light (0.9" in in_words(measured(0.95, 0.85))
    assert in_words(measured(0.85, 0.95)).startswith("Behind them")
    assert "; Farnebäck flow 0.9" in in_words(measured(0.85, 0.95))
    assert in_words(measured(0.9, 0.9)).startswith("Level with them")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--data", "{tmp}/missing"], "missing: no such file or folder"),
        (["pretrain", "--data", "{tmp}/empty"], "no image and no video was found"),
        (["pretrain", "--data", "{tmp}/zero.mp4"], "no frame can be decoded from this video"),
        (["pretrain", "--data", "{tmp}/text.txt"], "is neither a folder nor a video"),
        (
            ["pretrain", "--model.patch-size", "10", "--preset", "tiny"],
            "patch_size=10 does not divide image_size=64",
        ),
        (["heatmap", "{tmp}/missing.png", "{face}", "--model", "{model}"], "missing.png: no such file"),
        (
            ["heatmap", "{tmp}/text.txt", "{face}", "--model", "{model}"],
            "is not an image that can be decoded",
        ),
        (["heatmap", "{tmp}/small.png", "{face}", "--model", "{model}"], "differ in size"),
        (["heatmap", "{face}", "{face}", "--model", "{tmp}/empty"], "holds no config.json"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, message, faces, model_folder, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.txt").write_text("text")
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 20, 3), np.uint8))
    filled = [a.format(tmp=tmp_path, face=faces[0], model=model_folder) for a in arguments]
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "pretrain" else []
    assert message in refused([*filled, *out])


def test_demo_does_not_replace_another_run(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["pretrain", "--out", str(out), *SMALL]) == 0
    before = (out / "checkpoint.pt").read_bytes()
    assert main(["demo", "--out", str(out)]) == 1
    assert "holds a run that is not a demo" in capsys.readouterr().err
    assert (out / "checkpoint.pt").read_bytes() == before


def test_maps_show_the_change_and_nothing_where_there_is_none(small):
    model = small(tied_start=True)
    clip = synthetic_clips([1])[2]
    onset, apex = torch.from_numpy(clip.read([clip.onset, clip.apex], 32)).unsqueeze(1)
    maps = visualize.change_maps(model, onset, apex)
    assert {name: tuple(x.shape) for name, x in maps.items()} == dict.fromkeys(
        ("difference", "micro_attention", "poi"), (1, 4, 4)
    )
    assert set(visualize.change_maps(small(poi="off"), onset, apex)) == {"difference", "micro_attention"}
    same = visualize.change_maps(model, onset, onset)
    assert (same["difference"] == 0).all()
    # The two halves of a batch may be summed in other orders.
    torch.testing.assert_close(same["micro_attention"], torch.zeros(1, 4, 4), atol=1e-4, rtol=0)
    assert maps["difference"].max() > 0


def test_a_video_can_be_written_and_read_back(tmp_path):
    frames = synthetic_clips([0])[0].read(range(12), 32)
    write_video(tmp_path / "v.mov", frames)
    assert main(["pretrain", "--data", str(tmp_path / "v.mov"), "--out", str(tmp_path / "o"), *SMALL]) == 0
