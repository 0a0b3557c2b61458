"""The proof's table: made from what the parts wrote; one that fails or counts nothing is a violation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import proof

COUNT = """echo '{{"counts": {{"deaths": 1200}}, "violations": %d}}' > {counts}"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(proof, "OUT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "violations"),
    [
        (COUNT % 0, 0),
        (COUNT % 3, 3),
        (COUNT % 0 + "; exit 1", 1),
        (COUNT % 3 + "; exit 1", 3),
        ("exit 1", 1),
        ("true # {counts}", 1),
    ],
)
def test_a_part(
    out: Path,
    command: str,
    violations: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(proof, "PARTS", (proof.Part("kill", command),))
    assert proof.totals() == {}
    proof.run(proof.PARTS[0])
    assert proof.totals()["kill"]["violations"] == violations
    assert f"{violations} violations" in capsys.readouterr().out
    assert ("| kill | deaths | 1,200 |" in proof.table()) == ("deaths" in command)


def test_the_page_has_a_place_for_the_table(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(proof.PAGE.read_text())
    monkeypatch.setattr(proof, "PAGE", page)
    monkeypatch.setattr(proof, "PARTS", (proof.Part("kill", COUNT % 0),))
    monkeypatch.setattr("sys.argv", ["proof.py", "kill", "--page"])
    assert proof.main() == 0
    assert "<!-- counts -->\n| part |" in page.read_text() and "| 1,200 |" in page.read_text()
    assert page.read_text().count("<!-- end of counts -->") == 1


def test_counts_of_several_files_are_added(out: Path) -> None:
    part = proof.Part(
        "kill",
        "for n in 1 2; do F=$(echo {counts} | sed s/.json/-$n.json/); "
        + COUNT.replace("{counts}", "$F") % 1
        + "; done",
    )
    proof.run(part)
    assert json.loads((out / "kill.total").read_text())["counts"] == {"deaths": 2400}
    assert json.loads((out / "kill.total").read_text())["violations"] == 2
