"""What all clients need: where things lie, and how a program is called."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

CLIENTS = Path(__file__).resolve().parent
ROOT = CLIENTS.parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WORK = TARGET / "clients"
FIRSTDIFF = TARGET / "release/firstdiff"
SMOLLM = TARGET / "real-models/smollm2-135m-q4_1.gguf"
QWEN = TARGET / "real-models/qwen2.5-coder-0.5b-q4_k_m.gguf"
PACKAGES = ("torch>=2.4", "transformers>=5.24,<6", "gguf>=0.17", "accelerate>=1.1")
PROMPT = "The capital of France is"
STEPS = 2


@dataclasses.dataclass
class Case:
    """A model that a client runs, and how. `bugs` are those that are planted in it, all where none are named."""

    title: str
    model: Path
    options: tuple = ()
    bugs: tuple = ()


def call(*command, **more):
    """Runs a program; what it says is shown where it fails, and ends everything."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def built_and_run(build, mistakes, traces, *command):
    """Builds an engine with each mistake and runs it, the last argument being its trace. Seconds of each run."""
    seconds = {}
    for bug, trace in traces.items():
        build(mistakes[bug])
        start = time.monotonic()
        call(*command, trace)
        seconds[bug] = time.monotonic() - start
    return seconds


def seconds_said(text, bugs):
    """The seconds of each run, of lines such as `right 1.5`."""
    words = [line.split() for line in text.splitlines()]
    said = {pair[0]: float(pair[1]) for pair in words if len(pair) == 2 and pair[0] in ("right", *bugs)}
    return {None: said.pop("right"), **said}


def python():
    """A Python that has torch, transformers and gguf: FIRSTDIFF_TEST_PYTHON, or that of target/transformers."""
    own = os.environ.get("FIRSTDIFF_TEST_PYTHON")
    if own:
        return own
    command = [ROOT / "scripts/venv.sh", "transformers", *PACKAGES]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout.strip()


def write_if_other(path, text):
    """Writes a file, and leaves one that has that text alone, so that it is not built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
