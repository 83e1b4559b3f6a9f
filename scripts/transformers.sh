#!/usr/bin/env bash
# The tests of python/firstdiff_transformers.py, which `make test` leaves out: torch and transformers come
# as Python packages (some 5 GB) into a virtual environment under target/; the second time they are
# there. FIRSTDIFF_TEST_PYTHON names a Python that has them already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV="${CARGO_TARGET_DIR:-target}/transformers"
# Earlier ones have no qwen3_5, and not all experts in one module.
readonly PACKAGES=('torch>=2.4' 'transformers>=5.24,<6')

if [[ -z ${FIRSTDIFF_TEST_PYTHON-} ]]; then
    if [[ ! -e "$VENV/ready" ]]; then
        echo "installing torch and transformers into $VENV"
        python3 -m venv "$VENV" || {
            echo 'transformers.sh: python3 with venv is missing; run scripts/setup.sh' >&2
            exit 2
        }
        "$VENV/bin/pip" install --quiet "${PACKAGES[@]}" || {
            echo 'transformers.sh: torch could not be installed; check the network and run it again' >&2
            exit 2
        }
        touch "$VENV/ready"
    fi
    FIRSTDIFF_TEST_PYTHON=$(realpath "$VENV")/bin/python
fi
export FIRSTDIFF_TEST_PYTHON
cargo test --release --locked -- --ignored transformers::
