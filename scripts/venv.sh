#!/usr/bin/env bash
# usage: scripts/venv.sh NAME PACKAGE...
#
# Prints the Python of the virtual environment NAME under target/, in which those packages are. What is
# missing is installed; the second time nothing is done.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly VENV="${CARGO_TARGET_DIR:-$ROOT/target}/$1"

fail() {
    echo "venv.sh: $1" >&2
    exit 2
}

main() {
    local package missing=()
    for package in "$@"; do
        grep -qsxF -- "$package" "$VENV/ready" || missing+=("$package")
    done
    if ((${#missing[@]})); then
        echo "installing ${missing[*]} into $VENV" >&2
        [[ -x $VENV/bin/pip ]] || python3 -m venv "$VENV" ||
            fail 'python3 with venv is missing; run scripts/setup.sh'
        "$VENV/bin/pip" install --quiet "${missing[@]}" >&2 ||
            fail "${missing[*]} could not be installed; check the network and run it again"
        printf '%s\n' "${missing[@]}" >>"$VENV/ready"
    fi
    echo "$(realpath "$VENV")/bin/python"
}

main "${@:2}"
