"""Look-alikes, and the movements that they draw on."""

import numpy as np
import pytest

from lookalikes import tiny_lookalike
from micron_model.data import SyntheticClip, synthetic_clips
from micron_model.data.clips.frames import read_whole_image
from micron_model.data.clips.synthetic import AMPLITUDE, CLASSES, FURTHER, LENGTH, PLACES, Manner
from micron_model.data.databases import casme2, samm
from micron_model.data.databases.difficulties import DIFFICULTIES
from micron_model.data.databases.lookalike import LookalikeConfig


def test_the_clips_of_the_demo_are_what_they_were():
    """Committed results rest on them."""
    found = [(c.label, c.onset, c.apex, c.offset, round(c.amplitude, 6)) for c in synthetic_clips([3])]
    assert found == [
        ("happiness", 6, 20, 40, 1.481194),
        ("surprise", 8, 17, 34, 1.386475),
        ("disgust", 6, 17, 28, 1.120444),
    ]
    # Far below what other noise or another identity would change.
    assert abs(int(synthetic_clips([3])[1].read([20], 16).sum()) - 88356) < 5


def test_every_emotion_moves_in_its_own_way():
    assert {move.place for moves in FURTHER.values() for move in moves} <= set(PLACES)
    fields = {}
    for label in (*CLASSES, *FURTHER):
        clip = SyntheticClip(4, label)
        assert not clip.displacement(clip.onset, 32).any()
        field = clip.displacement(clip.apex, 32).ravel()
        fields[label] = field / np.linalg.norm(field)
    names = list(fields)
    likeness = np.array([[fields[a] @ fields[b] for b in names] for a in names])
    assert np.abs(likeness - np.eye(len(names))).max() < 0.95


def test_repeated_clips_are_of_one_face_and_move_differently():
    first, second = SyntheticClip(4, "fear"), SyntheticClip(4, "fear", repeat=1)
    assert first.name != second.name
    assert first.amplitude != second.amplitude
    rest = [clip.read([0], 32).astype(int) for clip in (first, second)]
    assert 0 < np.abs(rest[0] - rest[1]).mean() < 5  # the noise alone


def test_a_manner_changes_the_movement_and_not_the_face():
    others = {
        "amplitude": (0.1, 0.2), "rise": (4, 4), "fall": (6, 6), "asymmetry": 0.9, "places": 0.1, "directions": 0.5,
        "mixed": 0.9, "blinks": 1.0, "gaze": 1.0,
    }  # fmt: skip
    plain = SyntheticClip(4, "happiness")
    for name, other in others.items():
        clip = SyntheticClip(4, "happiness", manner=Manner(**{name: other}))
        frames = range(plain.onset, plain.offset, 2)
        changed = [np.abs(clip.displacement(i, 16) - plain.displacement(i, 16)).max() for i in frames]
        assert max(changed) > 0.01, name
    clip = SyntheticClip(4, "happiness", manner=Manner(**others))
    assert np.array_equal(clip.read([0], 16), plain.read([0], 16))


def test_one_side_falls_behind_by_no_more_than_asked():
    shares = []
    for subject in range(40):
        clip = SyntheticClip(subject, "surprise", manner=Manner(asymmetry=0.5))
        lengths = [moving.length for moving in clip._expression(clip.apex)][:4]  # both brows, both lids
        assert lengths[:2] == lengths[2:]
        shares.append(lengths[0] / lengths[1])
        assert max(lengths) == pytest.approx(clip.amplitude)
    assert 0.5 <= min(shares) < 0.8
    assert 1.25 < max(shares) <= 2


def test_a_clip_at_any_tempo_ends_at_rest():
    assert SyntheticClip(1, "fear").manner.amplitude == AMPLITUDE
    for difficulty in DIFFICULTIES.values():
        for subject in range(20):
            clip = SyntheticClip(subject, "fear", manner=difficulty.manner)
            assert clip.onset < clip.apex < clip.offset < LENGTH
    with pytest.raises(ValueError, match=r"rise=\(4, 30\) and fall=\(10, 20\).* end after its 44 frames"):
        Manner(rise=(4, 30))


def test_a_harder_lookalike_shows_the_same_faces_under_nuisances(tmp_path):
    for level in ("easy", "hard"):
        tiny_lookalike("casme2", tmp_path / level, side=32, difficulty=level, quirks=False, subjects=1)
    rows = [casme2.load(tmp_path / level)[0] for level in ("easy", "hard")]
    assert [e.emotion for e in rows[0]] == [e.emotion for e in rows[1]]
    easy, hard = (read_whole_image(e[0].path(e[0].onset)).astype(int) for e in rows)
    assert 1 < np.abs(easy - hard).mean() < 20
    with pytest.raises(ValueError, match="difficulty='harder' is none of easy, medium, hard"):
        LookalikeConfig(difficulty="harder")


def test_a_lookalike_is_the_same_again_and_another_with_another_seed(tmp_path):
    trees = [tiny_lookalike("casme2", tmp_path / str(i), subjects=1, seed=i // 2) for i in range(3)]

    def contents(root):
        return {p.relative_to(root): p.read_bytes() for p in root.rglob("*.[jJ]*") if p.is_file()}

    first, again, other = map(contents, trees)
    assert len(first) > 40
    assert first == again
    assert first != other


def test_counts_are_dealt_to_the_subjects(tmp_path):
    counts = {"happiness": 7, "fear": 2}
    root = tiny_lookalike("casme2", tmp_path / "a", counts=counts, quirks=False)
    census = casme2.load(root).census
    assert census.counts == counts
    assert len(census.subjects) == 3
    assert census.dropped == census.incomplete == []
    with pytest.raises(ValueError, match="counts has joy; the emotions are happiness, disgust"):
        tiny_lookalike("casme2", tmp_path / "b", counts={"joy": 5})


def test_no_quirks_leave_nothing_to_mend(tmp_path):
    census = samm.load(tiny_lookalike("samm", tmp_path / "a", quirks=False)).census
    assert census.dropped == census.incomplete == []
    assert census.notes == [
        f"frames of layout 'raw': {tmp_path / 'a' / 'SAMM'}",
        f"rows of {tmp_path / 'a' / 'SAMM_Micro_FACS_Codes_v2.xlsx'}",
    ]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "data.txt").touch()
    with pytest.raises(ValueError, match="is not an empty folder; give another"):
        tiny_lookalike("casme2", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["data.txt"]


def test_settings_that_cannot_be_met_are_refused(tmp_path):
    with pytest.raises(ValueError, match="subjects=1 of side=8 with 4 clips in all: at least one subject"):
        LookalikeConfig(subjects=1, clips=4, side=8)
    with pytest.raises(ValueError, match="layout='clips' is none of cropped, raw of samm"):
        tiny_lookalike("samm", tmp_path / "a", layout="clips")
    with pytest.raises(ValueError, match="dataset='mmew' is none of casme2"):
        tiny_lookalike("mmew", tmp_path / "a")
    assert not (tmp_path / "a").exists()
