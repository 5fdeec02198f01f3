#!/usr/bin/env bash
# Small calls of every operator and kernel on a GPU under compute-sanitizer: memory, races, reads of what nothing
# wrote, barriers. SANITIZERS chooses some of them; arguments go to small_calls.py, such as --operator poi_topk.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${SANITIZERS:-memcheck racecheck initcheck synccheck}
python=$(realpath --no-symlinks "$(command -v "${PYTHON:-.venv/bin/python}")")
sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || true)}
sanitizer=${sanitizer:-${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer}

"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || {
    echo "sanitize: no CUDA GPU that torch can use, so nothing was checked" >&2
    exit 2
}
[[ -x $sanitizer ]] || {
    echo "sanitize: compute-sanitizer was not found, so nothing was checked; set CUDA_HOME or COMPUTE_SANITIZER" >&2
    exit 2
}
# Every tensor its own allocation, or memcheck and initcheck could not tell one from its neighbour in torch's pool.
# First without a tool: Triton's compilations are then in its cache, and what fails here fails for another reason.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
echo "== without a tool"
"$python" tools/small_calls.py "$@"

# Side by side: most of the time is spent on starting torch under a tool.
declare -A process
trap 'echo "sanitize: interrupted before all of $tools had ended" >&2; exit 130' INT TERM
trap 'for group in "${process[@]}"; do kill -- "-$group" 2>/dev/null || true; done' EXIT
set -m # a process group for each, which can be ended as one
for tool in $tools; do
    {
        "$sanitizer" --tool "$tool" --target-processes application-only --error-exitcode 9 \
            "$python" tools/small_calls.py "$@" 2>&1 | sed -u "s/^/$tool: /"
    } &
    process[$tool]=$!
done
set +m
failed=()
for tool in $tools; do
    wait "${process[$tool]}" || failed+=("$tool")
done
[[ ${#failed[@]} -eq 0 ]] || {
    echo "sanitize: errors from ${failed[*]}" >&2
    exit 1
}
echo "sanitize: nothing found by $tools"
