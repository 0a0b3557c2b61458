"""The fixture `millpond_store`: clean tests pass; those that leak fail and are told what, and where."""

from __future__ import annotations

import pytest

PREAMBLE = """
import gc, os, pickle, subprocess, sys
import numpy as np
import pytest
kept = []
"""


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    """A test file of its own in a process of its own."""
    pytester.makepyfile(test_it=PREAMBLE + body)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")


def test_what_is_clean_passes(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_objects_and_views(millpond_store):
    ref = millpond_store.put(np.ones(10_000))
    assert millpond_store.get(ref).sum() == 10_000

def test_a_cycle_is_no_leak(millpond_store):
    cycle = [millpond_store.put(1)]
    cycle.append(cycle)

def test_spilling_and_a_name(millpond_store):
    refs = [millpond_store.put(np.ones(1_000_000)) for _ in range(20)]
    assert millpond_store.stats().spilled_bytes_total
    millpond_store.put(1, name="one")
    millpond_store.delete("one")

@pytest.mark.millpond_store(memory_limit="8MiB", spill_limit=0)
def test_options(millpond_store):
    assert millpond_store.memory_limit == 8 << 20

def test_a_process_that_has_ended(millpond_store):
    code = "import millpond, sys; s = millpond.connect(sys.argv[1]); r = s.put(1); import os; os._exit(1)"
    subprocess.run([sys.executable, "-c", code, millpond_store.address])

def test_that_closes_it(millpond_store):
    millpond_store.put(1)
    millpond_store.close()
""",
    )
    result.assert_outcomes(passed=6)


def test_leaks_fail_and_are_named(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_ref(millpond_store):
    kept.append(millpond_store.put(np.ones(1_000)))  # line 7

def test_view(millpond_store):
    kept.append(millpond_store.get(millpond_store.put(np.ones(100_000))))

def test_name(millpond_store):
    millpond_store.put(1, name="forgotten")

def test_hand_off(millpond_store):
    pickle.dumps(millpond_store.put(1))

def test_container(millpond_store):
    kept.append(millpond_store.put([millpond_store.put(2)]))

def test_process(millpond_store):
    code = "import millpond, sys; s = millpond.connect(sys.argv[1]); r = s.put(1); print(1, flush=True); "
    code += "input()"
    kept.append(subprocess.Popen([sys.executable, "-c", code, millpond_store.address], stdin=-1, stdout=-1))
    kept[-1].stdout.readline()

@pytest.fixture(scope="module", autouse=True)
def at_the_end_whatever_the_order_was():
    yield
    for process in (one for one in kept if isinstance(one, subprocess.Popen)):
        process.kill(); process.wait(); process.stdin.close(); process.stdout.close()
    kept.clear()
""",
    )
    result.assert_outcomes(passed=6, errors=6)
    result.stdout.fnmatch_lines_random(
        [
            "the test leaks:",
            "- object of 7.88 KiB (resident), made at *test_it.py:7; kept by a ref of this process",
            "- 781.3 KiB of dropped objects are kept by views of them",
            "- object of * made at *test_it.py:*; kept by the name 'forgotten'",
            "- object of * kept by a hand-off of process * that nobody has loaded",
            "- object of * kept by object *",
            "- object of * made at <string>:1; kept by a ref of process * (python*)",
            "- process * (python*) is still attached",
        ]
    )


def test_a_test_that_has_failed_is_not_judged_again(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_fails(millpond_store):
    ref = millpond_store.put(np.ones(1_000))
    assert ref is None
""",
    )
    result.assert_outcomes(failed=1)
