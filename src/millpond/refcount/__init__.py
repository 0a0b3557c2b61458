"""Who holds an object: the encoding of refs that travel between processes (handoff.py).

Invariant: a pickled ref holds its object until it is loaded once, is exported for more, or lapses.
Not here: holder bits and tokens themselves (the kernel), `ObjectRef` (hot).
"""
