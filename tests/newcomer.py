"""The first minutes of somebody who has just met Millpond: a new environment, no compiler, one wheel.

    python tests/newcomer.py --environment DIRECTORY WHEEL

Installs the wheel and what it depends on as `pip install` does, from wheels only; then pastes the first
example of README.md into a file, runs it, and compares what it prints; then runs `millpond demo`. Each sees a
PATH with nothing but the environment on it, in a directory of its own. Needs an index to install from.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"```python\n(.*?)```\s*```text\n(.*?)```", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--environment", type=Path, required=True, help="made anew")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that makes it")
    arguments = parser.parse_args()
    binaries = install(arguments.wheel.resolve(), arguments.environment.resolve(), arguments.python)
    with tempfile.TemporaryDirectory() as directory:
        print_first_example(binaries, Path(directory))
        print(call(binaries, "millpond", "demo", cwd=directory))


def install(wheel: Path, environment: Path, python: str) -> Path:
    """The folder of the commands of a new environment in which the wheel is installed."""
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([python, "-m", "venv", environment], check=True)
    binaries = environment / "bin"
    print(call(binaries, "pip", "install", "--quiet", "--only-binary", ":all:", str(wheel)), end="")
    for compiler in ("gcc", "cc", "clang"):
        assert shutil.which(compiler, path=str(binaries)) is None
    return binaries


def print_first_example(binaries: Path, directory: Path) -> None:
    """Runs it; raises AssertionError if it prints anything but what README says."""
    found = EXAMPLE.search((ROOT / "README.md").read_text())
    assert found, "README.md begins with no example"
    code, expected = found.groups()
    (directory / "example.py").write_text(code)
    printed = call(binaries, "python", "example.py", cwd=directory)
    print(printed)
    assert printed == expected, f"README.md says\n{expected}"


def call(binaries: Path, command: str, *arguments: str, cwd: Path | str | None = None) -> str:
    """What a command of the environment prints. Its errors go to the screen and end this program."""
    environment = os.environ | {"PATH": str(binaries), "CC": "/bin/false", "CXX": "/bin/false"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [binaries / command, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    if done.returncode:
        sys.exit(f"{command} {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
