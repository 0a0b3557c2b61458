"""What this machine allows a store to do: findings about memory, disks, sharing, the process and the system.

One file per topic; each finding has a value, what it means, and what to do if it is bad. Nothing is
changed, nothing left behind; what cannot be found out is a finding too: no environment is too odd.
"""
