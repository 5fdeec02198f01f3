#!/usr/bin/env bash
# One binary, two versions of torch: builds a wheel with the torch of this environment, then installs it beside
# each torch named on the command line (a version, or a path of a wheel) and runs the operators' tests there. With
# MICRON_BUILD=cuda the wheel holds the CUDA kernels too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
[ $# -gt 0 ] || set -- 2.11.0
torches=()
for torch in "$@"; do
    case $torch in
    *.whl) torches+=("$(realpath "$torch")") ;;
    *) torches+=("torch==$torch") ;;
    esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# By way of the source distribution, so that it is known to be complete; a build/ folder of the checkout may also
# hold modules that are no longer there.
"$python" setup.py -q sdist --dist-dir "$work"
MICRON_BUILD=${MICRON_BUILD:-cpu} "$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work" "$work"/*.tar.gz
cp -r tests pyproject.toml "$work"

# From here on nothing may see the checkout: what is tested is the installed wheel.
cd "$work"
unset PYTHONPATH
for torch in "${torches[@]}"; do
    "$python" -m venv venv
    venv/bin/python -m pip install --quiet "$torch" "numpy<2.4" pytest hypothesis setuptools
    venv/bin/python -m pip install --quiet --no-deps micron_kernels-*.whl
    venv/bin/python - <<'CODE'
import sysconfig

import torch

from micron_kernels import _extension, info

assert _extension.module, _extension.reason
assert _extension.module.__file__.startswith(sysconfig.get_paths()["platlib"]), _extension.module.__file__
print("loads under torch", torch.__version__)
print(info.describe())
CODE
    venv/bin/python -m pytest -p no:cacheprovider tests/kernels \
        -k "not compiles and not opcheck and not exports and not micron_model"
    rm -rf venv
done
