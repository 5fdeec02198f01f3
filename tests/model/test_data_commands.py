"""``micron data``: what it prints and with which status it ends."""

import json

import pytest
from empty_trees import whole_smic

from micron_model.cli import main
from micron_model.data.databases.datasets import DATASETS


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_lookalike_can_be_made_and_is_not_taken_for_the_database(dataset, tmp_path, capsys):
    root = tmp_path / "root"
    made = main(["data", "make-lookalike", dataset, str(root), "--subjects", "2", "--side", "8"])
    assert made == 0
    assert "Nothing here is of that database" in (root / "LOOKALIKE.txt").read_text()
    assert main(["data", "check", dataset, str(root)]) == 3
    captured = capsys.readouterr()
    assert f"differs from the official census of {dataset}" in captured.out
    assert "dropped (1)" in captured.out or dataset == "megc2019"
    assert "used with frames missing (" in captured.out
    assert "no protocol runs on this census, unless it is told to with --allow-differences" in captured.err


def test_a_whole_database_is_passed(tmp_path, capsys):
    whole_smic(tmp_path / "HS")
    assert main(["data", "check", "smic", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["smic", "clips", "official", "subjects", "official"]
    assert lines[1].split() == ["negative", "70", "70", "11"]
    assert lines[4].split() == ["all", "164", "164", "16", "16"]
    assert lines[-1] == "agrees with the official census of smic"
    assert captured.err == ""
    assert main(["data", "check", "smic", str(tmp_path), "--json"]) == 0
    census = json.loads(capsys.readouterr().out)
    assert census["agrees"] is True
    assert census["differences"] == []
    assert census["emotions"]["negative"] == {"clips": 70, "official": 70, "subjects": 11}
    assert census["clips"] == {"found": 164, "official": 164}
    assert census["subjects"] == {"found": 16, "official": 16}


def test_a_census_that_differs_is_a_document_too(tmp_path, capsys, documented):
    main(["data", "make-lookalike", "megc2019", str(tmp_path / "root"), "--subjects", "1", "--side", "8"])
    capsys.readouterr()
    assert main(["data", "check", "megc2019", str(tmp_path / "root"), "--json"]) == 3
    census = json.loads(capsys.readouterr().out)
    documented("data check", census, *census["parts"], *census["emotions"].values(), census["clips"])
    assert census["agrees"] is False
    assert [part["dataset"] for part in census["parts"]] == ["casme2", "samm", "smic"]
    assert {row["reason"] for row in census["parts"][0]["dropped"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "casme2", "{tmp}/away"], "away: no such folder"),
        (
            ["check", "casme2", "{tmp}"],
            "no folder that holds folders named like sub01; give the folder that was unpacked",
        ),
        (
            ["check", "samm", "{tmp}", "--apexes", "a.csv"],
            "--apexes is no option of samm; it takes --layout, --sheet, --columns, --still-apex",
        ),
        (["check", "mmew", "{tmp}"], "invalid choice 'mmew'"),
        (
            ["make-lookalike", "casme2", "{tmp}/new", "--clips", "0"],
            "at least one subject, one pixel and 5 clips",
        ),
        (
            ["make-lookalike", "casme2", "{tmp}/new", "--layout", "x"],
            "layout='x' is none of cropped, selected, raw",
        ),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, message, tmp_path, refused):
    assert message in refused(["data", *(a.format(tmp=tmp_path) for a in arguments)])
