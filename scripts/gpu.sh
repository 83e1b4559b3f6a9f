#!/usr/bin/env bash
# Tests and benches on a GPU: with what cargo builds here, or, in a folder that `bundle` wrote, with
# the programs that lie in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: scripts/gpu.sh test | bench [TABLE...] | sanitize | bundle FOLDER

  test      the GPU tests, the engine's tests with their kernels on the GPU, and models of transformers
            there if FIRSTDIFF_TEST_PYTHON names a Python that has torch and transformers
  bench     the tables of docs/performance.md
  sanitize  every kernel under compute-sanitizer: memcheck, racecheck, initcheck
  bundle    write a folder that does all this on a machine without Rust

Without a GPU the first three say so and do nothing else.
TEXT
}

main() {
    case "${1-}" in
        test) needs_gpu; tests ;;
        bench) needs_gpu; bench "${@:2}" ;;
        sanitize) needs_gpu; sanitize ;;
        bundle) bundle "${2:?$(usage)}" ;;
        -h | --help) usage ;;
        *) usage >&2; exit 2 ;;
    esac
}

# The path of a program: of the bundle that this is, or built now.
program() {
    local name=$1
    if [[ -x bin/$name ]]; then
        echo "bin/$name"
        return
    fi
    local built
    case $name in
        firstdiff) cargo build --release --locked >&2; echo "${CARGO_TARGET_DIR:-target}/release/firstdiff"; return ;;
        tests) built=$(cargo test --release --locked --test main --no-run 2>&1 | tee /dev/stderr) ;;
        gpu-bench) built=$(cargo bench --locked --bench gpu --no-run 2>&1 | tee /dev/stderr) ;;
    esac
    sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<<"$built"
}

# Ends the script, having said why, where no device can be opened.
needs_gpu() {
    local firstdiff said status=0
    firstdiff=$(program firstdiff)
    said=$("$firstdiff" run --device cuda -p 'once upon' -n 0 2>&1 >/dev/null) || status=$?
    if [[ $status == 5 ]]; then
        echo "skipped, nothing was run on a GPU: $said"
        exit 0
    fi
}

tests() {
    local tests
    tests=$(program tests)
    export CARGO_MANIFEST_DIR=$PWD
    "$tests" --include-ignored gpu::
    # Of the tests of contracts and rows, those that need no program beside them.
    FIRSTDIFF_TEST_DEVICE=cuda "$tests" engine:: replay:: rows::chosen_ \
        contract::each_ contract::the_example_ contract::layouts_ contract::a_partial_
    if [[ -n ${FIRSTDIFF_TEST_PYTHON-} ]]; then
        FIRSTDIFF_TEST_DEVICE=cuda "$tests" --ignored transformers::
    else
        echo 'no model of transformers was run: FIRSTDIFF_TEST_PYTHON names no Python that has torch'
    fi
}

bench() {
    local firstdiff bench
    firstdiff=$(program firstdiff) bench=$(program gpu-bench)
    CARGO_MANIFEST_DIR=$PWD FIRSTDIFF=$firstdiff "$bench" "$@"
}

sanitize() {
    local tests tool longest
    tests=$(program tests)
    for tool in memcheck racecheck initcheck; do
        # Races in shared memory are there with a few tiles of keys, and looking for them is slow.
        longest=32768
        [[ $tool != racecheck ]] || longest=2048
        echo "compute-sanitizer --tool $tool, contexts of up to $longest positions"
        FIRSTDIFF_TEST_LONGEST=$longest compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$tests" --include-ignored gpu::every_kernel_of --test-threads 1
    done
}

bundle() {
    local folder=$1 name from
    mkdir -p "$folder/bin" "$folder/scripts"
    for name in firstdiff tests gpu-bench; do
        from=$(program "$name")
        strip --strip-debug -o "$folder/bin/$name" "$from"
    done
    cp -R Makefile kernels fixtures python examples "$folder"
    cp scripts/gpu.sh "$folder/scripts"
    mkdir -p "$folder/tests/bring"
    cp tests/bring/unseen.py "$folder/tests/bring"
    du -sh "$folder"
    echo "copy it to a machine with a GPU; there: make gpu-test, make gpu-bench, make gpu-sanitize"
}

main "$@"
