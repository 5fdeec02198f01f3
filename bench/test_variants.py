"""``bench/variants.py`` on a CPU, with nothing compiled."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("variants.py")


def run(*scripts, build="none"):
    return subprocess.run(
        [sys.executable, SCRIPT, *scripts],
        env=os.environ | {"MICRON_BUILD": build}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_variants_take_turns():
    done = run("s/namespace micron/namespace  micron/")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = done.stdout.split("forward ")[1:]
    assert len(cases) == 6
    assert all("1.000×  as it is\n" in case and "×  s/namespace" in case for case in cases)


def test_one_that_cannot_be_built_is_told():
    done = run(build="everything")
    assert done.returncode == 1
    assert "as it is: no times\n" in done.stdout
    assert "MICRON_BUILD=everything" in done.stdout


def test_a_script_that_changes_nothing_is_refused():
    done = run("s/nothing like this/or this/")
    assert done.returncode != 0
    assert "changes nothing in csrc/" in done.stderr
