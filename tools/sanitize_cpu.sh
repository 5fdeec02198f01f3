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

# Left out: what runs no C++ or the same C++ as another test (the other implementations, the package, nn, compile,
# opcheck, export), and offsets beyond 31 bits, where marking 4 GB as allocated takes minutes a test. Every kernel,
# dtype, layout, mask, choice of rows, tail and size of zero stays in.
select="native and not offsets_beyond and not compiles and not opcheck and not exports and not fp64"

# A sanitizer writes what it found to the file descriptor and ends the process: pytest must not hold that back.
# Python and torch leak by design; the libraries come first because Python itself was not built for them. One
# thread: these sanitizers find no races, and more threads would only share the same work.
check() {
    PYTHONPATH=$work OMP_NUM_THREADS=1 \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
        LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libubsan.so)" \
        "$python" -m pytest --capture=sys -p no:cacheprovider "$@"
}

operators=(tests/kernels/test_{diagonal_attention,frame_difference,poi_topk,swap_patches}.py)
case $("$python" -c "import torch; print(torch.backends.cpu.get_cpu_capability())") in
AVX512) all="default avx2 avx512" ;;
AVX2) all="default avx2" ;;
*) all=default ;;
esac
for capability in ${CAPABILITIES:-$all}; do
    echo "== ATEN_CPU_CAPABILITY=$capability"
    ATEN_CPU_CAPABILITY=$capability check "${operators[@]}" -k "$select"
done
# This file goes through all the instruction sets itself.
echo "== every instruction set in turn"
check tests/kernels/test_native_instruction_sets.py
