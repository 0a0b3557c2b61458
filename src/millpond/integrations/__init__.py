"""Millpond inside what people already use: one module for each, imported only by those who ask for it.

calls.py, visit.py and own_memory.py are what those that run calls in worker processes have in common.
Invariants: the core imports none of them; what is integrated need not be installed until its module is
imported.
Not here: anything that the core does without being asked through one of them.
"""
