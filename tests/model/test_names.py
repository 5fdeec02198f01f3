"""Names that others made, through whole reports: shown as they are, run nowhere, an end to nothing."""

import json
import re

import pytest
import torch
from rich.console import Console

from made_up import composite
from micron_model.cli import main
from micron_model.evaluation.metrics import score
from micron_model.evaluation.predictions import Prediction, Predictions, read_predictions, write_predictions
from micron_model.evaluation.report import Features, write_report
from micron_model.plain_text import from_csv, in_csv, visible
from micron_model.recognizers.micron_bert import MicronBERTRecognizer
from micron_model.whole_file import write_whole
from writers import write_video

BAD = [
    "[/red]", "[link=file:///etc/passwd]a", r"$\bad{$", "$x$", r"\$", "<script>alert(1)</script>", '"><img src=x>',
    "\x1b]0;owned\x07", "\x1b[2J", "a\rb", "a\nb", "\u202egnp.exe", "\udce9", "=HYPERLINK(1)", "@SUM(1)", "+1+1",
    "-1-1", "\t=1", "'=1", "x" * 5000, "{0}", "%s", "&amp;", "\x00", "🙂", "None",
]  # fmt: skip


@pytest.fixture(scope="module")
def predictions():
    """Of clips and classes that are all called badly."""
    classes = tuple(BAD[:6])
    rows = []
    expressions, labels = composite()
    for i, (e, _) in enumerate(zip(expressions, labels, strict=True)):
        truth, said = classes[i % 6], classes[(i * 7) % 6]
        logits = tuple(float(name == said) - 2 for name in classes)
        clip = f"{BAD[i % len(BAD)]}{i}" if i % 2 else f"{BAD[i % len(BAD)]}"
        rows.append(Prediction(e.dataset, e.subject, f"{clip}{i}", truth, said, logits, e.subject, 0, "last"))
    return Predictions(classes, tuple(rows))


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_a_whole_report_of_bad_names(predictions, tmp_path):
    features = Features(
        torch.randn(12, 4).numpy(), [predictions.classes[i % 6] for i in range(12)], ["a", "$b$"] * 6
    )
    page = write_report(
        tmp_path, title=BAD[5], predictions=predictions, baselines=dict.fromkeys(BAD[:7], predictions),
        settings={name: name for name in BAD}, features=features, stamps=BAD,
    ).read_text(encoding="utf-8")  # fmt: skip
    body = re.sub(r"<style>.*?</style>|src=\"data:[^\"]*\"", "", page, flags=re.S)
    assert "<script" not in body
    assert "<img src=x" not in body
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", body)
    assert "&lt;script&gt;" in body
    for path in tmp_path.glob("*.csv"):
        text = path.read_text(encoding="utf-8")
        cells = [
            cell for line in text.splitlines() for cell in re.split(',(?=(?:[^"]*"[^"]*")*[^"]*$)', line)
        ]
        formulas = [c for c in cells if re.match(r'"?[=@+\t]|"?-[^0-9]', c)]
        assert formulas == []


def test_predictions_of_bad_names_are_read_as_they_were(predictions, tmp_path):
    clean = Predictions(
        predictions.classes,
        tuple(r for r in predictions.rows if "\udce9" not in r.clip and "\x00" not in r.clip),
    )
    write_predictions(tmp_path / "p.csv", clean)
    assert read_predictions(tmp_path / "p.csv") == clean


def test_the_terminal_is_shown_what_it_would_obey(predictions, tmp_path, capsys):
    clean = Predictions(predictions.classes, tuple(r for r in predictions.rows if "\udce9" not in r.clip))
    write_predictions(tmp_path / "p.csv", clean)
    assert main(["score", str(tmp_path / "p.csv"), "--resamples", "10"]) == 0
    printed = capsys.readouterr().out
    assert "[/red]" in printed
    assert r"$\bad{$" in printed
    assert not re.search("[\x00-\x09\x0b-\x1f]", printed)
    assert score(clean, resamples=10).classes == predictions.classes


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_a_prediction_of_bad_classes_goes_to_its_end(small, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("micron_model.commands.predict.Console", lambda **k: Console(width=4000, **k))
    model = MicronBERTRecognizer.from_pretrained_backbone(small(tied_start=True), BAD, regions=2)
    model.config.trained_on = "".join(BAD)
    model.save_pretrained(tmp_path / "recognizer")
    name = "face [bold]\x1b[2J$x.avi"
    video = write_video(tmp_path / "v.avi", clips[1].read(range(100), 128), fps=60).rename(tmp_path / name)
    arguments = [
        "predict",
        str(video),
        "--model",
        str(tmp_path / "recognizer"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--strength", "1"]) == 0
    printed = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f]", printed.out + printed.err)
    assert "[/red] 0." in printed.out
    found = json.loads((tmp_path / "out" / "candidates.json").read_text(encoding="utf-8"))
    assert set(found["candidates"][0]["probabilities"]) == set(BAD)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "candidates.json",
        "curve.png",
        "candidates.png",
    }


def test_errors_show_the_names_of_files_as_they_are(tmp_path, capsys):
    for name in ("a\x1b[2Jb.mp4", "caf\udce9.mp4", "[/red].mp4"):
        assert main(["pretrain", "--data", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        printed = capsys.readouterr().err
        assert visible(name) in printed
        assert "\x1b" not in printed


@pytest.mark.parametrize("text", BAD)
def test_escapes_keep_what_is_said(text, tmp_path):
    assert from_csv(in_csv(text)) == text
    assert visible(visible(text)) == visible(text)
    assert visible(text).isprintable()
    write_whole(tmp_path / "x", text)


def test_what_is_plain_stays():
    for text in ("sub01/EP02_01f", "Überraschung", "惊讶", "a b", "1.5", "it's"):
        assert visible(text) == in_csv(text) == from_csv(text) == text
    assert in_csv("-2") == "'-2"
    assert from_csv("'quoted'") == "'quoted'"
