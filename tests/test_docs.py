"""What README and documentation say is run: Python as it stands, commands through the parser of the command line."""

import contextlib
import functools
import io
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import micron_kernels
from micron_model import MicronBERT, cli, preset
from micron_model.data import synthetic_clips
from micron_model.recognizers.base import BUILT_IN, Start
from micron_model.recognizers.flow import FlowRecipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import quotes  # noqa: E402

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    ROOT / "README.md",
    *DOCS,
    ROOT / "examples" / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
]
#: Of those who use it.
USERS = [ROOT / "README.md", *DOCS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: ``name = …  # (2, 11, 784)``: the shape of what was assigned, or of the first of several names.
SHAPE = re.compile(r"^(\w+)(?:, \w+)* = .*# (\((?:\d+, ?)*\d*\))", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]*)?\)")
#: Of the system, and of no concern to the project.
FOREIGN = {"cd", "git", "source"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """(line, text) of each block of code in these languages."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start(2)), found[2])
        for found in FENCE.finditer(text)
        if found[1] in languages
    ]


with_python = [page for page in PAGES if blocks(page, "python")]
with_commands = [page for page in PAGES if blocks(page, "sh")]


@pytest.fixture(scope="module")
def things_at_hand(tmp_path_factory):
    """A folder with what the pages speak of: a video, pictures, a model and a recognizer."""
    folder = tmp_path_factory.mktemp("at_hand")
    clip = synthetic_clips(range(4))[1]
    frames = np.ascontiguousarray(clip.read(range(len(clip)), 160).transpose(0, 2, 3, 1)[..., ::-1])
    video = cv2.VideoWriter(
        str(folder / "interview.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), clip.fps, (160, 160)
    )
    for frame in frames:
        video.write(frame)
    video.release()
    for name, at in (("onset", clip.onset), ("apex", clip.apex)):
        cv2.imwrite(str(folder / f"{name}.png"), frames[at])
    torch.manual_seed(0)
    MicronBERT(preset("tiny", depth=1, decoder_depth=1)).save_pretrained(folder / "out" / "mine" / "model")
    recognizer = FlowRecipe().build(Start(), ("negative", "positive", "surprise"), seed=0)
    recognizer.save_pretrained(folder / "out" / "recognizer")
    return folder


@pytest.mark.parametrize("page", with_python, ids=name_of)
def test_every_python_block_runs_and_its_shapes_are_as_stated(page, things_at_hand, monkeypatch):
    monkeypatch.chdir(things_at_hand)
    module = type(sys)("page")  # dataclasses ask for the module that they are defined in
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)
        for found in SHAPE.finditer(code):
            stated = tuple(int(n) for n in found[2].strip("()").split(",") if n.strip())
            assert tuple(names[found[1]].shape) == stated, f"{name_of(page)}: {found[0]}"


def commands(page):
    for _, text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


@functools.cache
def check_micron(*arguments):
    """Pages share commands; each is parsed once."""
    try:
        cli._parse(list(arguments))
    except SystemExit as stopped:
        if stopped.code or not {"--help", "--tyro-print-completion"} & set(arguments):
            pytest.fail(f"micron {shlex.join(arguments)}")


def check_command(words):
    """Whether a command could run: its program, its options, the files and the targets that it names."""
    program, *rest = words
    if "micron_model.cli" in words:  # by python -m, or by torchrun
        check_micron(*words[words.index("micron_model.cli") + 1 :])
    elif program == "micron":
        check_micron(*rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {w for w in rest if "=" not in w} <= set(targets)
    elif program == "pip" and rest[0] == "install":
        (what,) = (w for w in rest[1:] if not w.startswith("-"))
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
        assert found, what
        assert set((found[1] or "").split(",")) <= {*extras, ""}
    elif program == "python" and rest[0] == "-m":
        assert (ROOT / Path(*rest[1].split("."))).with_suffix(".py").exists()
    elif program == "pytest" or program.startswith(".venv/bin/"):
        pass
    elif program in ("python", "bash"):
        assert (ROOT / rest[0]).exists()
    else:
        assert (ROOT / program).exists() or program in FOREIGN, f"what is {program}?"


@pytest.mark.parametrize("page", with_commands, ids=name_of)
def test_every_command_is_one(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "examples")
    for words in commands(page):
        check_command(words)


def test_a_command_that_is_none_is_found(capsys):
    for words in (
        ["micron", "predict", "--modell", "x"],
        ["make", "coffee"],
        ["pip", "install", ".[nothing]"],
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_command(words)


@pytest.fixture(scope="module")
def options(things_at_hand):
    """Every option of every command."""
    text = io.StringIO()
    commands = [
        *(
            "demo",
            "pretrain",
            "shard",
            "heatmap",
            "predict",
            "finetune",
            "score",
            "serve",
            "info",
            "data check",
            "data make-lookalike",
        ),
        *(f"evaluate --recognizer {name}" for name in BUILT_IN),
    ]
    with contextlib.redirect_stdout(text):
        for command in commands:
            with pytest.raises(SystemExit):
                cli._parse([*command.split(), "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", text.getvalue()))


@pytest.mark.parametrize("page", USERS, ids=name_of)
def test_every_option_and_file_that_a_sentence_names_is_there(page, options):
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())):
        named = re.match(r"--[a-z][\w.-]*", code)
        assert not named or named[0].removesuffix("*").rstrip(".") in options | {"--model", "--training"}, (
            code
        )
        if re.fullmatch(r"(data|training|models|evaluation|recognizers)/[\w/]*(\.py)?", code):
            assert (ROOT / "micron_model" / code).exists(), f"{name_of(page)} names {code}"


def test_the_version_is_that_of_the_package_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= cited.keys()
    assert cited["version"] == micron_kernels.__version__
    assert f"## {micron_kernels.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_workflows_run_what_is_there():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        for step in (step for job in jobs for step in job["steps"] if "run" in step):
            for command in step["run"].split("&&"):
                words = shlex.split(command)
                assert words[0] in ("sudo", "make"), command
                if words[0] == "make":
                    check_command(words)


def anchors(page):
    """Of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        to = Path(os.path.normpath(page.parent / target)) if target else page
        assert to.exists(), f"{name_of(page)} links to {target}"
        if anchor and "micron_" not in anchor:  # those of the reference are made by mkdocstrings
            assert anchor in anchors(to), f"{name_of(page)} links to {target}{anchor}"


def test_what_pages_repeat_of_the_results_is_what_the_results_say():
    for page, piece, numbers in quotes.quotes():
        text = (ROOT / page).read_text()
        assert quotes.written(text, piece, numbers) == text, f"{page}: {piece}: python docs/quotes.py"


def test_a_number_that_left_the_results_is_written_anew_where_a_line_breaks_too():
    text = "forward takes 2.5\nto 3× as long, | .958 |"
    assert (
        quotes.written(text, "takes {} to {}× as", ["2.4", "12"])
        == "forward takes 2.4\nto 12× as long, | .958 |"
    )
    assert quotes.written(text, "| {} |", [".960"]).endswith("| .960 |")
    with pytest.raises(ValueError, match="0 times, not once: 'backward takes"):
        quotes.written(text, "backward takes {}", ["1"])
