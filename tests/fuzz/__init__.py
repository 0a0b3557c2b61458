"""Bytes of somebody else, changed at random, for everything that reads such bytes.

A target knows what it reads, a few good inputs, and what may come of a bad one: a typed error, or the right
bytes. engine.py runs inputs and keeps those that came to something new; mutate.py changes them; guard.py
notices overruns, endless loops and large allocations. tests/corpus has what was kept.
"""
