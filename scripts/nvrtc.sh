#!/usr/bin/env bash
# Compiles every kernel with the real NVRTC, on a machine without a GPU. NVRTC and CUDA's headers come
# as Python packages (about 60 MB) into a virtual environment under target/; the second time they are
# there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# 13.5 was tried: it knows sm_80, sm_90 and sm_120.
PYTHON=$(scripts/venv.sh nvrtc 'nvidia-cuda-nvrtc>=13,<14' 'nvidia-cuda-runtime>=13,<14')
exec "$PYTHON" scripts/nvrtc.py "$@"
