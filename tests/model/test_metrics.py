import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from made_up import CLASSES, composite, constant, from_pairs, predictions_of, with_skill
from micron_model.evaluation.metrics import accuracy, confusion_matrix, resample_subjects, score, uar, uf1
from micron_model.evaluation.predictions import LEAKY, Predictions

#: Counted from the log that the authors of STSTNet publish, by part: rows true, columns predicted.
STSTNET = {
    "casme2": [[83, 5, 0], [12, 19, 1], [2, 0, 23]],
    "samm": [[82, 7, 3], [11, 13, 2], [5, 2, 8]],
    "smic": [[54, 10, 6], [17, 30, 4], [14, 1, 28]],
}
#: Their paper: UF1, "UAR".
STSTNET_PAPER = {
    "Full": (0.7353, 0.7605),
    "casme2": (0.8382, 0.8686),
    "samm": (0.6588, 0.6810),
    "smic": (0.6801, 0.7013),
}


@pytest.fixture(scope="module")
def skilled():
    return predictions_of(*composite(), with_skill(1.5))


@pytest.mark.parametrize("seed", range(30))
def test_measures_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    classes = [f"class{i}" for i in range(rng.integers(2, 8))]
    true = rng.choice(classes, rng.integers(1, len(classes) + 1), replace=False)  # the others are absent
    truth, said = rng.choice(true, 40), rng.choice(classes, 40)
    present = sorted(set(truth))
    matrix = confusion_matrix(truth, said, classes)
    assert uf1(matrix) == pytest.approx(
        f1_score(truth, said, labels=present, average="macro", zero_division=0)
    )
    assert uar(matrix) == pytest.approx(
        recall_score(truth, said, labels=present, average="macro", zero_division=0)
    )
    assert accuracy(matrix) == pytest.approx(accuracy_score(truth, said))


@pytest.mark.parametrize("seed", range(10))
def test_unweighted_average_recall_is_balanced_accuracy(seed):
    rng = np.random.default_rng(seed)
    truth = [*CLASSES[:2], *rng.choice(CLASSES[:2], 40)]  # of surprise there is none
    said = rng.choice(CLASSES[:2], 42)
    assert uar(confusion_matrix(truth, said, CLASSES)) == pytest.approx(balanced_accuracy_score(truth, said))


def test_rows_are_the_truth_and_columns_the_prediction():
    matrix = confusion_matrix(["negative", "negative"], ["positive", "negative"], CLASSES)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_class_that_is_never_predicted_counts_with_f1_0_and_an_absent_one_does_not_count():
    never_predicted = np.array([[4, 0, 0], [0, 4, 0], [2, 0, 0]])
    assert uf1(never_predicted) == pytest.approx((0.8 + 1 + 0) / 3)
    absent = np.array([[4, 0, 0], [0, 4, 2], [0, 0, 0]])
    assert uf1(absent) == pytest.approx((1 + 0.8) / 2)
    assert uar(absent) == pytest.approx((1 + 4 / 6) / 2)


def test_the_published_uar_of_ststnet_has_its_axes_swapped():
    parts = {name: np.array(matrix) for name, matrix in STSTNET.items()}
    parts["Full"] = sum(parts.values())
    for name, matrix in parts.items():
        published_uf1, published_uar = STSTNET_PAPER[name]
        assert uf1(matrix) == pytest.approx(published_uf1, abs=5e-5)
        assert uf1(matrix.T) == pytest.approx(uf1(matrix))
        assert uar(matrix.T) == pytest.approx(published_uar, abs=5e-5)  # the mean precision
        assert uar(matrix) < published_uar - 0.02
    assert uar(parts["Full"]) == pytest.approx(0.7186, abs=5e-5)


def test_the_score_has_true_rows():
    pairs = [
        ("casme2", 1 + i % 4, truth, said)
        for truth, row in zip(CLASSES, STSTNET["casme2"], strict=True)
        for said, count in zip(CLASSES, row, strict=True)
        for i in range(count)
    ]
    full = score(from_pairs(pairs)).full
    assert full.confusion.tolist() == [STSTNET["casme2"]]
    assert full.uar.mean == pytest.approx(0.8190, abs=5e-5)
    assert full.class_recall["positive"] == pytest.approx(19 / 32)
    assert full.class_f1["positive"] == pytest.approx(38 / (32 + 24))


def test_folds_are_pooled_and_never_averaged():
    pairs = [("casme2", 1, "negative", "negative"), ("casme2", 1, "positive", "negative")]
    pairs += [("casme2", 2, "positive", "positive"), ("casme2", 3, "negative", "positive")]
    predictions = from_pairs(pairs, CLASSES[:2])
    by_fold = [
        f1_score(
            [r.truth for r in predictions.rows if r.fold == fold],
            [r.prediction for r in predictions.rows if r.fold == fold],
            labels=CLASSES[:2],
            average="macro",
            zero_division=0,
        )
        for fold in ("casme2/1", "casme2/2", "casme2/3")
    ]
    assert np.mean(by_fold) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert score(predictions).full.uf1.mean == pytest.approx(0.5)


def test_full_is_not_the_mean_of_its_parts(skilled):
    scores = score(skilled)
    assert set(scores.parts) == {"casme2", "samm", "smic"}
    parts = list(scores.parts.values())
    assert scores.full.clips == sum(part.clips for part in parts) == 442
    assert (scores.full.confusion == sum(part.confusion for part in parts)).all()
    assert scores.full.uf1.mean != pytest.approx(np.mean([part.uf1.mean for part in parts]), abs=1e-3)


