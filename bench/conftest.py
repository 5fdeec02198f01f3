import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import report
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark", action="store_true", help="time at full size and write bench/results/<machine>.json"
    )
    parser.addoption("--results", default=None, help="where to write the results instead")


@pytest.fixture
def bench(request):
    """A report.Bench: the rows of one table."""
    torch.manual_seed(0)
    return report.Bench(full=request.config.getoption("--benchmark"))


def pytest_sessionfinish(session):
    if session.config.getoption("--benchmark") and report.ROWS:
        report.write(session.config.getoption("--results"))


def pytest_terminal_summary(terminalreporter):
    if report.ROWS:
        terminalreporter.write_line(report.tables())
