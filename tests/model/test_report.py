"""The report, its pictures, the command that scores, and the log of the challenge."""

import csv
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from made_up import CLASSES, composite, constant, expression, from_pairs, predictions_of, with_skill
from micron_model.cli import main
from micron_model.evaluation.figures import figure_of_confusions, figure_of_features, principal_components
from micron_model.evaluation.megc_log import megc_log
from micron_model.evaluation.metrics import score
from micron_model.evaluation.predictions import LEAKY, Predictions, read_predictions, write_predictions
from micron_model.evaluation.published import AS_PUBLISHED, PUBLISHED, published
from micron_model.evaluation.report import Features, Picture, write_report
from micron_model.html_page import png

ASYMMETRIC = [[5, 2, 1], [0, 3, 4], [0, 0, 6]]


@pytest.fixture(scope="module")
def skilled():
    return predictions_of(*composite(), with_skill(1.5))


@pytest.fixture(scope="module")
def always_negative():
    return predictions_of(*composite(), constant("negative"), seeds=[0])


@pytest.fixture(scope="module")
def asymmetric():
    pairs = [
        ("casme2", 1 + i, truth, said)
        for truth, row in zip(CLASSES, ASYMMETRIC, strict=True)
        for said, count in zip(CLASSES, row, strict=True)
        for i in range(count)
    ]
    return from_pairs(pairs)


@pytest.fixture(scope="module")
def report(skilled, always_negative, tmp_path_factory):
    """A folder with a whole report, of settings that must be escaped."""
    out = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    features = Features(
        rng.normal(size=(40, 8)), [CLASSES[i % 3] for i in range(40)], ["casme2", "samm"] * 20
    )
    heat_map = png(figure_of_confusions([score(always_negative).full]))
    write_report(
        out,
        title="Made-up <run>",
        predictions=skilled,
        baselines={"majority class": always_negative},
        settings={"epochs": 30, "model": {"width": 64, "note": "a < b"}},
        published=published("composite"),
        features=features,
        pictures=[Picture("Worst clips", "casme2 & others", heat_map)],
        stamps=["Pre-trained on frames of subjects that are tested on: casme2/1"],
        parts="Trained on the composite.",
    )
    return out


