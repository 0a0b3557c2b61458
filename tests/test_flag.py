"""A flag between threads, and interrupts that hit it anywhere."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from millpond.flag import Flag


def test_set_and_clear() -> None:
    flag = Flag()
    assert not flag.is_set() and not flag.wait(0.001)
    flag.set()
    assert flag.is_set() and flag.wait() and flag.wait(0)
    flag.clear()
    assert not flag.is_set() and not flag.wait(0.001)


def test_everybody_is_woken() -> None:
    flag = Flag()
    threads = [threading.Thread(target=flag.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    flag.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_the_shortest_wait_ends() -> None:
    flag = Flag()
    waiting = threading.Thread(target=lambda: [flag.wait(1e-6) for _ in range(1000)], daemon=True)
    waiting.start()
    waiting.join(30)
    assert not waiting.is_alive()


class Interrupt(Exception):
    pass


def test_interrupts_leave_it_whole() -> None:
    """With threading.Event, this ends within a second or two in a lock that nobody holds."""
    flag, over = Flag(), time.monotonic() + 2

    def raise_interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, raise_interrupt)
    try:
        interrupts = 0
        while time.monotonic() < over:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005)
                for _ in range(1000):  # not for ever: an interrupt inside a collector's callback is lost
                    flag.set()
                    flag.clear()
                    flag.wait(0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    setter = threading.Thread(target=flag.set)
    setter.start()
    setter.join(10)
    assert not setter.is_alive() and flag.wait(1)
    assert interrupts > 100
