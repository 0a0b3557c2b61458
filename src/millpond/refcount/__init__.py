"""Who holds an object: the encoding of refs that travel between processes (handoff.py).

Not here: holder bits and tokens themselves (the kernel), `ObjectRef` (hot).
"""
