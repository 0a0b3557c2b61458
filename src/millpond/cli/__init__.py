"""The `millpond` command: main.py, one file per group of commands, arguments.py for what they share.

Invariants: a command looks at a store as a member like any other; its exit status is 0, 1 (a bad
verdict) or 2 (it could not be done, and standard error says why); what it prints is for people, unless
asked for JSON.
Not here: what is in the tables and pictures (millpond.observe).
"""
