"""Who holds an object: refs on their way between processes (handoff.py), the report of who holds what
(holders.py), the names that hold objects (names.py).

Invariant: a pickled ref holds its object until it is loaded once, is exported for more, or lapses.
Not here: holder bits and tokens themselves (the kernel), `ObjectRef` (hot).
"""
