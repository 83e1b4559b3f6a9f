#!/usr/bin/env bash
# Runs the bugs of benches/wild, all or those that are named, and with all of them writes docs/wild.md. Half
# of them are in an engine that needs numpy, which comes into a virtual environment under target/; the second
# time it is there. FIRSTDIFF_TEST_PYTHON names a Python that has it already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV="${CARGO_TARGET_DIR:-target}/wild"

if [[ -z ${FIRSTDIFF_TEST_PYTHON-} ]]; then
    if [[ ! -e "$VENV/ready" ]]; then
        echo "installing numpy into $VENV"
        python3 -m venv "$VENV" || {
            echo 'wild.sh: python3 with venv is missing; run scripts/setup.sh' >&2
            exit 2
        }
        "$VENV/bin/pip" install --quiet 'numpy>=1.24,<3' || {
            echo 'wild.sh: numpy could not be installed; check the network and run it again' >&2
            exit 2
        }
        touch "$VENV/ready"
    fi
    FIRSTDIFF_TEST_PYTHON=$(realpath "$VENV")/bin/python
fi
export FIRSTDIFF_TEST_PYTHON
cargo bench --locked --bench wild -- "$@"
