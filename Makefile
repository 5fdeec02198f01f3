# `make demo` and `make test` work on a fresh clone; both build .venv first when it is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-for-demo

.PHONY: demo kernels dependencies test docs fuzz lint format install browser clean bench wheel try-wheel abi-check sanitize-cpu sanitize bench-gpu

install: $(STAMP)

# torch first and pinned: nothing that depends on it may then choose another build. Of torch's ten thousand files a
# process imports a tenth, and Python compiles those when it first does: --no-compile. It must then keep what it
# compiled: with PYTHONDONTWRITEBYTECODE, which many containers set, every process would take seconds to do it again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
define INSTALL
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools ninja pybind11 torch numpy
	$(MAKE) --no-print-directory --jobs=2 kernels dependencies
	PYTHONWARNINGS="ignore:Editable installation" $(PIP) --no-build-isolation -e
endef
# Beside each other: compilers work while pip installs what else is needed. What cannot be compiled is told in the last
# step, which finds what could. Without MAKEFLAGS, or ninja would keep to two jobs as well.
kernels:
	MAKEFLAGS= $(BIN)/python setup.py -q build_ext --inplace >$(VENV)/kernels.log 2>&1 || true
DEPENDENCIES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")
dependencies:
	$(BIN)/python -c '$(DEPENDENCIES)' | $(PIP) -r /dev/stdin

# A kernel that was changed, by a pull too, is built again: the Python of one version does not fit the kernels of another.
$(STAMP) $(DEMO): pyproject.toml setup.py tools/find_torch.py tools/find_cuda.py constraints.txt $(shell find csrc -type f)
$(STAMP):
	$(INSTALL) ".[dev]"
	touch $(DEMO) $(STAMP)
$(DEMO):
	$(INSTALL) ".[web]"
	touch $(DEMO)

demo: $(DEMO)
	$(BIN)/micron demo --out out/demo

# Two processes of a thread each; a file stays in one, for the fixtures that its tests share. Their order is that of
# tests/conftest.py; by default files of many tests go first, and the few long tests last.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The site in out/site, which fetches nothing from elsewhere. Every link and heading that a page names is checked; the code in the pages
# is run by the tests. What draws the pages reads docstrings without importing the packages, so it needs no torch.
DOCS := $(VENV)/.docs
$(DOCS): $(STAMP) pyproject.toml constraints.txt
	$(PIP) --group docs
	touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What drives the Chromium of the system, for the test of the page of `micron serve`.
browser: $(STAMP)
	$(PIP) playwright

# Damaged files of every kind that is read, half an hour of each; make fuzz SEED=1 for others.
SEED ?= 0
fuzz: $(STAMP)
	MICRON_FUZZ_SECONDS=1800 MICRON_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/fuzz -rP

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Timings by pytest-benchmark, and bench/results/<machine>.json; without --benchmark the same files are a quick test.
bench: $(STAMP)
	$(BIN)/python -m pytest bench --benchmark

# Named for the oldest system that it runs on (manylinux). torch's library is left out: it is that of the user's torch.
wheel: $(STAMP)
	rm -rf dist build/wheel
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so --wheel-dir dist build/wheel/*.whl
	$(BIN)/python tools/check_wheel.py dist/*.whl

# In an environment of its own, without anything of this folder.
try-wheel:
	$(BIN)/python tools/try_wheel.py dist/*.whl

# Other versions of torch that the same binary must serve: make abi-check TORCH="2.11.0 2.14.0"
abi-check: $(STAMP)
	PYTHON=$(BIN)/python tools/abi_check.sh $(TORCH)

sanitize-cpu: $(STAMP)
	PYTHON=$(BIN)/python tools/sanitize_cpu.sh

# On a machine with a GPU. bench-gpu builds, tests, sanitizes and measures in less than nine minutes.
sanitize: $(STAMP)
	PYTHON=$(BIN)/python tools/sanitize_gpu.sh

bench-gpu: $(STAMP)
	PYTHON=$(CURDIR)/$(BIN)/python bench/gpu.sh out/gpu

clean:
	rm -rf $(VENV) build dist out *.egg-info .benchmarks .pytest_cache .mypy_cache .ruff_cache .hypothesis
