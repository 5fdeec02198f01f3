import numpy as np
import pytest

from micron_model.data import FrameError, FramePairs, Problem, find_clips, read_image, synthetic_clips
from micron_model.data.clips.frames import VideoClip
from micron_model.data.clips.pairs import collate
from micron_model.data.clips.synthetic import CLASSES, PLACES
from writers import write_images, write_video


def frames_of(count, size=24):
    """Frames whose grey level is their number times 4."""
    return np.broadcast_to(
        (np.arange(count, dtype=np.uint8) * 4)[:, None, None, None], (count, 3, size, size)
    ).copy()


def test_images_are_ordered_by_number_not_by_name(tmp_path):
    folder = write_images(tmp_path / "clip", frames_of(12))
    (clip,), problems = find_clips([folder])
    assert problems == []
    assert clip.fps == 30
    levels = clip.read(range(12), 24)[:, 0, 0, 0]
    assert levels.tolist() == [4 * i for i in range(12)]


def test_channels_are_rgb_and_the_centre_is_cut(tmp_path):
    frame = np.zeros((3, 20, 40), np.uint8)
    frame[0, :, 10:30] = 200  # red, in the central square only
    folder = write_images(tmp_path / "clip", [frame])
    image = read_image(folder / "img1.png")
    assert image.shape == (3, 20, 20)
    assert (image[0] == 200).all()
    assert (image[1:] == 0).all()
    assert read_image(folder / "img1.png", 10).shape == (3, 10, 10)


def test_a_video_gives_its_frames_in_any_order(tmp_path):
    path = write_video(tmp_path / "v.avi", frames_of(60), fps=25)
    (clip,), _ = find_clips([path])
    assert (len(clip), clip.fps) == (60, 25)
    levels = clip.read([50, 3, 3, 10], 24)[:, 0, 5, 5].astype(int)
    assert np.abs(levels - [200, 12, 12, 40]).max() <= 3  # the codec is lossy


def test_clips_are_found_at_any_depth_and_bad_ones_are_listed(tmp_path):
    write_images(tmp_path / "a" / "b" / "clip1", frames_of(5))
    write_images(tmp_path / "a" / "clip2", frames_of(5))
    write_images(tmp_path / "a" / "short", frames_of(1))
    write_video(tmp_path / "a" / "v.avi", frames_of(5))
    (tmp_path / "a" / "empty.mp4").touch()
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._v.avi").touch()
    clips, problems = find_clips([tmp_path])
    assert [c.name.rsplit("/", 1)[1] for c in clips] == ["v.avi", "clip1", "clip2"]
    reasons = {p.path.rsplit("/", 1)[1]: p.reason for p in problems}
    assert reasons == {
        "short": "has 1 frames; a pair needs 2",
        "empty.mp4": "no frame can be decoded from this video",
        tmp_path.name: "holds files that are neither image nor video: 1 .txt",
    }


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "missing", FileNotFoundError, "missing: no such file or folder"),
        (lambda p: p, ValueError, "no usable clip in .*no image and no video was found"),
        (lambda p: write_images(p / "one", frames_of(1)), ValueError, "has 1 frames"),
    ],
)
def test_no_usable_clip_is_an_error(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        find_clips([make(tmp_path)])


@pytest.mark.parametrize("content", [b"", b"this is no image"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(FrameError, match=r"x\.png: is (empty|not an image that can be decoded)"):
        read_image(path)
    with pytest.raises(FrameError, match="no such file"):
        read_image(tmp_path / "y.png")


def test_a_video_that_ends_early_is_named(tmp_path):
    path = write_video(tmp_path / "v.avi", frames_of(5))
    with pytest.raises(FrameError, match="ends before the 9 frames it states"):
        VideoClip(path, 30.0, 9).read([7], 24)


def test_a_pair_depends_on_seed_and_index_alone(clips):
    pairs, again, other = (FramePairs(clips, 16, seed) for seed in (1, 1, 2))
    order = [5, 0, 1000]
    first = {i: pairs[i] for i in order}
    for i in reversed(order):
        assert again[i]["source"] == first[i]["source"]
        assert again[i]["frames"].equal(first[i]["frames"])
    assert [other[i]["source"] for i in order] != [first[i]["source"] for i in order]


def test_delta_is_scaled_by_the_frame_rate(clips):
    pairs = FramePairs(clips, 8, delta=(5, 11))  # at 30 a second; the clips have 60
    deltas = {int(s.split()[-1]) - int(s.split()[-3]) for s in (pairs[i]["source"] for i in range(300))}
    assert deltas == set(range(10, 23))


def test_a_short_clip_gives_its_widest_pair(tmp_path):
    (clip,), _ = find_clips([write_images(tmp_path / "clip", frames_of(3))])
    sample = FramePairs([clip], 24, delta=(5, 11))[0]
    assert sample["source"].endswith("frames 0 and 2")


def test_an_unreadable_frame_is_replaced_and_reported(tmp_path):
    folder = write_images(tmp_path / "clip", frames_of(8))
    (folder / "img3.png").write_bytes(b"broken")
    pairs = FramePairs(find_clips([folder])[0], 24, delta=(1, 2))
    batch = collate([pairs[i] for i in range(40)])
    assert batch["frames"].shape == (40, 3, 24, 24)
    assert batch["problems"]
    assert set(batch["problems"]) == {
        Problem(str(folder / "img3.png"), "is not an image that can be decoded (6 bytes)")
    }
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(FrameError, match="16 pairs in a row could not be read"):
        pairs[0]


def test_bad_delta_and_no_clips_are_named(clips):
    with pytest.raises(ValueError, match=r"delta=\(0, 3\)"):
        FramePairs(clips, 8, delta=(0, 3))
    with pytest.raises(ValueError, match="clips is empty"):
        FramePairs([], 8)


def test_synthetic_clips_repeat_and_differ():
    clips = synthetic_clips(range(3))
    assert len(clips) == 3 * len(CLASSES)
    frames = [c.read([0, c.apex], 64) for c in clips]
    assert np.array_equal(frames[0], synthetic_clips(range(3))[0].read([0, clips[0].apex], 64))
    assert len({f.tobytes() for f in frames}) == len(clips)
    other = synthetic_clips(range(3), seed=1)[0].read([0], 64)
    assert np.abs(other.astype(int) - frames[0][:1]).mean() > 5


@pytest.mark.parametrize("clip", synthetic_clips(range(2)), ids=lambda c: c.name)
def test_the_truth_of_a_synthetic_clip(clip):
    assert 0 < clip.onset < clip.apex < clip.offset
    course = [clip.course(t) for t in range(len(clip))]
    assert course[clip.onset] == 0
    assert course[clip.apex] == max(course) == 1
    assert all(c == 0 for c in course[clip.offset :])
    reach = np.linalg.norm(clip.displacement(clip.apex, 64), axis=2).max()
    assert 0.5 * clip.amplitude < reach < 1.6 * clip.amplitude
    assert 0.6 <= clip.amplitude <= 2.0
    moved = clip.moved(clip.onset, clip.apex, 64, 8)
    assert moved.shape == (64,)
    still = moved < 0.01
    onset, apex = clip.read([clip.onset, clip.apex], 64).astype(float)
    difference = np.abs(apex - onset).mean(0).reshape(8, 8, 8, 8).mean((1, 3)).ravel()
    assert 0 < still.sum() < 64
    assert difference[moved.argmax()] > 1.5 * difference[still].mean()


def test_every_class_moves_known_places():
    assert {m.place for moves in CLASSES.values() for m in moves} == set(PLACES)
