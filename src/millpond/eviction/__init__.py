"""Who goes when memory runs short: policies that rank objects, and the limits that say how short it is.

policies.py ranks a snapshot of objects, ranking.py hands the ranked ones out in batches, limits.py
knows what the machine and its cgroups leave to this process.
Invariants: a policy only gives an order, so whatever it says no object is lost; whoever acts on a rank looks
at the object again.
Not here: the snapshot (hot), cleaning and evicting what was chosen (`millpond.spill`, the store).
"""
