"""The kernel's lock-free protocols as small programs, explored in every interleaving.

`machine` runs programs under two memory models; `protocols`, `pins`, `waits`, `slots`, `orphans`,
`names`, `holds`, `moving`, `files`, `segments` and `rewrites` have what the kernel does, step by step;
`scenarios` what must never come of it; `mutants` the same with one step weakened or moved: each must be
found out.
Not here: the kernel itself (it is tested in `tests/kernel`), operations of a single hold of the mutex.
"""