class Balance(HTMLParser):
    """Raises where a tag closes that was not the last opened."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(folder):
    page = (folder / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return page, " ".join(parser.text)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_needs_no_other_file(report):
    page, _ = read_page(report)
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)|url\(|<script|@import', page)


def test_the_page_holds_stamps_and_numbers(report, skilled, always_negative):
    page, text = read_page(report)
    assert "Trained on the composite. A class that has no clip in a dataset" in text
    slstt = text[text.index("SLSTT") :]
    assert "best-epoch selection on the test subject" in slstt[:100]
    assert "takes the best epoch on the left-out subject" in slstt[:200]
    banner = re.search(r'<div class="banner">(.*?)</div>', page).group(1)
    assert "Pre-trained on frames of subjects that are tested on: casme2/1" in banner
    assert page.index("banner", page.index("<h1>")) < page.index("<h2>")
    scores, baseline = score(skilled), score(always_negative)
    for part in (scores.full, *scores.parts.values(), baseline.full):
        for measure in (part.uf1, part.uar, part.accuracy):
            assert str(measure) in text
            assert measure.interval_text in text
    for words in (
        "Made-up <run>",
        "a < b",
        "model.width",
        "casme2 & others",
        "majority class",
        "442",
        "epoch",
    ):
        assert words in text
    assert re.search(r"torch \d", text)
    assert re.search(r"micron-kernels \d", text)
    assert "LEAKY" not in page


def test_published_rows_are_marked_as_such(report):
    page, _ = read_page(report)
    rows = re.findall(r'<tr class="published">(.*?)</tr>', page)
    assert len(rows) == 5
    for row, known in zip(rows, published("composite"), strict=True):
        assert AS_PUBLISHED in row
        assert f"{known.uf1:.3f}" in row
    assert "UAR 0.719; 0.761 is the mean precision" in page


def test_pictures_are_written_and_not_empty(report):
    for name in ("confusions", "features", "picture-1"):
        image = cv2.imread(str(report / f"{name}.png"))
        assert min(image.shape[:2]) > 250
        assert image.std() > 20


def test_the_csv_files_hold_what_the_page_shows(report, skilled):
    assert read_predictions(report / "predictions.csv") == skilled
    assert len(read_predictions(report / "baseline-majority-class.csv").rows) == 442
    rows = read_rows(report / "scores.csv")
    full = next(row for row in rows if row["predictions"] == "this run" and row["part"] == "Full")
    assert float(full["uf1"]) == pytest.approx(score(skilled).full.uf1.mean, abs=1e-6)
    assert {row["trained"] for row in rows} == {"Trained on the composite."}
    assert {row["part"] for row in rows} == {"Full", "casme2", "samm", "smic"}
    subjects = read_rows(report / "subjects.csv")
    assert len(subjects) == 68
    assert sum(int(row["clips"]) for row in subjects) == 442
    assert all("Pre-trained" in row["stamps"] for row in (*rows, *subjects))


def test_the_accuracy_of_a_subject_is_that_of_its_clips(report, skilled):
    mine = [row.truth == row.prediction for row in skilled.rows if row.subject == "samm/3"]
    row = next(row for row in read_rows(report / "subjects.csv") if row["subject"] == "samm/3")
    assert float(row["accuracy"]) == pytest.approx(np.mean(mine), abs=5e-4)


def test_a_leaky_run_is_stamped_on_everything(asymmetric, tmp_path):
    leaky = from_pairs(
        [(r.dataset, r.subject.split("/")[1], r.truth, r.prediction) for r in asymmetric.rows],
        selection=LEAKY,
    )
    write_report(tmp_path, title="Diagnostic", predictions=leaky, baselines={}, settings={})
    page, text = read_page(tmp_path)
    assert "<title>LEAKY: Diagnostic</title>" in page
    assert LEAKY in text
    assert "1 seed: fewer than 5" in text
    for name in ("scores", "subjects"):
        assert all(LEAKY in row["stamps"] for row in read_rows(tmp_path / f"{name}.csv"))
    title = figure_of_confusions([score(leaky).full], stamps=score(leaky).stamps).get_suptitle()
    assert LEAKY in title.replace("\n", " ")
    write_report(
        tmp_path, title="Result", predictions=asymmetric, baselines={"best epoch": leaky}, settings={}
    )
    assert f"Baseline 'best epoch': {LEAKY}" in read_page(tmp_path)[1]


def test_a_baseline_of_other_clips_or_another_truth_is_refused(asymmetric, tmp_path):
    rows = asymmetric.rows
    fewer = Predictions(CLASSES, rows[:-1])
    permuted = from_pairs([(r.dataset, r.subject.split("/")[1], "negative", r.prediction) for r in rows])
    for baseline, message in (
        (fewer, "20 clips, the predictions 21"),
        (permuted, "is tested against the true ones"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path, title="x", predictions=asymmetric, baselines={"b": baseline}, settings={})


def test_confusions_are_drawn_with_rows_true(asymmetric):
    (axes,) = figure_of_confusions([score(asymmetric).full]).axes
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(CLASSES)
    drawn = axes.images[0].get_array()
    assert drawn[1].tolist() == [0, 3 / 7, 4 / 7]
    assert drawn.sum(1).tolist() == pytest.approx([1, 1, 1])
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written[2, 1] == "4\n57%"  # x is the prediction: surprise; y is the truth: positive
    assert written[1, 2] == "0\n0%"


def test_every_part_has_a_panel_of_its_own(skilled):
    scores = score(skilled)
    panels = figure_of_confusions(scores.shown).axes
    assert [axes.get_title() for axes in panels] == [
        "Full, 442 clips",
        "casme2, 145 clips",
        "samm, 133 clips",
        "smic, 164 clips",
    ]
    for axes, part in zip(panels, scores.shown, strict=True):
        assert axes.texts[1].get_text().startswith(f"{part.confusion[:, 0, 1].mean():.1f}\n")


def test_a_class_without_clips_is_drawn_as_such():
    (axes,) = figure_of_confusions([score(from_pairs([("samm", 1, "negative", "positive")])).full]).axes
    assert [text.get_text() for text in axes.texts] == ["0\n0%", "1\n100%", "0\n0%", *"––––––"]


def test_principal_components_are_those_of_the_covariance():
    features = np.random.default_rng(0).normal(size=(50, 4)) * [5, 1, 3, 0.5]
    points, shares = principal_components(features)
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    assert np.cov(points.T) == pytest.approx(np.diag(values[:2]), abs=1e-9)
    assert shares == pytest.approx(values[:2] / values.sum())


def test_features_that_cannot_be_drawn_are_refused():
    labels, datasets = ["negative", "positive", "surprise"], ["samm"] * 3
    figure_of_features(np.eye(3), labels, datasets, CLASSES)
    with pytest.raises(ValueError, match=r"shape \(3, 1\)"):
        figure_of_features(np.ones((3, 1)), labels, datasets, CLASSES)
    with pytest.raises(ValueError, match="NaN"):
        figure_of_features(np.full((3, 4), np.nan), labels, datasets, CLASSES)
    with pytest.raises(ValueError, match="4 features, 3 labels"):
        figure_of_features(np.eye(4), labels, datasets, CLASSES)
    with pytest.raises(ValueError, match="label 'fear' is none of"):
        figure_of_features(np.eye(3), ["fear", *labels[1:]], datasets, CLASSES)


def test_published_scores_are_shares():
    assert all(0 < value < 1 for row in PUBLISHED for value in (row.uf1, row.uar))
    assert [row.method for row in published("composite")] == [
        "LBP-TOP",
        "STSTNet",
        "SLSTT",
        "HTNet",
        "μ-BERT",
    ]
    with pytest.raises(
        ValueError, match="task 'composit': published scores are known of composite, casme2-3"
    ):
        published("composit")


def test_the_command_prints_scores_parts_and_confusions(skilled, tmp_path, capsys):
    write_predictions(tmp_path / "p.csv", skilled)
    assert main(["score", str(tmp_path / "p.csv")]) == 0
    printed = capsys.readouterr().out
    scores = score(skilled)
    for part in (scores.full, *scores.parts.values()):
        for measure in (part.uf1, part.uar, part.accuracy):
            assert str(measure) in printed
            assert measure.interval_text in printed
    assert "68 folds pooled; seeds 0, 1, 2, 3, 4; epoch: last" in printed
    assert "Always 'negative': UF1 0.241, UAR 0.333, accuracy 0.566" in printed
    assert re.search(r"negative +250 +88 +92 +70 ", printed)
    assert "fewer than" not in printed


def test_the_command_prints_stamps_and_true_rows(asymmetric, tmp_path, capsys):
    leaky = from_pairs(
        [(r.dataset, r.subject.split("/")[1], r.truth, r.prediction) for r in asymmetric.rows],
        selection=LEAKY,
    )
    write_predictions(tmp_path / "p.csv", leaky)
    assert main(["score", str(tmp_path / "p.csv")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(LEAKY)
    assert "1 seed: fewer than 5" in printed
    assert re.search(r"rows true, columns predicted\n", printed)
    for name, row in zip(CLASSES, ASYMMETRIC, strict=True):
        assert re.search(rf"{name} +{row[0]} +{row[1]} +{row[2]} *\n", printed)


def test_the_command_names_an_absent_class(tmp_path, capsys):
    pairs = [("samm", 1, "negative", "negative"), ("samm", 2, "positive", "surprise")]
    write_predictions(tmp_path / "p.csv", from_pairs(pairs))
    assert main(["score", str(tmp_path / "p.csv")]) == 0
    assert "Not counted in Full, which has no clip of it: surprise" in capsys.readouterr().out


def test_the_command_refuses_bad_input(tmp_path, refused):
    assert "missing.csv: no such file" in refused(["score", str(tmp_path / "missing.csv")])
    (tmp_path / "p.csv").write_text("a,b\n")
    assert "no column dataset" in refused(["score", str(tmp_path / "p.csv")])
    assert "resamples=0" in refused(["score", str(tmp_path / "p.csv"), "--resamples", "0"])


def test_the_log_of_the_challenge(tmp_path, capsys):
    expressions = [
        expression("smic", "s3", "s3/micro/s03_po_01"),
        expression("samm", "6", "006/006_1_2"),
        expression("casme2", "2", "sub02/EP09_01"),
        expression("casme2", "sub01", "sub01/EP19_05f"),
        expression("casme2", "sub01", "sub01/EP02_01f"),
    ]
    labels = ["positive", "negative", "positive", "negative", "positive"]
    predictions = predictions_of(expressions, labels, constant("surprise"), seeds=[4])
    expected = (
        "casme2 sub01\nEP02_01f 1 2\nEP19_05f 0 2\ncasme2 sub02\nEP09_01 1 2\n"
        "smic s03\ns03_po_01 1 2\nsamm 006\n006_1_2 0 2\n"
    )
    assert megc_log(predictions, 4) == expected
    write_predictions(tmp_path / "p.csv", predictions)
    assert main(["score", str(tmp_path / "p.csv"), "--megc-log", str(tmp_path / "logs")]) == 0
    assert (tmp_path / "logs" / "seed-4.txt").read_text() == expected


def test_the_log_of_the_challenge_is_refused_where_it_would_mislead(asymmetric):
    assert "casme2 sub01\n" in megc_log(asymmetric, 0)
    with pytest.raises(ValueError, match="the challenge has negative, positive and surprise only"):
        megc_log(from_pairs([("casme2", 1, "a", "b")], ("a", "b")), 0)
    with pytest.raises(ValueError, match="seed 1: there are predictions of 0"):
        megc_log(asymmetric, 1)
    with pytest.raises(ValueError, match="dataset 'casme3': the challenge has casme2, smic, samm"):
        megc_log(from_pairs([("casme3", 1, "negative", "negative")]), 0)
    with pytest.raises(ValueError, match="LEAKY"):
        megc_log(from_pairs([("casme2", 1, "negative", "negative")], selection=LEAKY), 0)
