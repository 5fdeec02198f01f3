"""What commands answer to programs: one document on standard output, a status, and completions for a shell."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import micron_model.cli
from micron_model.cli import main
from micron_model.commands.answer import Status, answering, to_json


def test_info_is_one_document(capsys, documented):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    documented("info", found, *found["operators"], *found["products"])
    assert found["operators"][0]["operator"] == "diagonal_attention"
    assert found["operators"][0]["chosen"] in found["operators"][0]["of"]
    assert found["torch"]["version"]
    assert {product["product"] for product in found["products"]} >= {"linear", "attention"}
    assert set(found["packages"]) >= {"numpy", "safetensors"}


def test_what_libraries_and_other_processes_print_is_no_part_of_the_document(capfd):
    with answering(True) as answer:
        print("of a library")
        os.write(1, b"of a library in C\n")
        subprocess.run(["echo", "of a process"], check=True)
        answer.document = {"found": 1}
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"found": 1}
    assert captured.err.count("of a ") == 3
    print("after it")
    assert capfd.readouterr().out == "after it\n"


def test_a_command_that_fails_prints_no_document(capsys):
    assert main(["predict", "missing.mp4", "--model", "missing", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("micron: error: ")


def test_a_document_is_ascii_and_has_no_number_that_is_none():
    text = to_json({"name": "\udcff é \x9b", "value": float("nan"), "values": (float("inf"), 1.5)})
    assert text.isascii()
    assert json.loads(text) == {"name": "\udcff é \x9b", "value": None, "values": [None, 1.5]}


def test_every_status_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
    found = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert [int(status) for status in found] == list(Status)


COMMANDS = {
    "demo": ["--out", "{file}/x"],
    "pretrain": ["--data", "{missing}"],
    "shard": ["--data", "{missing}", "--out", "{tmp}/shards"],
    "heatmap": ["{missing}", "{missing}"],
    "data check": ["smic", "{missing}"],
    "data make-lookalike": ["smic", "{file}"],
    "evaluate": ["smic", "{missing}", "--recognizer", "flow", "--out", "{tmp}/evaluate"],
    "finetune": ["smic", "{missing}", "--recognizer", "flow", "--out", "{tmp}/finetune"],
    "predict": ["{missing}", "--model", "{missing}"],
    "score": ["{missing}"],
}


@pytest.mark.parametrize("command", [*COMMANDS, "info", ""])
def test_a_command_line_that_is_not_understood_ends_with_2(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--no-such-option"])
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_done_ends_with_1_and_a_line(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"missing": tmp_path / "missing", "file": tmp_path / "file", "tmp": tmp_path}
    assert main([*command.split(), *(a.format(**places) for a in COMMANDS[command])]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("micron: error: ")


@pytest.mark.parametrize(("error", "status"), [(KeyError("key"), 70), (KeyboardInterrupt(), 130)])
def test_other_ends_have_a_status_of_their_own(error, status, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(micron_model.cli.kernels_info, "facts", fail)
    assert main(["info"]) == status
    assert ("Traceback" in capsys.readouterr().err) == (status == 70)


@pytest.mark.parametrize(
    "arguments",
    [
        ["heatmap", "a.png", "b.png", "--margin", "1"],
        ["predict", "a.mp4", "--strength", "0"],
        ["evaluate", "smic", "root", "--part", "9/8"],
        ["score", "a.csv", "--resamples", "0"],
        ["--tyro-print-completion", "ksh"],
        ["--tyro-print-completion"],
    ],
)
def test_an_option_that_cannot_have_its_value_is_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_shell_completes_commands_options_and_choices(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "bash"])
    (tmp_path / "micron.bash").write_text(capsys.readouterr().out)
    cases = {
        "micron pre": {"pretrain", "predict"},
        "micron data ch": {"check"},
        "micron evaluate casme2 /data --proto": {"--protocol"},
        "micron evaluate casme2 /data --protocol c": {"cde"},
        "micron finetune casme2 /data --recognizer slstt --agg": {"--aggregator"},
        "micron finetune casme2 /data --recognizer slstt --freeze a": {"auto"},
        "micron evaluate casme2 /data --recognizer lightman --align-w": {"--align-weight"},
        "micron evaluate casme2 /data --regi": {"--regions"},
    }
    script = f"source {tmp_path}/micron.bash\n" + "".join(
        f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; COMPREPLY=(); "
        "_tyro_micron 2>/dev/null; echo ${COMPREPLY[*]}\n"
        for line in cases
    )
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [set(line.split()) for line in ran.stdout.splitlines()] == list(cases.values())
