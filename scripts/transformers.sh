#!/usr/bin/env bash
# The tests of python/firstdiff_transformers.py, which `make test` leaves out: torch and transformers come
# as Python packages (some 5 GB) into a virtual environment under target/; the second time they are
# there. FIRSTDIFF_TEST_PYTHON names a Python that has them already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Earlier ones have no qwen3_5, and not all experts in one module.
readonly PACKAGES=('torch>=2.4' 'transformers>=5.24,<6')

if [[ -z ${FIRSTDIFF_TEST_PYTHON-} ]]; then
    FIRSTDIFF_TEST_PYTHON=$(scripts/venv.sh transformers "${PACKAGES[@]}")
fi
export FIRSTDIFF_TEST_PYTHON
cargo test --release --locked -- --ignored transformers::
