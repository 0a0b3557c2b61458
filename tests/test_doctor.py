"""`millpond doctor`, here and in odd places: it says what is wrong, and never fails itself."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millpond.cli import main
from millpond.observe.doctor import disks, memory, process, sharing
from millpond.observe.doctor.finding import Finding, run
from millpond.spill import disk

MIB = 1 << 20


def doctor(*arguments: str, limits: dict[int, int] | None = None, **environment: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of the command, run under the given resource limits."""

    def restrict() -> None:
        for which, value in (limits or {}).items():
            resource.setrlimit(which, (value, value))

    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "millpond.cli.main", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        preexec_fn=restrict,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def findings(*arguments: str, **how: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the findings by name."""
    status, output, errors = doctor("--json", *arguments, **how)
    assert errors == ""
    return status, {finding["name"]: finding for finding in json.loads(output)}


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    return tmp_path / "registry"


def test_what_it_looks_at(tmp_path: Path) -> None:
    """Every finding says what it means; what is bad says what to do; the disk is left as it was."""
    spill = tmp_path / "spill"
    spill.mkdir()
    status, found = findings("--spill-dir", str(spill))
    assert status == any(each["verdict"] == "bad" for each in found.values())
    assert {each["topic"] for each in found.values()} == {"memory", f"disk {spill}", "sharing", "process"}
    assert all(each["value"] and each["meaning"] for each in found.values())
    assert [each["name"] for each in found.values() if each["verdict"] == "bad" and not each["advice"]] == []
    assert found["written"]["number"] > 1e6 and found["read back"]["number"] > 1e6
    assert found["a store"]["value"] == "works"
    assert 0 < found["memory_limit by default"]["number"] < found["this process may use"]["number"]
    assert list(spill.iterdir()) == []


def test_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status = main.main(["doctor", "--quick", "--spill-dir", str(tmp_path)])
    output = capsys.readouterr().out
    assert "this process may use" in output and "written" not in output
    assert ("nothing bad" in output) == (status == 0)


def test_a_small_limit_on_files(tmp_path: Path) -> None:
    """A store fails there, and the cause is among the findings."""
    status, found = findings("--spill-dir", str(tmp_path), limits={resource.RLIMIT_FSIZE: MIB})
    assert status == 1
    assert found["file size (ulimit -f)"]["verdict"] == found["a store"]["verdict"] == "bad"
    assert "ulimit -f unlimited" in found["file size (ulimit -f)"]["advice"]


def test_a_small_limit_on_addresses(tmp_path: Path) -> None:
    _, found = findings("--spill-dir", str(tmp_path), limits={resource.RLIMIT_AS: 4 << 30})
    assert found["address space (ulimit -v)"]["verdict"] == "note"
    assert "ulimit -v unlimited" in found["address space (ulimit -v)"]["advice"]


def test_few_descriptors(tmp_path: Path) -> None:
    """A note where there are few; and still no traceback where there are far too few."""
    _, found = findings("--spill-dir", str(tmp_path), "--quick", limits={resource.RLIMIT_NOFILE: 64})
    assert found["open files (ulimit -n)"]["verdict"] == "note"
    status, _, errors = doctor("--spill-dir", str(tmp_path), "--quick", limits={resource.RLIMIT_NOFILE: 9})
    assert status in (0, 1) and errors == ""


def bad_places(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    file = tmp_path / "file"
    file.write_text("")
    return {
        "missing": (tmp_path / "missing", "not there"),
        "a file": (file, "not a directory"),
        "not a disk": (Path("/proc"), "nothing can be spilled here"),
        "memory": (Path("/dev/shm"), "lies in memory"),
    }


@pytest.mark.parametrize("place", ["missing", "a file", "not a disk", "memory"])
def test_bad_spill_directories(tmp_path: Path, place: str) -> None:
    path, says = bad_places(tmp_path)[place]
    found = list(disks.findings([path], speed=False))
    bad = [finding for finding in found if finding.verdict == "bad"]
    assert any(says in finding.meaning for finding in bad), found
    assert all(finding.advice for finding in bad)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    [finding] = disks.findings([tmp_path])
    assert (finding.verdict, "may not write" in finding.meaning) == ("bad", True)


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o777, "note"), (0o770, "note"), (0o1777, "ok"), (0o755, "ok")]
)
def test_who_else_may_rename_what_is_spilled(tmp_path: Path, mode: int, verdict: str) -> None:
    above = tmp_path / "above"
    (place := above / "place").mkdir(parents=True)
    for path in (place, above):
        path.chmod(mode)
        found = {finding.name: finding for finding in disks.findings([place], speed=False)}
        finding = found["who may rename in it"]
        assert (finding.verdict, str(path) in finding.value) == (verdict, verdict == "note")
        path.chmod(0o700)


def test_a_place_where_somebody_else_was_first(tmp_path: Path) -> None:
    (tmp_path / f"millpond-{os.geteuid()}").symlink_to(tmp_path)
    [finding] = disks.findings([tmp_path])
    assert (finding.verdict, "symbolic link" in finding.meaning) == ("bad", True)


def test_no_directory_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise OSError("no directory to spill to")

    monkeypatch.setattr(disks, "default_base", none)
    [finding] = disks.findings([])
    assert (finding.verdict, finding.value) == ("bad", "none")


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "free_space", lambda *_: (MIB, 100 * MIB))
    found = {finding.name: finding for finding in disks.findings([tmp_path])}
    assert found["free space"].verdict == "bad"
    assert found["speed"].value == "not measured"


def test_a_disk_without_direct_io(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "probe_direct", lambda *_: False)
    monkeypatch.setattr(disks, "TEST_BYTES", 16 * MIB)
    found = {finding.name: finding for finding in disks.findings([tmp_path])}
    assert found["direct I/O"].verdict == "note"
    assert (found["written"].number or 0) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_stores_refuse(registry: Path) -> None:
    registry.mkdir(mode=0o755)
    registry.chmod(0o755)
    found = {finding.name: finding for finding in sharing.findings()}
    assert found["registry"].verdict == "bad" and "0755" in found["registry"].advice
    assert found["a store"].verdict == "bad"


@pytest.mark.parametrize("topic", [memory.findings, process.findings, sharing.findings])
def test_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch, topic: Callable[[], Any]) -> None:
    """No /proc and no /sys: notes, where it matters, and no error."""
    for module in (memory, process, sharing):
        monkeypatch.setattr(module, "read_text", lambda path: None)
    found = list(topic())
    assert len(found) >= 7 and all(isinstance(finding, Finding) for finding in found)


def test_a_check_that_fails_is_a_note() -> None:
    def _broken() -> list[Finding]:
        raise ZeroDivisionError("by zero")

    [finding] = run("topic", [_broken])
    assert (finding.name, finding.verdict, "by zero" in finding.meaning) == ("broken", "note", True)
