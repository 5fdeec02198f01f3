import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import report
import timing
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark", action="store_true", help="time at full size and write bench/results/<machine>.json"
    )
    parser.addoption("--results", default=None, help="where to write the results instead")
    parser.addoption(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "cases(name, cpu=..., cuda=...): values of a parameter, by --device")


def pytest_generate_tests(metafunc):
    for mark in metafunc.definition.iter_markers("cases"):
        values = mark.kwargs[metafunc.config.getoption("--device")]
        metafunc.parametrize(mark.args[0], values, ids=str)


@pytest.fixture
def bench(request):
    """A timing.Bench: the rows of one table."""
    torch.manual_seed(0)
    option = request.config.getoption
    device, full = torch.device(option("--device")), option("--benchmark")
    if full:
        torch._dynamo.reset()  # after eight shapes a compiled function would quietly fall back to eager
    yield timing.Bench(device, full=full, timed=full)
    if full and report.ROWS:  # after every test: a run that is stopped keeps what it has
        report.write(device, option("--results"))


def pytest_sessionfinish(session):
    option = session.config.getoption
    if option("--benchmark") and report.ROWS:
        report.plot(report.write(torch.device(option("--device")), option("--results")))


def pytest_terminal_summary(terminalreporter):
    if report.ROWS:
        terminalreporter.write_line(report.tables())
