from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from made_up import CLASSES, composite, expression
from micron_model.data.databases.expressions import Census, Official
from micron_model.evaluation.baselines import majority_class, shuffled_labels
from micron_model.evaluation.metrics import score
from micron_model.evaluation.predictions import Predictions
from micron_model.evaluation.protocols import (
    Fold,
    cde,
    check_census,
    check_fold,
    hde,
    inner_split,
    loso,
    training_of_parts,
)


@pytest.fixture(scope="module")
def made():
    return composite()


@pytest.mark.parametrize(("protocol", "folds"), [(loso, 68), (cde, 68), (hde, 3)])
def test_every_clip_is_tested_once_and_no_subject_is_on_both_sides(protocol, folds, made):
    expressions, _ = made
    made_folds = protocol(expressions)
    assert len(made_folds) == folds
    assert Counter(i for fold in made_folds for i in fold.test) == Counter(range(442))
    for fold in made_folds:
        assert sorted((*fold.train, *fold.test)) == list(range(442))
        sides = [{expressions[i].subject for i in side} for side in (fold.train, fold.test)]
        assert not sides[0] & sides[1]


def test_folds_are_named_by_what_is_left_out(made):
    expressions, _ = made
    assert [fold.name for fold in hde(expressions)] == ["casme2", "samm", "smic"]
    for fold in hde(expressions):
        assert {expressions[i].dataset for i in fold.test} == {fold.name}
        assert len({expressions[i].dataset for i in fold.train}) == 2
    for fold in cde(expressions):
        assert {expressions[i].subject for i in fold.test} == {fold.name}
    assert [fold.name for fold in loso(expressions)][8:11] == ["casme2/9", "casme2/10", "casme2/11"]


def test_the_scores_of_parts_say_what_was_trained_on(made):
    expressions, _ = made
    assert training_of_parts(cde(expressions), expressions).startswith("Trained on the composite, ")
    assert training_of_parts(hde(expressions), expressions) == "Trained on the other datasets."
    alone = [i for i, e in enumerate(expressions) if e.dataset == "smic"]
    smic = [expressions[i] for i in alone]
    assert training_of_parts(loso(smic), smic) == ""
    separately = [
        Fold(name, tuple(i for i in own if expressions[i].subject != name),
             tuple(i for i in own if expressions[i].subject == name), expressions)
        for dataset in ("casme2", "samm", "smic")
        for own in [[i for i, e in enumerate(expressions) if e.dataset == dataset]]
        for name in sorted({expressions[i].subject for i in own})
    ]  # fmt: skip
    assert training_of_parts(separately, expressions).startswith("Trained on that dataset alone")


def test_subjects_of_two_datasets_never_meet():
    """Subject 1 of either is another person."""
    folds = cde([expression("casme2", "sub01"), expression("samm", "001"), expression("smic", "s1")])
    assert [(fold.name, fold.test) for fold in folds] == [
        ("casme2/1", (0,)),
        ("samm/1", (1,)),
        ("smic/1", (2,)),
    ]


def test_one_subject_written_in_two_ways_is_left_out_whole():
    expressions = [expression(subject=text) for text in ("sub01", "1", "sub02", "01")]
    assert loso(expressions)[0].test == (0, 1, 3)


def test_a_planted_leak_is_refused():
    expressions = [expression(subject=text) for text in ("sub01", "sub02", "1")]
    message = "fold x: subject casme2/1 is on both sides, as 'sub01' in training and as '1' in test"
    with pytest.raises(ValueError, match=message):
        Fold("x", (0, 1), (2,), expressions)
    sound = Fold("x", (1,), (0, 2), expressions)
    with pytest.raises(ValueError, match="is on both sides"):
        replace(sound, train=(1, 2), test=(0,), expressions=expressions)


def test_a_list_that_changed_after_the_folds_were_made_is_refused_before_training():
    expressions = [expression(subject=text) for text in ("sub01", "sub02")]
    fold = Fold("x", (0,), (1,), expressions)
    check_fold(fold, expressions)
    expressions[1] = expression(subject="s001")
    with pytest.raises(ValueError, match="as 'sub01' in training and as 's001' in test"):
        check_fold(fold, expressions)
    with pytest.raises(ValueError, match="indices 1 to 1 on the test side, of a list of 1"):
        check_fold(fold, expressions[:1])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((), (0,), "the training side is empty"),
        ((0,), (), "the test side is empty"),
        ((0, 0), (1,), "twice on the training side"),
        ((-1,), (0,), "indices -1 to -1"),
    ],
)
def test_a_fold_that_makes_no_sense_is_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        Fold("x", train, test, [expression(subject="1"), expression(subject="2")])


