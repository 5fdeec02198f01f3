import contextlib
import io
import re
import time

import pytest
from rich.console import Console

from micron_model import progress as module
from micron_model.progress import ProgressBar, working


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so, for lines and for the bar's own estimate."""
    passed = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: passed[0])
    return passed


def lines_of(steps, clock, seconds_a_step, **settings):
    console = Console(file=io.StringIO(), **settings)
    with ProgressBar("{task.fields[rate]:.1f}/s", console=console) as progress:
        progress.get_time = lambda: clock[0]
        task = progress.add_task("steps", total=steps, rate=0.0)
        for _ in range(steps):
            clock[0] += seconds_a_step
            progress.update(task, advance=1, rate=1 / seconds_a_step)
    return console.file.getvalue().splitlines()


def test_where_there_is_no_terminal_a_line_comes_every_few_seconds_and_at_the_end(clock):
    lines = lines_of(24, clock, 1.0)
    assert [line.split(",")[0] for line in lines] == [f"steps {n}/24" for n in (5, 10, 15, 20, 24)]
    assert re.fullmatch(r"steps 10/24, \d+ s, about 1[34] s to go, 1\.0/s", lines[1])


def test_time_to_go_grows_while_a_slow_step_is_waited_for(clock):
    with ProgressBar(console=Console(file=io.StringIO())) as progress:
        progress.get_time = lambda: clock[0]
        task = progress.add_task("folds", total=18)
        for _ in range(2):
            clock[0] += 1
            progress.update(task, advance=1)
        clock[0] += 148
        assert progress._unfinished() == "folds 2/18, 150 s, about 1200 s to go"


def test_what_the_pulse_has_just_said_is_not_said_again(clock):
    console = Console(file=io.StringIO())
    with ProgressBar(console=console) as progress:
        task = progress.add_task("steps", total=24)
        progress.update(task, advance=1)
        clock[0] += module.EVERY
        assert progress._unfinished().startswith("steps 1/24")
        clock[0] += 0.1
        progress.update(task, advance=1)
        assert console.file.getvalue() == ""
        clock[0] += module.EVERY
        progress.update(task, advance=1)
        assert console.file.getvalue().startswith("steps 3/24")


def test_the_lines_of_a_day_are_hundreds(clock):
    assert 100 < len(lines_of(8640, clock, 10.0)) < 1000


def test_what_was_reached_is_said_of_a_work_that_is_stopped(clock):
    console = Console(file=io.StringIO())
    progress = ProgressBar(console=console)
    task = progress.add_task("folds", total=24, completed=3)
    with contextlib.suppress(KeyboardInterrupt), progress:
        progress.update(task, advance=1)
        raise KeyboardInterrupt
    assert console.file.getvalue().startswith("folds 4/24")


def test_nothing_is_said_of_what_was_done_before(clock):
    console = Console(file=io.StringIO())
    with ProgressBar(console=console) as progress:
        progress.add_task("folds", total=3, completed=3)
    assert console.file.getvalue() == ""


def test_a_terminal_has_bars_that_fit_80_columns():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressBar("{task.fields[losses]}", console=console) as progress:
        task = progress.add_task("steps", total=400, losses="")
        progress.update(task, completed=399, losses="1.25/s L 0.1234  L_r 0.1234  L_agg 0.1234")
        progress.refresh()
    assert "399/400" in console.file.getvalue()
    assert "L_agg 0.1234" in console.file.getvalue()
    assert "━" in console.file.getvalue()


def test_what_takes_long_shows_that_it_goes_on(monkeypatch):
    """Before the first of a task is done, between tasks, and where nobody knows how much there is."""
    monkeypatch.setattr(module, "EVERY", 0.1)
    console = Console(file=io.StringIO())
    with working("reading", console):
        time.sleep(0.3)
        with ProgressBar(console=console) as progress:
            progress.add_task("features", total=1, completed=1)
            progress.add_task("folds", total=2)
            time.sleep(0.3)
        time.sleep(0.3)
    said = [line.split(",")[0] for line in console.file.getvalue().splitlines()]
    assert [name for i, name in enumerate(said) if said[i - 1 : i] != [name]] == [
        "reading",
        "folds 0/2",
        "reading",
    ]
    assert all(said.count(name) >= 2 for name in ("reading", "folds 0/2"))


def test_a_line_is_said_once_and_nothing_after_the_end(monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.2)
    console = Console(file=io.StringIO())
    with ProgressBar(console=console) as progress:
        task = progress.add_task("folds", total=40)
        for _ in range(30):
            time.sleep(0.01)
            progress.update(task, advance=1)
    time.sleep(0.3)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("folds 30/40")
    assert module._pulses == {}


def test_a_quiet_console_stays_quiet(clock):
    assert lines_of(24, clock, 1.0, quiet=True) == []
