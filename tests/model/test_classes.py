"""Class schemes against the counts that the databases' authors and the challenge state."""

from pathlib import Path

import pytest

from micron_model.data.databases import casme2, casme3, megc2019, samm, smic
from micron_model.data.databases.classes import SCHEMES, label
from micron_model.data.databases.expressions import Expression

OFFICIAL = {
    "casme2": casme2.OFFICIAL,
    "samm": samm.OFFICIAL,
    "smic": smic.OFFICIAL,
    "casme3": casme3.OFFICIAL,
}


def expressions(dataset, counts):
    frames = ((1, Path("1.jpg")),)
    return [
        Expression(dataset, str(i % 3), f"{emotion}/{i}", emotion, 200.0, frames, 1, 1, 1)
        for emotion, count in counts.items()
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("scheme", "dataset", "total"),
    [
        ("casme2-5", "casme2", 246),
        ("samm-5", "samm", 136),
        ("3", "casme2", 147),
        ("3", "samm", 133),
        ("3", "smic", 164),
        ("casme3-3", "casme3", 699),
        ("casme3-4", "casme3", 860),
        ("casme3-7", "casme3", 860),
    ],
)
def test_the_official_counts_give_the_stated_totals(scheme, dataset, total):
    counts = OFFICIAL[dataset].counts
    labelled = label(expressions(dataset, counts), scheme)
    assert len(labelled.labels) == len(labelled.expressions) == total
    assert labelled.dropped.total() == sum(counts.values()) - total
    assert set(labelled.labels) == set(SCHEMES[scheme].classes)


def test_the_databases_sum_to_their_official_sizes():
    assert {name: sum(official.counts.values()) for name, official in OFFICIAL.items()} == {
        "casme2": 255,
        "samm": 159,
        "smic": 164,
        "casme3": 860,
    }


def test_the_parts_of_the_composite_keep_their_labels_and_sum_to_it():
    found = [e for part, official in megc2019.PARTS.items() for e in expressions(part, official.counts)]
    labelled = label(found, "3")
    counts = {name: labelled.labels.count(name) for name in SCHEMES["3"].classes}
    assert counts == dict(megc2019.OFFICIAL.counts) == {"negative": 250, "positive": 109, "surprise": 83}
    assert len(labelled.labels) == 442
    assert labelled.labels == [e.emotion for e in found]
    assert sum(official.subjects for official in megc2019.PARTS.values()) == 68


@pytest.mark.parametrize(
    ("scheme", "dataset", "counts"),
    [
        ("3", "samm", {"negative": 92, "positive": 26, "surprise": 15}),
        ("3", "casme2", {"negative": 90, "positive": 32, "surprise": 25}),
        ("casme3-3", "casme3", {"negative": 457, "positive": 55, "surprise": 187}),
        ("casme3-4", "casme3", {"negative": 457, "positive": 55, "surprise": 187, "others": 161}),
    ],
)
def test_merged_classes_count_what_they_are_made_of(scheme, dataset, counts):
    labels = label(expressions(dataset, OFFICIAL[dataset].counts), scheme).labels
    assert {name: labels.count(name) for name in SCHEMES[scheme].classes} == counts


def test_what_is_left_out_is_counted_by_dataset_and_emotion():
    found = expressions("casme2", {"others": 3, "fear": 2, "disgust": 1}) + expressions("samm", {"other": 4})
    labelled = label(found, "3")
    assert labelled.dropped == {("casme2", "others"): 3, ("casme2", "fear"): 2, ("samm", "other"): 4}
    assert labelled.describe("3") == (
        "scheme 3: 1 clips of 1 subjects (negative 1, positive 0, surprise 0); left out: others of casme2 3, fear of "
        "casme2 2, other of samm 4"
    )


def test_no_emotion_counts_as_two_classes():
    for scheme in SCHEMES.values():
        for classes in scheme.emotions.values():
            emotions = [emotion for members in classes.values() for emotion in members]
            assert len(emotions) == len(set(emotions))
            assert set(classes) == set(scheme.classes)


def test_an_unknown_scheme_or_one_for_another_dataset_is_refused():
    found = expressions("smic", {"negative": 2})
    with pytest.raises(ValueError, match="scheme='5' is none of 3, casme2-5, samm-5"):
        label(found, "5")
    with pytest.raises(
        ValueError, match="'casme2-5' has no class for any of 2 expressions of smic; it is for casme2"
    ):
        label(found, "casme2-5")
