"""A video of one's own: spotting, classifying, and what is said of it."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch

from micron_model import MicronBERT, preset
from micron_model.cli import main
from micron_model.data import FrameError, synthetic_clips
from micron_model.data.clips.faces import inside_outline, place_in_cut
from micron_model.data.clips.stabilize import look_up
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike
from micron_model.prediction import SpotConfig, _whole_frames, predict
from micron_model.prediction_figures import figure_of_candidates
from micron_model.recognizers.flow import FlowRecognizer, FlowRecognizerConfig
from writers import read_png, write_images, write_video

FPS = 60.0


@pytest.fixture(scope="module")
def clips():
    return synthetic_clips(range(4))


@pytest.fixture(scope="module")
def video(clips, tmp_path_factory):
    """Nearly three seconds with one expression in the first."""
    return write_video(tmp_path_factory.mktemp("video") / "face.avi", clips[1].read(range(170), 160), fps=FPS)


def test_a_video_is_classified(video, clips, recognizer):
    analysis = predict(video, recognizer)
    (candidate,) = analysis.candidates
    assert abs(candidate.spotted.apex - clips[1].apex) <= 4
    assert candidate.seconds[1] == pytest.approx(candidate.spotted.apex / FPS)
    assert candidate.probabilities.keys() == {"happiness", "surprise"}
    assert sum(candidate.probabilities.values()) == pytest.approx(1)
    assert 80 < analysis.box.side < 160
    with torch.no_grad():
        expected = recognizer(candidate.values[None]).softmax(1)[0]
    torch.testing.assert_close(torch.tensor(list(candidate.probabilities.values())), expected)


@pytest.mark.parametrize("system", ["micron-bert", "flow"])
def test_maps_of_candidates_are_drawn_inside_the_outline_of_the_face(recognizer, system):
    """Whatever was seen outside is in grey, or not there."""
    if system == "flow":
        recognizer, values = FlowRecognizer(FlowRecognizerConfig(("a", "b"), size=64)), torch.rand(2, 64, 64)
    else:
        values = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    candidates = [SimpleNamespace(values=values, seconds=(0.0, 1.0, 2.0))]
    figure = figure_of_candidates(SimpleNamespace(candidates=candidates), recognizer, 0.3)
    place, shown = place_in_cut(0.3, 64), [axes.images[0] for axes in figure.axes if axes.images]
    if system == "flow":
        coloured = ~np.ma.getmaskarray(shown[0].get_array())
        inside = inside_outline(place, 64, 1).numpy()
    else:
        coloured = np.ptp(np.asarray(shown[3].get_array()), axis=2) > 1  # the first map
        inside = inside_outline(place, 64, 8).repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert not coloured[~inside].any()
    assert coloured[inside].mean() > 0.8


def test_a_head_that_moves_is_held_still(clips, recognizer, tmp_path):
    """Held still, the expression alone moves; as it is, the face seems to move all the time."""
    frames = clips[1].read(range(120), 160)
    way = scipy.ndimage.gaussian_filter1d(np.random.default_rng(0).normal(0, 12, (120, 2)), 3, axis=0)
    moved = np.stack(
        [
            look_up(f.transpose(1, 2, 0), np.column_stack([np.eye(2), shift]), (160, 160)).transpose(2, 0, 1)
            for f, shift in zip(frames, way, strict=True)
        ]
    )
    video = write_video(tmp_path / "moving.avi", moved, fps=FPS)
    analysis = predict(video, recognizer)
    assert analysis.left == {}
    (candidate,) = analysis.candidates
    assert abs(candidate.spotted.apex - clips[1].apex) <= 4
    swaying = predict(video, recognizer, SpotConfig(stabilize=False))
    assert np.median(swaying.curve) > 1.5 * np.median(analysis.curve)


def test_frames_in_which_the_head_is_lost_are_named(clips, recognizer, tmp_path, capsys, documented):
    frames = clips[1].read(range(40), 128)
    frames[20:22] = 90
    video = write_video(tmp_path / "lost.avi", frames, fps=FPS)
    recognizer.save_pretrained(tmp_path / "recognizer")
    out = tmp_path / "out"
    arguments = ["predict", str(video), "--model", str(tmp_path / "recognizer"), "--out", str(out), "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((out / "candidates.json").read_text())
    found = json.loads(printed.out)
    documented("predict", found, found["face"], *(found["candidates"] + found["ignored"]))
    said = " ".join(printed.err.split())
    assert "frames 40/40" in said
    assert "2 of 40 frames could not be laid over the others" in said
    assert "the first, 20: " in said
    assert json.loads((out / "candidates.json").read_text())["left_as_they_are"].keys() == {"20", "21"}


def test_a_folder_of_images_is_a_video(clips, recognizer, tmp_path):
    folder = write_images(tmp_path / "frames", clips[1].read(range(150), 160))
    (candidate,) = predict(folder, recognizer, fps=FPS).candidates
    assert abs(candidate.spotted.apex - clips[1].apex) <= 4


def test_a_video_without_a_face_is_named(recognizer, tmp_path):
    path = write_video(tmp_path / "noise.avi", np.zeros((60, 3, 64, 64), np.uint8), fps=FPS)
    with pytest.raises(FrameError, match=r"noise\.avi: no face was found in its first 10 seconds"):
        predict(path, recognizer)


def test_several_clips_are_refused(recognizer, tmp_path, clips):
    for name in "ab":
        write_images(tmp_path / name, clips[0].read(range(3), 32))
    with pytest.raises(ValueError, match="holds 2 clips, for example"):
        predict(tmp_path, recognizer)


def test_from_a_database_to_a_prediction_by_the_commands(video, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    root, recognizer, out = tmp_path / "casme2", tmp_path / "recognizer", tmp_path / "out"
    make_lookalike("casme2", root, LookalikeConfig(subjects=3, clips=5, side=96))
    torch.manual_seed(0)
    MicronBERT(preset("tiny", tied_start=True)).save_pretrained(tmp_path / "model")
    finetune = [
        "finetune", "casme2", str(root), "--model", str(tmp_path / "model"), "--out", str(recognizer),
        "--cache", str(tmp_path / "faces"), "--allow-differences", "--freeze", "encoder", "--epochs", "3",
    ]  # fmt: skip
    assert main(finetune) == 0
    assert main(["predict", str(video), "--model", str(recognizer), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "This is no lie detector" in printed
    assert "trained on: scheme casme2-5:" in printed
    found = json.loads((out / "candidates.json").read_text())
    assert "This is no lie detector" in found["note"]
    (candidate,) = found["candidates"]
    assert candidate["probabilities"].keys() == {"happiness", "disgust", "repression", "surprise", "others"}
    assert read_png(out / "curve.png").std() > 5
    assert read_png(out / "candidates.png").std() > 5
    assert main(finetune) == 1
    assert "holds a model already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/missing.mp4", "--model", "{tmp}/recognizer"], "missing.mp4: no such file or folder"),
        (["{video}", "--model", "{tmp}"], "holds no config.json, so it is no folder of a model"),
        (["{video}", "--model", "{tmp}/model"], "holds another kind of model, no recognizer"),
        (["{video}", "--strength", "0"], "strength=0.0; it must be positive"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, message, video, recognizer, tmp_path, refused):
    recognizer.save_pretrained(tmp_path / "recognizer")
    MicronBERT(preset("tiny")).save_pretrained(tmp_path / "model")
    filled = [a.format(tmp=tmp_path, video=video) for a in arguments]
    assert message in refused(["predict", *filled, "--out", str(tmp_path / "out")])


def test_a_prediction_holds_no_more_frames_of_a_longer_video(recognizer, clips, tmp_path, monkeypatch):
    """Frames that are alive, at their most."""
    alive, most = [0], []

    def counted(*arguments):
        for frame in _whole_frames(*arguments):
            seen = frame.view(Frame)
            alive[0] += 1
            most.append(alive[0])
            weakref.finalize(seen, lambda: alive.__setitem__(0, alive[0] - 1))
            yield seen

    monkeypatch.setattr("micron_model.prediction._whole_frames", counted)
    kept = []
    for count in (40, 80):
        frames = clips[1].read([0] * count, 128)
        most.clear()
        predict(write_video(tmp_path / f"{count}.avi", frames, fps=FPS), recognizer, SpotConfig(strength=1e9))
        assert len(most) == count + 1  # the first is looked at for a face
        kept.append(max(most))
    assert kept[0] == kept[1] <= 5


class Frame(np.ndarray):
    """An array that can be referred to weakly."""
