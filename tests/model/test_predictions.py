import csv
from dataclasses import replace

import pytest

from made_up import composite, constant, from_pairs, predictions_of, with_skill
from micron_model.evaluation.metrics import score
from micron_model.evaluation.predictions import LEAKY, Predictions, read_predictions, write_predictions


@pytest.fixture
def predictions():
    pairs = [("casme2", 1, "negative", "negative"), ("casme2", 2, "positive", "surprise")]
    return from_pairs([*pairs, ("samm", 6, "surprise", "surprise")])


def changed(predictions, number, **changes):
    rows = list(predictions.rows)
    rows[number - 1] = replace(rows[number - 1], **changes)
    return Predictions(predictions.classes, tuple(rows))


def test_reading_gives_what_was_written(tmp_path):
    predictions = predictions_of(*composite(), with_skill(1), seeds=[0, 3])
    path = tmp_path / "out" / "predictions.csv"
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions
    assert read_predictions(path, ("surprise", "negative", "positive")) == predictions
    assert path.read_text().splitlines()[0] == (
        "dataset,subject,clip,truth,prediction,logit_negative,logit_positive,logit_surprise,fold,seed,selection"
    )
    assert [file.name for file in path.parent.iterdir()] == ["predictions.csv"]


def test_commas_quotes_and_other_alphabets_come_back(predictions, tmp_path):
    odd = changed(predictions, 1, clip='smile, "broad"\nμ/01')
    write_predictions(tmp_path / "p.csv", odd)
    assert read_predictions(tmp_path / "p.csv") == odd


def test_the_csv_of_another_program_in_another_order_is_read(predictions, tmp_path):
    write_predictions(tmp_path / "p.csv", predictions)
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "q.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, sorted(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert score(read_predictions(tmp_path / "q.csv")).full.uf1 == score(predictions).full.uf1


def test_a_failed_write_leaves_what_was_there(predictions, tmp_path, monkeypatch):
    def full(_file):
        raise OSError(28, "No space left on device")

    path = tmp_path / "p.csv"
    write_predictions(path, predictions)
    before = path.read_bytes()
    monkeypatch.setattr("micron_model.whole_file.os.fsync", full)
    with pytest.raises(RuntimeError, match=r"p\.csv: could not be written \(No space left on device\)"):
        write_predictions(path, from_pairs([("samm", 1, "negative", "negative")]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (
            2,
            {"truth": "others"},
            r"row 2 \(casme2 clip1, seed 0\): truth 'others' is none of negative, positive",
        ),
        (3, {"prediction": "1"}, "row 3 .*prediction '1' is none of"),
        (1, {"logits": (float("nan"), 0.0, 0.0)}, "row 1 .*logit_negative is nan"),
        (1, {"logits": (float("inf"), 0.0, 0.0)}, "logit_negative is inf"),
        (1, {"logits": (1.0, 0.0)}, "2 logits for 3 classes"),
        (
            2,
            {"prediction": "positive"},
            "row 2 .*prediction 'positive', but the highest logit is that of 'surprise'",
        ),
        (2, {"subject": "sub02"}, "row 2 .*subject 'sub02' is not canonical; write 'casme2/2'"),
        (2, {"subject": "samm/2"}, "write 'casme2/2'"),
        (2, {"subject": "unknown"}, "row 2 .*subject 'unknown' of casme2 has no number"),
        (1, {"selection": "best"}, "row 1 .*selection 'best' is none of 'last', 'inner', 'LEAKY"),
        (1, {"clip": ""}, "row 1 .*clip is empty"),
        (1, {"fold": ""}, "fold is empty"),
        (2, {"clip": "clip0"}, "row 2 .*row 1 predicts the same clip under the same seed"),
        (2, {"clip": "clip0", "seed": 1}, "row 2 .*truth of this clip 'positive', but 'negative' in row 1"),
        (
            2,
            {"clip": "clip0", "seed": 1, "truth": "negative"},
            "row 2 .*subject of this clip 'casme2/2', but 'casme2/1' in row 1",
        ),
        (
            2,
            {"subject": "casme2/1"},
            "row 2 .*fold of subject casme2/1 'casme2/2', but 'casme2/1' in row 1",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_row_and_value(predictions, number, changes, message):
    with pytest.raises(ValueError, match=message):
        changed(predictions, number, **changes)


@pytest.mark.parametrize("classes", [("0", "1", "2"), ("negative",), ("a", "a"), ("", "b")])
def test_classes_are_distinct_names(classes):
    with pytest.raises(ValueError, match="class"):
        Predictions(classes, ())


def test_equal_logits_may_go_to_either(predictions):
    changed(predictions, 2, logits=(0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.replace("selection", "chosen", 1),
            "no column selection; the columns are dataset, subject",
        ),
        (lambda t: t.replace("logit_", "p_"), "no column logit_<class>"),
        (lambda t: t.replace("logit_positive", "logit_1"), "class '1' is no name"),
        (lambda t: t.replace("logit_positive", "logit_negative"), "column 'logit_negative' is there twice"),
        (
            lambda t: t.replace("selection", "selection,epoch", 1).replace("last", "last,3"),
            "column 'epoch' is not known",
        ),
        (
            lambda t: t.replace("logit_surprise", "logit_fear"),
            "row 2 .*'surprise' is none of negative, positive, fear",
        ),
        (lambda t: t.replace("0.0", "nan", 1), "row 1 .*logit_positive is nan"),
        (lambda t: t.replace("0.0", "", 1), "row 1: logit_positive '' is not a number"),
        (lambda t: t.replace(",0,last", ",first,last", 1), "row 1: seed 'first' is not a whole number"),
        (lambda t: t.replace(",last", "", 1), "row 1: 10 cells for 11 columns"),
        (lambda t: t + t.splitlines()[1] + "\n", "row 4 .*row 1 predicts the same clip"),
        (lambda t: t.splitlines()[0], "there is no prediction"),
        (lambda t: "", r"no column dataset, .*the columns are \(none\)"),
        (lambda t: "\x00", "p.csv: "),
    ],
)
def test_a_csv_that_cannot_be_right_is_refused(predictions, edit, message, tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(path, predictions)
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match=message) as refused:
        read_predictions(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_csv_of_another_task_is_refused(predictions, tmp_path):
    write_predictions(tmp_path / "p.csv", predictions)
    with pytest.raises(
        ValueError, match="its classes are negative, positive, surprise; those of the task are fear, joy"
    ):
        read_predictions(tmp_path / "p.csv", ["fear", "joy"])


def test_no_csv_at_all_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_predictions(tmp_path / "missing.csv")
    (tmp_path / "image.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"image\.csv: is not text in UTF-8"):
        read_predictions(tmp_path / "image.csv")


def test_the_diagnostic_selection_is_kept(tmp_path):
    leaky = predictions_of(*composite(), constant("negative"), selection=LEAKY, seeds=[0])
    write_predictions(tmp_path / "p.csv", leaky)
    assert {row.selection for row in read_predictions(tmp_path / "p.csv").rows} == {LEAKY}
    assert score(read_predictions(tmp_path / "p.csv")).stamps[0].startswith(LEAKY)
