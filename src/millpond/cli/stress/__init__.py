"""`millpond stress`: several processes, more data than memory, every byte verified.

Read in this order: values.py (what is stored), hand.py (what a process does with it), books.py (what
must be true), director.py (who does what next, and who is killed), command.py (the command itself).
"""
