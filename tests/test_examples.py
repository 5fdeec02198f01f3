"""Runs each script of ``examples/`` as a stranger would, at a small size."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *options):
    command = [sys.executable, str(EXAMPLES / name), *map(str, options)]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return float(found[1])


def drop_in(tmp_path):
    text = run("drop_in.py", "--size", 128, "--batch", 2, "--dim", 64, "--rounds", 1)
    assert "replaced: cross\n" in text
    for name in ("outputs", "gradients"):
        assert number(rf"{name} +differ by (\S+) of the largest", text) < 1e-5
    for name in ("forward", r"forward \+ backward"):
        theirs, ours = (number(rf"{name} .*\) +{x}", text) for x in (r"(\S+) ->", r"\S+ -> +(\S+) MiB"))
        assert 0 < ours < theirs


def vit_two_frames(tmp_path):
    picture = tmp_path / "new" / "vit.png"
    text = run("vit_two_frames.py", "--steps", 80, "--out", picture)
    untrained = number(r"ViT +(\d\S+)", text)
    assert number(r"ViT after 80 steps +(\S+)", text) > max(0.85, untrained + 0.2)
    assert str(picture) in text
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape == (770, 880, 4)
    assert pixels[..., :3].std() > 0.1


def own_recognizer(tmp_path):
    assert len((EXAMPLES / "own_recognizer.py").read_text().splitlines()) < 80
    text = run("own_recognizer.py", "--out", tmp_path / "own", "--subjects", 4)
    scores = {
        name: number(rf"{name} +UF1 (\S+)", text) for name in ("this network", "shuffled labels", "flow")
    }
    assert scores["this network"] > max(0.7, scores["shuffled labels"] + 0.2)
    assert "own_recognizer:Convolutional" in (tmp_path / "own" / "report.html").read_text()


RUNS = {"drop_in.py": drop_in, "own_recognizer.py": own_recognizer, "vit_two_frames.py": vit_two_frames}


def test_every_example_is_run():
    assert RUNS.keys() == {path.name for path in EXAMPLES.glob("*.py")}
    assert all(name in (EXAMPLES / "README.md").read_text() for name in RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example(name, tmp_path):
    RUNS[name](tmp_path)


def test_the_drop_in_refuses_more_than_rounding():
    spec = importlib.util.spec_from_file_location("drop_in", EXAMPLES / "drop_in.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    exact = [torch.rand(50, dtype=torch.float64)]
    rounded = [exact[0].float()]
    module.compare("outputs", rounded, rounded, exact)
    wrong = [rounded[0] * (1 + 2e-6)]
    with pytest.raises(SystemExit, match="outputs differ by more than rounding"):
        module.compare("outputs", rounded, wrong, exact)
    missing = [torch.full((50,), float("nan"))]
    with pytest.raises(SystemExit, match="outputs differ by more than rounding"):
        module.compare("outputs", rounded, missing, exact)
