#!/usr/bin/env bash
# Everything that there is to do on a machine with a GPU, in less than nine minutes and without a download:
#     bench/gpu.sh OUT [build] [tests] [sanitizer] [benchmark]        all four by default
# Uses the python3 (or PYTHON) that has torch, pytest and pytest-benchmark as it is and builds the extension in place.
# Every part has its own time limit (BUILD_SECONDS, ...), and what one loses the others still give. What the benchmark
# compiles is compiled while the parts before it run, and the benchmark waits for the step of pre-training, which takes
# longest (WARM_UP_SECONDS of the script at most). OUT: a log of each part, results.json and, with matplotlib, results.png.
set -uo pipefail
usage="usage: bench/gpu.sh OUT [build] [tests] [sanitizer] [benchmark]"
out=$(realpath -m "${1:?$usage}")
shift
cd "$(dirname "$0")/.." || exit 1
python=$(command -v "${PYTHON:-python3}")
capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())" 2>/dev/null) || {
    echo "bench/gpu.sh: no CUDA GPU that torch in ${python:-python3} can use" >&2
    exit 2
}
mkdir -p "$out"
# From 9.0 on, the kernels use instructions that only code for the very chip may hold.
[[ ${capability%.*} -ge 9 ]] && architecture=${capability}a || architecture=$capability
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$architecture} PYTHONUNBUFFERED=1 PYTHON=$python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# nvcc optimises the kernels of a source on all processors: attention's take 24 s on one.
export NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:--split-compile=0}
# Other plugins that happen to be installed stay out, and warnings of other versions than ours are no errors here.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
pytest="$python -m pytest -W default -p no:cacheprovider"
operators="diagonal_attention frame_difference poi_topk swap_patches"
timed="diagonal_attention frame_difference swap_patches poi_topk pretrain_step" # last what may want all that is left
timing="$pytest -p pytest_benchmark.plugin --benchmark"

# seconds, command...: a pytest that is interrupted still writes its summary; nothing of it stays on the GPU.
limited() (
    set -m # a process group of its own, in which SIGINT is not ignored
    timeout --signal=INT --kill-after=8 "$@" </dev/null &
    wait $!
    status=$?
    kill -KILL -- -$! 2>/dev/null
    exit $status
)

build() {
    MICRON_BUILD=${MICRON_BUILD:-cuda} limited "${BUILD_SECONDS:-60}" "$python" setup.py build_ext --inplace
    local status=$?
    "$python" -m micron_kernels.info
    return $status
}

