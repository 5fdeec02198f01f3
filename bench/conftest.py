import sys
from pathlib import Path

import pytest
import pytest_benchmark
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent))

import report
import timing
import torch

from micron_kernels import _extension

#: From which on --benchmark-json is a path; before, a file that is emptied and opened when the option is read.
NEEDED = "5.3"
RUN = pytest.StashKey[list]()
#: Options of pytest-benchmark that ask for what only a timed run has.
NEED_TIMES = (
    "enable",
    "only",
    "save",
    "autosave",
    "json",
    "compare",
    "compare_fail",
    "histogram",
    "cprofile",
)
#: Those that ask for its own tables. Ours hold the same times, with what it does not know.
SHOW_ITS_TABLES = ("columns", "compare", "histogram", "cprofile", "verbose")


def pytest_addoption(parser):
    group = parser.getgroup("benchmark")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="Of bench/: time at full size, into --benchmark-json (bench/results/<machine>.json unless it is given).",
    )
    group.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="Of bench/: what to time. Default: a GPU if there is one.",
    )


def device_of(config):
    return torch.device(config.getoption("--device"))


def pytest_configure(config):
    found = pytest_benchmark.__version__
    if Version(found) < Version(NEEDED):
        raise pytest.UsageError(
            f"pytest-benchmark {found} is installed; bench/ needs {NEEDED} or later: "
            f"pip install 'pytest-benchmark[histogram]>={NEEDED}'"
        )
    option = config.option
    if not option.benchmark:
        for name in NEED_TIMES:
            if getattr(option, f"benchmark_{name}"):
                option_name = f"--benchmark-{name.replace('_', '-')}"
                raise pytest.UsageError(
                    f"{option_name} needs --benchmark: without it bench/ is a quick test, not timed"
                )
        option.benchmark_disable = True
        return
    option.benchmark_quiet = not any(getattr(option, f"benchmark_{name}") for name in SHOW_ITS_TABLES)
    option.benchmark_columns = option.benchmark_columns or ["median", "iqr", "rounds"]
    option.benchmark_json = option.benchmark_json or report.default_path(device_of(config))
    option.benchmark_json.parent.mkdir(parents=True, exist_ok=True)


def pytest_generate_tests(metafunc):
    contest = getattr(metafunc.function, "contest", None)
    if contest is None:
        return
    device, full = metafunc.config.getoption("--device"), metafunc.config.getoption("--benchmark")
    variants, values = contest.get(device, ((), ()))
    metafunc.parametrize("case", values, ids=str)
    if values:  # otherwise one test, which is skipped
        metafunc.parametrize("way", timing.ways(device, full=full))
        # Compilation takes longer than all the rest of a quick test.
        metafunc.parametrize("variant", [name for name in variants if full or "compiled" not in name])


@pytest.fixture
def bench(request):
    torch.manual_seed(0)
    device = device_of(request.config)
    if device.type == "cpu" and _extension.module is None:
        pytest.skip(f"no native kernels: {_extension.reason}")
    return timing.Bench(device, full=request.config.getoption("--benchmark"), gpu=device.type == "cuda")


def pytest_benchmark_generate_machine_info(config):
    return report.machine_info(device_of(config))


def pytest_benchmark_update_commit_info(commit_info):
    del commit_info["project"], commit_info["branch"]  # names of folders say nothing of what was measured


def pytest_benchmark_update_json(config, output_json):
    if RUN in config.stash:
        return  # what --benchmark-save writes is this run alone
    config.stash[RUN] = output_json["benchmarks"]
    path = config.option.benchmark_json
    report.keep_what_was_not_run(output_json, path)
    if path == report.default_path(device_of(config)):
        for entry in output_json["benchmarks"]:
            entry["stats"].pop("data", None)  # every single time is too much to commit
    report.plot(output_json, path.with_suffix(".png"))


@pytest.hookimpl(tryfirst=True)  # what was measured is printed, whatever else is missing
def pytest_terminal_summary(terminalreporter, config):
    run = config.stash.get(RUN, [])
    if run:
        terminalreporter.write_line(report.tables(run))
    for peer in terminalreporter.getreports("xfailed"):
        terminalreporter.write_line(f"{peer.nodeid.split('::')[-1]}: {peer.wasxfail}")
