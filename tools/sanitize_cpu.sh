#!/usr/bin/env bash
# The operators' tests with the extension built under the address and undefined-behaviour sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1"
CXXFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" MICRON_BUILD=cpu \
    "$python" setup.py -q build_ext --build-lib "$work" --build-temp "$work/objects" >"$work/log" 2>&1 || {
    cat "$work/log"
    exit 1
}
cp -r micron_kernels/. "$work/micron_kernels.new"
rm -f "$work"/micron_kernels.new/_native*
cp "$work"/micron_kernels/_native* "$work/micron_kernels.new"
rm -rf "$work/micron_kernels"
mv "$work/micron_kernels.new" "$work/micron_kernels"
cp -r tests pyproject.toml "$work"

cd "$work"
# Python and torch leak by design; the libraries come first because Python itself was not built for them.
for capability in ${CAPABILITIES:-default avx2 avx512}; do
    ATEN_CPU_CAPABILITY=$capability PYTHONPATH=$work \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
        LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libubsan.so)" \
        "$python" -m pytest -q -p no:cacheprovider tests/kernels \
        --ignore tests/kernels/test_package.py --ignore tests/kernels/test_native_extension.py \
        --ignore tests/kernels/test_nn.py -k "${SELECT:-native and not offsets_beyond and not compiles and not opcheck and not exports}"
done