# A process for each file of an operator and implementation: one that breaks the CUDA context loses no other's tests.
tests() {
    local jobs=() work status=0 impl op file LC_ALL=C
    work=$(mktemp -d)
    for op in $operators; do
        for impl in ${IMPLEMENTATIONS:-triton native reference}; do
            for file in tests/kernels/test_"$op"*.py; do
                jobs+=("$file $impl-cuda")
            done
        done
    done
    # Triton compiles for every width, which takes a second each: half of its longest file beside the other half.
    local long="tests/kernels/test_diagonal_attention.py triton-cuda"
    [[ ${jobs[0]} != "$long" ]] || jobs=("${jobs[@]:1}" "${long% *} (triton-cuda)and(not(test_every))" "${long% *} (triton-cuda)and(test_every)")
    jobs+=("tests/kernels not(triton-cuda)and(not(native-cuda))and(not(reference-cuda))")
    export pytest work end=$(($(date +%s) + ${TESTS_SECONDS:-160}))
    export -f limited
    printf '%s\n' "${jobs[@]}" | xargs -P "$(nproc)" -L 1 bash -c '
        log=$work/$(echo "$*" | tr -c "a-z_\n" -)
        echo "== $*" >"$log"
        seconds=$((end - $(date +%s)))
        [[ $seconds -gt 0 ]] || { echo "Interrupted: no time was left" >>"$log" && exit 1; }
        OMP_NUM_THREADS=2 limited $seconds $pytest -m gpu "$1" -k "$2" >>"$log" 2>&1
        status=$?
        [[ $status -eq 5 ]] && echo "there is no such test" >>"$log" && exit 0
        [[ $status -lt 124 ]] || echo "Interrupted: status $status, out of time if it is 124" >>"$log"
        exit $status' bash || status=1
    cat "$work"/*
    echo "== summary"
    grep -hE "^==|^[0-9]+ (passed|failed|skipped)|^FAILED|^ERROR|no such test|Interrupted" "$work"/*
    rm -r "$work"
    return $status
}

sanitizer() {
    limited "${SANITIZER_SECONDS:-120}" tools/sanitize_gpu.sh
}

# Compilation, by torch.compile and Triton, takes most of a benchmark's time: all of it at once, while nothing is timed.
# That of the step takes longest, and torch keeps of it what was compiled to its end: it goes first.
warm_up() {
    local op warm="$timing --benchmark-max-time=0.001 --benchmark-json"
    {
        $warm "$scratch/pretrain_step.json" bench/bench_pretrain_step.py </dev/null
        touch "$scratch/step_is_warm"
    } &
    for op in ${timed/pretrain_step/}; do
        nice $warm "$scratch/$op.json" "bench/bench_$op.py" </dev/null &
    done
    wait
}

# For the step alone, and so many seconds of the script at most.
wait_for_warm_up() {
    until [[ -z $warming || -e $scratch/step_is_warm || $SECONDS -ge ${WARM_UP_SECONDS:-150} ]]; do sleep 0.1; done
}

# A process for each, as above. Results of all go into one file.
benchmark() {
    "$python" -c "import pytest_benchmark" || return 1
    local status=0 op end=$((SECONDS + ${BENCHMARK_SECONDS:-195})) seconds most
    # On an H200, compiled before: attention 72 s, each of the small operators 13; the step has what is left.
    local -A seconds_of=([diagonal_attention]=100 [pretrain_step]=195)
    for op in $timed; do
        seconds=$((end - SECONDS)) most=${seconds_of[$op]:-45}
        [[ $seconds -le $most ]] || seconds=$most
        [[ $seconds -gt 0 ]] || return 1
        limited "$seconds" $timing --benchmark-json "$out/results.json" "bench/bench_$op.py" || status=1
    done
    return $status
}

# What to read of a part's log.
digest() {
    case $1 in
        build) sed -n '/^micron_kernels  /,$p' ;;
        tests) sed -n '/^== summary/,$p' | head -60 ;;
        sanitizer) # each report once, with its kernel and without addresses
            grep -E "IS WRONG|SUMMARY|sanitize:|: =+ +(Error|Warning|Invalid|Uninitialized|Barrier|Misaligned|and|at)\b" |
                sed -E 's/\+0x[0-9a-f]+.*//' | awk '!seen[$0]++' | cut -c 1-200 | head -40
            ;;
        benchmark)
            grep -E "^FAILED|^ERROR|: (reached|missed)|(reached|missed|not measured)$| failed: " | cut -c 1-200 | head -60
            ;;
    esac
}

read -ra parts <<<"${*:-build tests sanitizer benchmark}"
for part in "${parts[@]}"; do
    [[ $part =~ ^(build|tests|sanitizer|benchmark)$ ]] || {
        echo "$usage: not $part" >&2
        exit 2
    }
done

scratch=$(mktemp -d) warming=
cool_down() {
    [[ -z $warming ]] || kill -KILL -- "-$warming" 2>/dev/null
    wait 2>/dev/null
    warming=
}
trap 'cool_down; rm -rf "$scratch"' EXIT
if [[ ${parts[0]} != benchmark && " ${parts[*]} " == *" benchmark "* ]]; then
    set -m # a process group of its own, to be ended as one
    warm_up >"$out/warm_up.log" 2>&1 &
    warming=$!
    set +m
fi

summary=() failed=0
for part in "${parts[@]}"; do
    [[ $part != benchmark ]] || { wait_for_warm_up && cool_down; }
    start=$SECONDS
    "$part" >"$out/$part.log" 2>&1
    status=$?
    [[ $status -eq 0 ]] || failed=1
    summary+=("$(printf '%-12s%5d s   exit status %d' "$part" $((SECONDS - start)) $status)")
done

for part in "${parts[@]}"; do digest "$part" <"$out/$part.log"; done
printf '%s\n' "" "${summary[@]}"
exit $failed
