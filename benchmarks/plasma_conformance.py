"""Plasma's own tests against Millpond's version of its API.

    python benchmarks/plasma_conformance.py --python /path/to/venv/bin/python

The tests are those of an installed pyarrow 11, the last version that had Plasma: they are read from there,
with `pyarrow.plasma` replaced by `millpond.integrations.plasma` in every process. The environment needs
pyarrow 11, pandas 2.1 or older, pytest and millpond. Prints the count, and each test that does not pass
with its error. Exit status 1 if that is not exactly what the table in docs/guides/plasma.md says.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "plasma.md"
ROW = re.compile(r"^\| `(test_\w+)` \|", re.MULTILINE)
LOCATE = "import pyarrow, pathlib; print(pathlib.Path(pyarrow.__file__).parent / 'tests' / 'test_plasma.py')"

# Every Python process imports `sitecustomize` if it can.
REPLACE = '''
"""Gives `millpond.integrations.plasma` to whoever imports `pyarrow.plasma`."""

import importlib
import importlib.machinery
import sys


class Replace:
    def find_spec(self, name, path=None, target=None):
        if name == "pyarrow.plasma":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        module = type(sys)(spec.name)
        module.__dict__.update(vars(importlib.import_module("millpond.integrations.plasma")))
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Replace())
'''


def expected() -> set[str]:
    """The tests that the guide lists as not passing."""
    return set(ROW.findall(GUIDE.read_text()))


def run(python: str, timeout_s: float = 170) -> dict[str, str]:
    """What did not pass, with the reason, and under "" the number that did."""
    tests = subprocess.run([python, "-c", LOCATE], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "sitecustomize.py").write_text(REPLACE)
        report = Path(directory, "report.xml")
        environment = {
            **os.environ,
            "PYTHONPATH": directory,
            "MILLPOND_DIR": f"{directory}/registry",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = [
            "--noconftest",
            "-p",
            "no:cacheprovider",
            "-q",
            "--rootdir",
            directory,
            f"--junitxml={report}",
        ]
        done = subprocess.run(
            [python, "-m", "pytest", *options, tests],
            env=environment,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if not report.exists():
            raise RuntimeError(f"pytest did not run:\n{done.stdout}{done.stderr}")
        return read(report)


def read(report: Path) -> dict[str, str]:
    """A JUnit report, as `run` gives it."""
    found = {}
    passed = 0
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [entry for entry in case if entry.tag in ("failure", "error", "skipped")]
        passed += not wrong
        for entry in wrong:
            kind = "skipped: " if entry.tag == "skipped" else ""
            found[case.get("name", "")] = kind + entry.get("message", "").splitlines()[0]
    return {"": str(passed), **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="of an environment with pyarrow 11 and millpond")
    outcome = run(parser.parse_args().python)
    passed = outcome.pop("")
    print(f"{passed} of {int(passed) + len(outcome)} pass")
    for name, reason in sorted(outcome.items()):
        print(f"  {name}: {reason}")
    if wrong := expected() ^ outcome.keys():
        print(f"not as {GUIDE.name} says: {', '.join(sorted(wrong))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