def test_always_negative_on_the_composite():
    full = score(predictions_of(*composite(), constant("negative"), seeds=[0])).full
    assert full.counts == {"negative": 250, "positive": 109, "surprise": 83}
    assert full.subjects == 68
    assert full.accuracy.mean == pytest.approx(250 / 442)
    assert f"{full.accuracy}" == "0.566"
    assert full.uar.mean == pytest.approx(1 / 3)
    name, matrix = full.always_the_largest
    assert name == "negative"
    assert matrix.tolist() == full.confusion[0].tolist()


def test_a_class_that_a_part_lacks_is_named_and_not_counted():
    pairs = [("casme2", 1, "negative", "negative"), ("casme2", 2, "positive", "positive")]
    pairs += [("samm", 1, "surprise", "surprise"), ("samm", 2, "negative", "surprise")]
    scores = score(from_pairs(pairs))
    assert scores.full.absent == ()
    assert scores.parts["casme2"].absent == ("surprise",)
    assert scores.parts["casme2"].uf1.mean == 1
    assert scores.parts["samm"].absent == ("positive",)
    assert scores.parts["samm"].uf1.mean == pytest.approx((0 + 2 / 3) / 2)
    assert np.isnan(scores.parts["samm"].class_recall["positive"])


def test_mean_and_sd_over_seeds(skilled):
    full = score(skilled).full
    values = [
        score(Predictions(CLASSES, tuple(r for r in skilled.rows if r.seed == s))).full.uf1.mean
        for s in range(5)
    ]
    assert full.uf1.per_seed == pytest.approx(values)
    assert full.uf1.mean == pytest.approx(np.mean(values))
    assert full.uf1.sd == pytest.approx(np.std(values, ddof=1))


def test_the_interval_is_reproducible_and_holds_the_score(skilled):
    first, again, other = score(skilled), score(skilled), score(skilled, seed=1)
    for part in (first.full, *first.parts.values()):
        for measure in (part.uf1, part.uar, part.accuracy):
            assert measure.interval[0] < measure.mean < measure.interval[1]
    assert first.full.uf1.interval == again.full.uf1.interval != other.full.uf1.interval


def test_the_interval_is_that_of_resampled_subjects():
    """Against a bootstrap written out, of the accuracy of subjects with one clip each: that of a proportion."""
    pairs = [("casme2", i, "negative", "negative" if i < 70 else "positive") for i in range(100)]
    low, high = score(from_pairs(pairs), resamples=4000).full.accuracy.interval
    deviation = np.sqrt(0.7 * 0.3 / 100)
    assert low == pytest.approx(0.7 - 1.96 * deviation, abs=0.02)
    assert high == pytest.approx(0.7 + 1.96 * deviation, abs=0.02)


def test_subjects_are_resampled_whole():
    confusions = np.array([[[3, 0], [0, 5]], [[0, 7], [11, 0]]])
    for total in resample_subjects(confusions, 50, 0):
        times = total[0, 0] // 3
        assert total.tolist() == [[3 * times, 7 * (2 - times)], [11 * (2 - times), 5 * times]]


def test_a_subject_with_many_alike_clips_widens_the_interval():
    """Clips of one subject are no independent draws."""

    def width(clips_each):
        pairs = [
            ("casme2", subject, "negative", "negative" if subject % 2 else "positive")
            for subject in range(120 // clips_each)
            for _ in range(clips_each)
        ]
        low, high = score(from_pairs(pairs)).full.accuracy.interval
        return high - low

    assert width(10) > 2 * width(1)


def test_the_whole_score_of_the_composite_is_quick(skilled):
    score(skilled)
    started = time.perf_counter()
    score(skilled)
    assert time.perf_counter() - started < 2


def test_stamps(skilled):
    def stamps(predictions):
        return " | ".join(score(predictions, resamples=10).stamps)

    expressions, labels = composite()
    assert stamps(skilled) == ""
    assert stamps(predictions_of(expressions, labels, with_skill(1), seeds=[0])) == "1 seed: fewer than 5"
    assert stamps(predictions_of(expressions, labels, with_skill(1), seeds=[0, 7])) == "2 seeds: fewer than 5"
    leaky = predictions_of(expressions, labels, with_skill(1), selection=LEAKY)
    assert stamps(leaky).startswith("LEAKY: best epoch on the test subjects")
    one_leaky_row = Predictions(CLASSES, (*skilled.rows[:-1], leaky.rows[-1]))
    assert "LEAKY" in stamps(one_leaky_row)
    assert "several ways" in stamps(one_leaky_row)
    assert stamps(Predictions(CLASSES, skilled.rows[:-3])) == "Seed 4 covers 439 of 442 clips"


def test_a_run_that_was_stopped_is_scored_with_what_it_has(skilled):
    """Seed 1 has come to the first subject only."""
    rows = [r for r in skilled.rows if r.seed == 0 or (r.seed == 1 and r.subject == "casme2/1")]
    scores = score(Predictions(CLASSES, tuple(rows)))
    assert len(scores.full.uf1.per_seed) == 2
    assert len(scores.parts["samm"].uf1.per_seed) == 1
    assert np.isfinite(scores.full.uf1.interval).all()
