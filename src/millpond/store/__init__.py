"""The public `Store`, and everything that it leaves to Python.

In the order in which it is best read: store.py; room.py, shortage.py, spiller.py, cleaner.py and
janitor.py, when memory is short; restore.py, ahead.py and prefetch.py, the way back from disk; options.py,
registry.py over files.py and private.py, peers.py, membership.py, connect.py and termination.py, how a
process finds a store, joins and leaves it; info.py, inspection.py and recorder.py, what it tells of itself.
Invariants: values, spilling, eviction and reference counting meet here and nowhere else; whatever fails
raises a typed error and leaves everything as it was.
Not here: shared memory itself (the kernel), the fast paths of put and get (hot), values to bytes and back
(values), tables and pictures (observe).
"""
