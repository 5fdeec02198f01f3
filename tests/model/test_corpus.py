"""What a model was pre-trained on, against whom it is tested on."""

from pathlib import Path

import pytest

from micron_model.data import find_shards
from micron_model.data.databases.corpus import Corpus
from micron_model.data.databases.expressions import Expression


def expression(dataset, subject, folder):
    return Expression(dataset, subject, folder, "x", 200.0, ((1, Path("/data") / folder / "1.jpg"),), 1, 1, 1)


TESTED = [
    expression("casme2", "1", "Cropped/sub01/EP02_01f"),
    expression("casme2", "2", "Cropped/sub02/EP02_01f"),
    expression("samm", "006", "SAMM/006/006_1_2"),
    expression("smic", "s1", "HS/s1/micro/negative/s1_ne_01"),
    expression("casme3", "spNO.1", "frame/spNo.1_b_166"),
    expression("casme3", "spNO.2", "frame/spNo.2_b_166"),
]


@pytest.mark.parametrize(
    ("clip", "subjects"),
    [
        ("/a/CASME2-RAW/sub01/EP19_03", ["casme2/1"]),
        ("/a/CASME II/all.mp4", ["casme2/1", "casme2/2"]),  # whose it is cannot be told
        ("/a/CASME2-RAW/sub17/EP01", []),
        ("/z/SAMM/2023_data/006/006_7_1", ["samm/6"]),
        ("/z/SMIC_all_cropped/HS/s01/micro/positive/s1_po_02", ["smic/1"]),
        ("/q/Part_A_ME_clip/frame/spNo.1_b_9", ["casme3/1"]),
        ("C:\\data\\CAS(ME)^3\\part_A\\spNO.2\\b\\color", ["casme3/2"]),
        ("/q/sub02/EP02_01f", ["casme2/2"]),  # the last two folders are those of a tested clip
        ("synthetic/0001/happiness", []),
    ],
)
def test_subjects_of_a_corpus_are_found_by_its_paths(clip, subjects):
    assert Corpus((clip,)).overlap(TESTED) == subjects


def test_a_corpus_is_kept_with_the_model(tmp_path):
    corpus = Corpus(("b/c", "ä"))
    corpus.write(tmp_path)
    assert Corpus.read(tmp_path) == corpus
    assert Corpus.read(tmp_path / "elsewhere") == Corpus(None)
    (tmp_path / "corpus.json").write_text("[1]")
    assert Corpus.read(tmp_path) == Corpus(None)


def test_a_corpus_of_shards_is_that_of_their_clips(sources, shards, tmp_path):
    clips = Corpus.of(shards).clips
    assert len(clips) == 3
    assert str(sources[0] / "s1" / "smile") in clips
    (tmp_path / "out" / "plan.json").unlink()
    assert Corpus.of(find_shards([tmp_path / "out"])) == Corpus(None)
    assert Corpus.of(["https://host/shard-000000.tar"]) == Corpus(None)
