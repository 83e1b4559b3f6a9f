#!/usr/bin/env bash
# Runs the bugs of benches/wild, all or those that are named, and with all of them writes docs/wild.md. Half
# of them are in an engine that needs numpy, which comes into a virtual environment under target/; the second
# time it is there. FIRSTDIFF_TEST_PYTHON names a Python that has it already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${FIRSTDIFF_TEST_PYTHON-} ]]; then
    FIRSTDIFF_TEST_PYTHON=$(scripts/venv.sh wild 'numpy>=1.24,<3')
fi
export FIRSTDIFF_TEST_PYTHON
cargo bench --locked --bench wild -- "$@"
