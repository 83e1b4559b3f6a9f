#!/usr/bin/env bash
# Runs our engine beside llama.cpp on two real models, SmolLM2 135M (Q4_1) and Qwen2.5 Coder 0.5B (Q4_K_M), and
# records the reference. Every site must be equal, and every operation of both sides within its bound.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/models.sh

readonly FIRSTDIFF="${CARGO_TARGET_DIR:-target}/release/firstdiff"

fail() {
    echo "real_models.sh: $1" >&2
    exit 1
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
    "$FIRSTDIFF" capture reference -m "$1" -n 4 -p 'The capital of France is' --overwrite -o "$MODELS/trace"
    rm -r "$MODELS/trace"
}

fetch_models
compare "$SMOLLM"
compare "$QWEN"
