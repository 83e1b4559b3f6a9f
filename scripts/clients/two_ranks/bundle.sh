#!/usr/bin/env bash
# usage: bundle.sh FOLDER
#
# Writes a folder that runs the client two_ranks on a machine with two GPUs, without Rust and without a network:
# there, with a python3 that has torch and transformers,
#
#     FIRSTDIFF_TEST_PYTHON=python3 python3 scripts/clients/clients.py two_ranks
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

readonly FOLDER=$1

mkdir -p "$FOLDER/target/release" "$FOLDER/fixtures" "$FOLDER/scripts" "$FOLDER/docs"
strip --strip-debug -o "$FOLDER/target/release/firstdiff" "${CARGO_TARGET_DIR:-target}/release/firstdiff"
cp -R python examples "$FOLDER"
cp -R fixtures/tiny-qwen2 "$FOLDER/fixtures"
cp -R scripts/clients "$FOLDER/scripts"
du -sh "$FOLDER"
