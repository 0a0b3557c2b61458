"""The steps of recovery are the same in the kernel, in its table and in the documentation."""

from __future__ import annotations

from recovery_table import PAGE, failpoints, steps, written


def test_every_failpoint_is_a_step() -> None:
    assert sorted(step.failpoint for step in steps()) == sorted(failpoints())


def test_letters_are_given_once_and_in_order() -> None:
    letters = [(step.letter[0], int(step.letter[1:])) for step in steps()]
    assert len(letters) > 80
    for (group, number), (before, last) in zip(letters[1:], letters, strict=False):
        assert number == last + 1 if group == before else number == 1 and group > before


def test_the_page_has_the_table() -> None:
    assert PAGE.read_text() == written(), "make it anew: python tests/recovery_table.py"
