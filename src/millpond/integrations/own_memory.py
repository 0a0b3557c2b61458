"""What a process has in memory for itself: for those who judge processes by it.

The resident set of every reader of a store has the pages that it reads in it, once for each of its mappings.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["own_memory"]


def own_memory(pid: int) -> int:
    """Bytes that a process has resident, shared memory left out; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = dict(line.split(":", 1) for line in lines)
    resident, shared = (int(found.get(name, "0").split()[0]) for name in ("VmRSS", "RssShmem"))
    return (resident - shared) << 10
