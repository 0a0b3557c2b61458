"""The disk side of a store: what spilled objects look like on disk, and how they get there and back.

`writer` cleans objects and streams values straight to disk, `reader` brings them back verified,
`directory` keeps the places they go to private and apart, `sweep` removes what nobody needs.
Invariants: what is on disk is described by the table alone, a file without an entry there is garbage; a
record is whole on disk before the table names it, and no byte of it is believed unverified; only the owner
of a segment appends to it, anybody may remove what is dead.
Not here: which object goes and when (`millpond.eviction`, the store), arena memory (the kernel).
"""
