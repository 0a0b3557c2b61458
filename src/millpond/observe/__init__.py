"""What people and programs see of a store: tables, `top`, timelines summed up, metrics, the doctor.

Invariants: whoever looks changes nothing, and shows frozen records of one moment.
Not here: the records themselves (millpond.store), where they are printed (millpond.cli).
"""
