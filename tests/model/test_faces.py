"""Faces cut from clips: found, given, or the whole frame; the same cut for onset and apex; the cache."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from micron_model.data import synthetic_clips
from micron_model.data.clips.faces import Box, cut, find_face, inside_outline, place_in_cut, spot_apex
from micron_model.data.clips.inputs import OnsetApex, StoredValues, UnusableClip
from micron_model.data.databases.expressions import Expression
from micron_model.data.databases.given_faces import read_boxes
from micron_model.data.databases.prepared import FaceConfig, prepare
from micron_model.visualize import figure_of_pairs

WHOLE = FaceConfig(detect=False)


def write_expression(folder, frames, numbers, *, apex, apex_from="annotation", subject="sub01"):
    """Frames (T, 3, H, W) as files; onset and offset are the first and the last."""
    folder.mkdir(parents=True)
    paths = []
    for number, frame in zip(numbers, frames, strict=True):
        path = folder / f"img{number}.png"
        cv2.imwrite(str(path), frame.transpose(1, 2, 0)[:, :, ::-1])
        paths.append((number, path))
    return Expression(
        "casme2", subject, f"{subject}/{folder.name}", "happiness", 200.0, tuple(paths), numbers[0], apex,
        numbers[-1], apex_from,
    )  # fmt: skip


@pytest.fixture
def expression(tmp_path):
    clip = synthetic_clips([0])[0]
    numbers = range(clip.onset, clip.offset + 1, 2)
    return write_expression(tmp_path / "EP01", clip.read(numbers, 64), list(numbers), apex=numbers[-2])


def test_the_face_of_a_photograph_is_found_at_any_size():
    image = skimage.data.astronaut()
    boxes = [find_face(image), find_face(cv2.resize(image, None, fx=2, fy=2))]
    for box, scale in zip(boxes, (1, 2), strict=True):
        centre = ((box.x + box.side / 2) / scale, (box.y + box.side / 2) / scale)
        assert np.hypot(centre[0] - 223, centre[1] - 115) < 15  # between eyes and mouth
        assert 80 < box.side / scale < 160


def test_there_is_no_face_in_noise():
    assert find_face(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)) is None
    assert find_face(np.zeros((20, 20, 3), np.uint8)) is None


def test_a_cut_has_the_box_and_its_margin():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = (255, 128, 0)
    exact = cut(image, Box(20, 10, 20), 0.0, 20)
    assert (exact == np.array([255, 128, 0])[:, None, None]).all()
    wider = cut(image, Box(20, 10, 20), 0.5, 40)
    assert (wider[0] == np.pad(np.full((20, 20), 255), 10)).all()


def test_what_lies_outside_of_the_frame_repeats_its_edge():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1).repeat(3, 2)
    wide = cut(image, Box(-2, -3, 10), 0.0, 10)
    assert wide[0, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert wide[0, 4].tolist() == [10, 10, 10, 11, 12, 13, 14, 15, 16, 17]


def test_onset_and_apex_are_those_of_the_annotation(expression):
    (pair,) = prepare([expression], OnsetApex(64), WHOLE).values
    for frame, number in zip(pair, (expression.onset, expression.apex), strict=True):
        read = cv2.imread(str(expression.path(number)))[:, :, ::-1].transpose(2, 0, 1)
        assert (frame.numpy() == read).all()


def test_the_face_is_found_in_the_onset_and_cut_alike_from_the_apex(tmp_path):
    scene = skimage.data.astronaut()[:300]
    shifted = np.roll(scene, 6, 1)  # a face that moved is cut where it was
    frames = np.stack([scene, shifted]).transpose(0, 3, 1, 2)
    prepared = prepare(
        [write_expression(tmp_path / "EP01", frames, [1, 2], apex=2)], OnsetApex(64), FaceConfig(margin=0.1)
    )
    assert prepared.problems == prepared.remarks == []
    box = find_face(scene)
    for image, frame in zip((scene, shifted), prepared.values[0], strict=True):
        assert (cut(image, box, 0.1, 64) == frame.numpy()).all()


def test_no_face_is_told_and_the_central_square_taken(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (2, 3, 64, 80), np.uint8)
    prepared = prepare(
        [write_expression(tmp_path / "EP01", frames, [1, 2], apex=2)], OnsetApex(64), FaceConfig()
    )
    assert [p.reason for p in prepared.remarks] == ["no face was found: the central square is taken for it"]
    assert prepared.problems == []
    assert (prepared.values[0].numpy() == frames[..., 8:72]).all()


@pytest.mark.parametrize(
    "text", ["clip,x,y,width,height\nsub01/EP01,10,20,30,40\n", "clip,x1,y1,x2,y2\nsub01/EP01,10,60,40,20\n"]
)
def test_boxes_and_landmarks_of_a_csv_are_squared(tmp_path, text):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    assert read_boxes(path) == {"sub01/EP01": Box(5, 20, 40)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,left\na,1\n", "has the columns clip, left; it must have clip, x, y, width, height"),
        ("clip,x,y,width,height\na,1,2,0,4\n", "clip 'a' has no box of positive width and height"),
        ("clip,x1,y1,x2,y2\na,1,2,,4\n", "clip 'a' has no box of positive width and height"),
    ],
)
def test_a_csv_without_boxes_is_refused(tmp_path, text, message):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_boxes(path)


def test_a_given_box_is_taken(tmp_path, expression):
    path = tmp_path / "boxes.csv"
    path.write_text(f"clip,x,y,width,height\n{expression.name},8,16,32,32\n")
    (pair,) = prepare([expression], OnsetApex(32), FaceConfig(boxes=path, margin=0.0)).values
    whole = prepare([expression], OnsetApex(64), WHOLE).values[0]
    assert torch.equal(pair, whole[..., 16:48, 8:40])


def test_the_apex_is_spotted_where_the_difference_is_widest(tmp_path):
    for clip in synthetic_clips(range(4)):
        frames = clip.read(range(clip.onset, clip.offset + 1), 64)
        assert abs(clip.onset + spot_apex(torch.from_numpy(frames)) - clip.apex) <= 3
    numbers = list(range(clip.onset, clip.offset + 20))
    middle, frames = (numbers[0] + numbers[-1]) // 2, clip.read(numbers, 64)
    midpoint = write_expression(tmp_path / "EP01", frames, numbers, apex=middle, apex_from="midpoint")
    config = dataclasses.replace(WHOLE, spot_apex=True)
    (spotted,) = prepare([midpoint], OnsetApex(64), config).expressions
    assert spotted.apex_from == "spotting"
    assert abs(spotted.apex - clip.apex) <= 3 < abs(middle - clip.apex)
    annotated = dataclasses.replace(midpoint, apex_from="annotation")
    assert prepare([annotated], OnsetApex(64), config).expressions == [annotated]


def test_the_cache_gives_the_same_and_is_read(tmp_path, expression, monkeypatch):
    first = prepare([expression], OnsetApex(64), WHOLE, tmp_path / "cache").values
    monkeypatch.setattr("micron_model.data.databases.prepared._encode", None)
    assert torch.equal(prepare([expression], OnsetApex(64), WHOLE, tmp_path / "cache").values, first)


@pytest.mark.parametrize("change", ["size", "margin", "apex", "frame", "damaged"])
def test_the_cache_is_not_read_for_anything_else(tmp_path, expression, change):
    cache = tmp_path / "cache"
    prepare([expression], OnsetApex(64), WHOLE, cache)
    (stored,) = cache.iterdir()
    size, config = 64, WHOLE
    if change == "size":
        size = 32
    elif change == "margin":
        config = FaceConfig(detect=False, margin=0.3)
    elif change == "apex":
        expression = dataclasses.replace(expression, apex=expression.onset)
    elif change == "frame":
        cv2.imwrite(str(expression.path(expression.apex)), np.zeros((64, 64, 3), np.uint8))
    else:
        stored.write_bytes(stored.read_bytes()[:1000])
    fresh = prepare([expression], OnsetApex(size), config).values
    assert torch.equal(prepare([expression], OnsetApex(size), config, cache).values, fresh)
    assert len(list(cache.iterdir())) == (1 if change == "damaged" else 2)


def test_an_expression_that_cannot_be_read_is_left_out_and_named(tmp_path, expression):
    broken = write_expression(tmp_path / "EP02", np.zeros((2, 3, 64, 64), np.uint8), [1, 2], apex=2)
    broken.path(2).write_bytes(b"no image")
    prepared = prepare([broken, expression], OnsetApex(64), WHOLE)
    assert prepared.expressions == [expression]
    assert prepared.values.shape == (1, 2, 3, 64, 64)
    (problem,) = prepared.problems
    assert problem.path == "casme2 sub01/EP02"
    assert "img2.png: is not an image that can be decoded" in problem.reason
    with pytest.raises(ValueError, match="none of 1 expressions could be prepared"):
        prepare([broken], OnsetApex(64), WHOLE)


class AllFrames(OnsetApex):
    """Every frame from onset to offset, as means; at least three."""

    key = "means"

    def frames(self, onset, apex, offset):
        if offset - onset < 2:
            raise UnusableClip(f"only {offset - onset + 1} frames, 3 are needed")
        return tuple(range(onset, onset + 3))

    def encode(self, faces):
        return faces.mean((1, 2, 3), dtype=np.float32)


def test_an_input_chooses_the_frames_and_what_is_kept_of_them(tmp_path):
    frames = np.full((4, 3, 8, 8), np.arange(4, dtype=np.uint8)[:, None, None, None] * 10, np.uint8)
    whole = write_expression(tmp_path / "EP01", frames, [3, 4, 5, 6], apex=5)
    short = write_expression(tmp_path / "EP02", frames[:2], [3, 4], apex=4)
    prepared = prepare([short, whole], AllFrames(8), WHOLE)
    assert prepared.values.tolist() == [[0, 10, 20]]
    assert [p.reason for p in prepared.problems] == ["left out: only 2 frames, 3 are needed"]


def test_what_memory_does_not_hold_is_read_from_the_cache(tmp_path, expression, monkeypatch):
    clips = [dataclasses.replace(expression, apex=number) for number, _ in expression.frames[1:4]]
    in_memory = prepare(clips, OnsetApex(64), WHOLE).values
    monkeypatch.setattr("micron_model.data.databases.prepared._IN_MEMORY", 1000)
    stored = prepare(clips, OnsetApex(64), WHOLE, tmp_path / "cache").values
    assert isinstance(stored, StoredValues)
    assert len(stored) == 3
    for chosen in (slice(1, 3), [0, 2], torch.tensor([2])):
        assert torch.equal(stored[chosen], in_memory[chosen])
    assert torch.equal(stored.at([1, 2])[[1]], in_memory[[2]])


def test_frames_are_laid_over_the_onset_where_that_is_asked_for(tmp_path):
    clip = synthetic_clips([0])[0]
    onset, apex = clip.read([clip.onset, clip.apex], 96)
    frames = np.stack([onset, np.roll(apex, 5, -1), np.full_like(apex, 90)])
    expression = write_expression(tmp_path / "EP01", frames, [1, 2, 3], apex=2)
    stabilized = dataclasses.replace(WHOLE, stabilize=True)
    left = []
    for config in (stabilized, WHOLE):
        prepared = prepare([expression], OnsetApex(96), config, tmp_path / "cache")
        assert prepared.problems == prepared.remarks == []
        left.append(np.abs(prepared.values[0, 1].numpy() - apex.astype(float))[:, 12:-12, 12:-12].mean())
    assert left[0] < 0.2 * left[1]
    lost = dataclasses.replace(expression, apex=3)
    for _ in range(2):  # made, then read from the cache
        (problem,) = prepare([lost], OnsetApex(96), stabilized, tmp_path / "cache").remarks
        assert problem.path == f"{expression.dataset} {expression.name}"
        assert re.fullmatch(r"not laid over the onset, frames 3: \d% of the points .*", problem.reason)


def test_the_outline_of_a_face_lies_in_its_box_wherever_that_is():
    for margin, size in ((0.0, 64), (0.1, 64), (0.5, 96)):
        inside = inside_outline(place_in_cut(margin, size), size, 8)
        assert inside.shape == (size // 8, size // 8)
        assert torch.equal(inside, inside.flip(1))
        middle = size // 16
        assert inside[middle - 1 : middle + 1, middle - 1 : middle + 1].all()
        assert not inside[0, 0]
        if margin:
            assert not inside[:, 0].any()
    moved = inside_outline(Box(32, 0, 32), 64, 8)
    assert not moved[:, :4].any()
    assert moved[:4, 4:].any(0).all()


def test_maps_are_drawn_inside_the_outline_and_their_colours_are_of_what_is_seen():
    face = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    change = torch.zeros(1, 8, 8)
    change[0, 4, 4], change[0, 0, 0] = 1.0, 50.0
    inside = inside_outline(place_in_cut(0.1, 64), 64, 8)
    figure = figure_of_pairs(face, face, {"micro_attention": change}, inside=inside)
    drawn = np.asarray(figure.axes[3].images[0].get_array()).astype(int)
    grey = (drawn == 128).all(2).reshape(8, 8, 8, 8)  # [row, in it, column, in it]
    assert np.array_equal(~grey.all((1, 3)), inside.numpy())
    brightest = drawn.sum(2).reshape(8, 8, 8, 8).mean((1, 3))
    assert np.unravel_index(brightest.argmax(), (8, 8)) == (4, 4)
    assert figure.axes[3].get_xlabel() == "0.00 to 1.00"
