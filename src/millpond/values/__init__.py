"""Values: to bytes and back, and what they consist of.

In the order in which it is best read: serialize.py and reducers.py, how a value is pickled and built again;
explain.py over anatomy.py, skim.py, node.py and opcodes.py, what of it `get` shares and what it copies, read
off its pickle; serializability.py over culprit.py, what of it cannot be pickled.
Invariant: whoever reads here knows no store: bytes, buffers and values come in, and go out.
Not here: arrays and buffers that are the whole value, and the layout of the stored bytes (hot); rules for
types of other packages (integrations).
"""
