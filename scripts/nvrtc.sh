#!/usr/bin/env bash
# Compiles every kernel with the real NVRTC, on a machine without a GPU. NVRTC and CUDA's headers come
# as Python packages (about 60 MB) into a virtual environment under target/; the second time they are
# there.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly VENV="${CARGO_TARGET_DIR:-$ROOT/target}/nvrtc"
# 13.5 was tried: it knows sm_80, sm_90 and sm_120.
readonly PACKAGES=('nvidia-cuda-nvrtc>=13,<14' 'nvidia-cuda-runtime>=13,<14')

if [[ ! -e "$VENV/ready" ]]; then
    echo "installing NVRTC into $VENV"
    python3 -m venv "$VENV" || {
        echo 'nvrtc.sh: python3 with venv is missing; run scripts/setup.sh' >&2
        exit 2
    }
    "$VENV/bin/pip" install --quiet "${PACKAGES[@]}" || {
        echo 'nvrtc.sh: NVRTC could not be installed; check the network and run it again' >&2
        exit 2
    }
    touch "$VENV/ready"
fi
exec "$VENV/bin/python" "$ROOT/scripts/nvrtc.py" "$@"
