"""The public `Store`, and everything that it leaves to Python.

In the order in which it is best read: store.py; serialize.py and reducers.py, values to bytes and back;
room.py, spiller.py, cleaner.py and janitor.py over threads.py, when memory is short; restore.py, ahead.py and
prefetch.py, the way back from disk; options.py, registry.py, peers.py, membership.py and termination.py,
how processes find a store, join and leave it; info.py and inspection.py, explain.py over anatomy.py,
skim.py and opcodes.py, serializability.py over culprit.py, timeline.py, what it tells about itself.
Invariants: spilling, eviction and reference counting meet here and nowhere else; whatever fails raises a
typed error and leaves everything as it was.
Not here: shared memory itself (the kernel), the fast paths of put and get (hot), tables and pictures
(observe).
"""