def test_protocols_refuse_too_few_subjects_and_datasets(made):
    one = [expression(), expression(name="EP01_02")]
    with pytest.raises(ValueError, match="1 subjects; to leave one out"):
        loso(one)
    with pytest.raises(ValueError, match="datasets casme2: a composite has two or more"):
        cde(one)
    with pytest.raises(ValueError, match="datasets casme2: this protocol takes three"):
        hde(one)


def test_the_inner_split_shares_no_subject_and_stays_on_the_training_side(made):
    expressions, labels = made
    for fold in loso(expressions)[::9]:
        inner = inner_split(expressions, labels, fold.train)
        assert sorted((*inner.train, *inner.test)) == list(fold.train)
        sides = [{expressions[i].subject for i in side} for side in (inner.train, inner.test)]
        assert not sides[0] & sides[1]
        assert len(sides[1]) == round(0.2 * 67)


def test_the_inner_split_depends_on_the_seed_alone(made):
    expressions, labels = made
    train = hde(expressions)[0].train
    first, again, other = (inner_split(expressions, labels, train, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.test != other.test


def test_the_inner_split_is_stratified(made):
    """Nearer to a fifth of every class than a random choice of subjects."""
    expressions, labels = made
    everything = range(442)
    total = np.array([labels.count(name) for name in CLASSES])
    subjects = sorted({e.subject for e in expressions})

    def distance(test):
        held = np.array([sum(labels[i] == name for i in test) for name in CLASSES])
        return np.abs(held / total - 0.2).max()

    rng = np.random.default_rng(0)
    at_random = []
    for _ in range(30):
        chosen = set(rng.permutation(subjects)[:14].tolist())
        at_random.append(distance([i for i in everything if expressions[i].subject in chosen]))
    stratified = [distance(inner_split(expressions, labels, everything, seed=seed).test) for seed in range(5)]
    assert max(stratified) < 0.04 < np.median(at_random)


def test_the_inner_split_needs_four_subjects():
    expressions = [expression(subject=str(i)) for i in range(1, 5)]
    labels = ["negative", "positive"] * 2
    inner = inner_split(expressions, labels, range(4))
    assert len(inner.train) == len(inner.test) == 2
    with pytest.raises(ValueError, match="3 subjects to train on; an inner split needs 4"):
        inner_split(expressions, labels, range(3))
    with pytest.raises(ValueError, match=r"share=0\.6"):
        inner_split(expressions, labels, range(4), share=0.6)


def test_the_majority_class_is_that_of_the_training_side():
    expressions = [expression(subject=str(1 + i // 3), name=f"clip{i}") for i in range(9)]
    labels = ["positive"] * 3 + ["negative"] * 2 + ["positive"] + ["negative"] * 3
    rows = [
        row
        for fold in loso(expressions)
        for row in majority_class(fold, expressions, labels, CLASSES, seed=2)
    ]
    predictions = Predictions(CLASSES, tuple(rows))
    # Beside the second subject both classes have three clips: the first one named is taken.
    assert [row.prediction for row in predictions.rows] == ["negative"] * 6 + ["positive"] * 3
    assert [row.truth for row in predictions.rows] == labels
    assert predictions.rows[0].logits == pytest.approx(np.log([6, 2, 1]))
    assert predictions.seeds == (2,)


def test_the_majority_baseline_of_the_composite_is_always_negative(made):
    expressions, labels = made
    rows = [row for fold in cde(expressions) for row in majority_class(fold, expressions, labels, CLASSES)]
    assert f"{score(Predictions(CLASSES, tuple(rows))).full.accuracy}" == "0.566"


def test_shuffled_labels_are_permuted_within_the_training_side_only(made):
    expressions, labels = made
    fold = loso(expressions)[20]
    shuffled = shuffled_labels(labels, fold.train, 0)
    assert [shuffled[i] for i in fold.test] == [labels[i] for i in fold.test]
    before, after = ([source[i] for i in fold.train] for source in (labels, shuffled))
    assert Counter(before) == Counter(after)
    kept = np.mean([a == b for a, b in zip(before, after, strict=True)])
    by_chance = sum((count / len(before)) ** 2 for count in Counter(before).values())
    assert kept == pytest.approx(by_chance, abs=0.08)
    assert shuffled == shuffled_labels(labels, fold.train, 0) != shuffled_labels(labels, fold.train, 1)
    assert labels == composite()[1]


def test_a_census_that_differs_is_refused_unless_allowed():
    expressions = [expression(emotion="happiness"), expression(subject="2", emotion="fear")]
    sound = Census.of("casme2", Official(2, {"happiness": 1, "fear": 1}), expressions)
    short = Census.of("samm", Official(2, {"happiness": 1, "fear": 2}), expressions)
    assert check_census([sound]) == []
    with pytest.raises(
        ValueError, match=r"census of samm differs: fear: 1 clips, official 2.*--allow-differences runs"
    ):
        check_census([sound, short])
    assert check_census([sound, short], allow_differences=True) == [
        "The census of samm differs: fear: 1 clips, official 2"
    ]
