#!/usr/bin/env bash
# One binary, two versions of torch: builds a wheel with the torch of this environment, then installs it beside
# each torch named on the command line (a version, or a path of a wheel) and runs the operators' tests there.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- 2.11.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

MICRON_BUILD=cpu "$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work" .
cp -r tests "$work/tests"
cp pyproject.toml "$work"
for torch in "$@"; do
    case $torch in *.whl | */*) ;; *) torch="torch==$torch" ;; esac
    "$python" -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet "$torch" numpy pytest hypothesis setuptools
    "$work/venv/bin/pip" install --quiet --no-deps "$work"/micron_kernels-*.whl
    (
        cd "$work"
        venv/bin/python -c "import torch, micron_kernels._extension as e; assert e.module, e.reason; print('loads under torch', torch.__version__)"
        venv/bin/python -m pytest -q tests/kernels --ignore tests/kernels/test_package.py -k "not compiles and not opcheck and not exports"
    )
    rm -rf "$work/venv"
done
