#!/usr/bin/env python3
"""Runs engines that others wrote, correct and with planted bugs, and checks the verdicts.

    scripts/clients/clients.py [NAME ...]

Each client is a folder beside this file; without a name all are run, and the tables of docs/clients.md are
written. The exit status is 1 where a right engine is not green, or a planted bug is not found and named.
"""

import importlib.util
import re
import subprocess
import sys
import time

import common

NAMES = ("transformers_gguf", "two_ranks", "candle", "llama2_c")
DOCS = common.ROOT / "docs/clients.md"
MARKS = ("<!-- figures: written by make clients -->\n", "<!-- end of figures -->\n")


def client(name):
    """The module of a client."""
    path = common.CLIENTS / name / "client.py"
    if not path.exists():
        raise SystemExit(f"there is no client {name}; there are {', '.join(NAMES)}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(model):
    """The folder of llama.cpp's trace of a model."""
    folder = common.WORK / f"ref-{model.stem}"
    common.WORK.mkdir(parents=True, exist_ok=True)
    common.call(common.FIRSTDIFF, "capture", "reference", "-m", model, "-p", common.PROMPT, "-n", common.STEPS,
                "--overwrite", "-o", folder)  # fmt: skip
    return folder


def explained(trace, ref, model):
    """What firstdiff says of a trace: exit status, text, seconds."""
    start = time.monotonic()
    command = [common.FIRSTDIFF, "explain", trace, "--reference", ref, "-m", model]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    trace.with_suffix(".txt").write_text(done.stdout)
    return done.returncode, done.stdout, time.monotonic() - start


def named(text, pattern):
    """The line of a report that names a cause as the pattern says: a numbered one, or the first where it is a cause."""
    first, *rest = text.splitlines()
    said = [line for line in rest if re.match(r" *\d+\. ", line)]
    if not first.startswith("first divergence"):
        said.insert(0, first)
    return next((line.strip() for line in said if re.search(pattern, line)), None)


def shortened(line):
    """A line of a report as a cell of a table."""
    line = re.sub(r"^\d+\. ", "", line).replace("|", "\\|")
    return line if len(line) <= 160 else line[:157] + "..."


def run_case(module, name, case):
    """The rows of a table of one model, and the failures."""
    ref = reference(case.model)
    folder = common.WORK / name / re.sub(r"\W+", "-", case.title.lower())
    folder.mkdir(parents=True, exist_ok=True)
    traces = {bug: folder / (bug or "right") for bug in (None, *(case.bugs or module.BUGS))}
    seconds = module.record(case, ref / "plan.txt", traces)
    rows, failures = [], []
    for bug, trace in traces.items():
        status, text, took = explained(trace, ref, case.model)
        said = text.splitlines()[0] if bug is None else named(text, module.BUGS[bug])
        is_right = status == (0 if bug is None else 1) and said is not None
        print(f"  {'ok ' if is_right else 'NOT'} {bug or 'right'}: {said or text.splitlines()[0]}", flush=True)
        if not is_right:
            where = trace.with_suffix(".txt")
            failures.append(f"{name}, {case.title}, {bug or 'right'}: exit status {status}; see {where}")
        words = (bug or "none").replace("_", "-"), shortened(said or "**not named**")
        rows.append(f"| {words[0]} | {words[1]} | {seconds[bug]:.1f} | {took:.1f} |")
    return rows, failures


def run(name):
    """Writes the section of a client to target/clients, and gives the failures."""
    module = client(name)
    print(f"== {name}", flush=True)
    module.prepare()
    section, failures = [f"### {module.title()}\n"], []
    for case in module.CASES:
        print(f" {case.title}", flush=True)
        rows, failed = run_case(module, name, case)
        head = "| bug | the verdict | run, s | explain, s |"
        section += [f"{case.title}\n", head, "|---|---|---|---|", *rows, ""]
        failures += failed
    section.insert(1, f"Lines added to the engine: {module.lines()}.\n")
    (common.WORK / f"{name}.md").write_text("\n".join(section))
    return failures


def main(names):
    print(common.call(common.python(), common.CLIENTS / "pt.py"), end="", flush=True)
    failures = [failure for name in names or NAMES for failure in run(name)]
    sections = [common.WORK / f"{name}.md" for name in (*NAMES, "vllm")]
    if not names and not failures:
        before, _, rest = DOCS.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        figures = "\n".join(section.read_text() for section in sections if section.exists())
        DOCS.write_text(before + MARKS[0] + figures + MARKS[1] + after)
    print("\n".join(failures) or "every correct engine is equal, and every bug is found and named", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
