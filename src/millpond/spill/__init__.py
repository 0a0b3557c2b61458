"""The disk side of a store: what spilled objects look like on disk, and how they get there and back.

`writer` cleans objects and streams values straight to disk, `reader` brings them back verified,
`directory` keeps the places they go to private and apart, `sweep` removes what nobody needs.
Not here: which object goes and when (`millpond.eviction`, the store), arena memory (the kernel).
"""
