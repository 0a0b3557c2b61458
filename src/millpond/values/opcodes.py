"""The opcodes of pickle protocol 5: what each takes, what it pushes; what the functions in a pickle build.

Not here: the stack machines that run over them (anatomy.py, skim.py).
"""

from __future__ import annotations

import pickletools

__all__ = ["ARGUMENT_BYTES", "BUILT_BY", "CODES", "GIVEN_THE_TYPE", "KINDS", "built_kind", "end_of"]

CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_ATOMS = {
    "NoneType": "NONE",
    "bool": "NEWTRUE NEWFALSE",
    "int": "BININT BININT1 BININT2 LONG1 LONG4",
    "float": "BINFLOAT",
    "str": "SHORT_BINUNICODE BINUNICODE BINUNICODE8",
    "bytes": "SHORT_BINBYTES BINBYTES BINBYTES8",
    "bytearray": "BYTEARRAY8",
    "list": "EMPTY_LIST",
    "dict": "EMPTY_DICT",
    "set": "EMPTY_SET",
    "tuple": "EMPTY_TUPLE",
    "global": "EXT1 EXT2 EXT4",
}
KINDS = {CODES[name]: kind for kind, names in _ATOMS.items() for name in names.split()}
"""The opcodes that push a value by themselves, and its type."""

ARGUMENT_BYTES = {ord(code.code): 0 if code.arg is None else code.arg.n for code in pickletools.opcodes}
"""Bytes behind each opcode; below 0: they begin with their length."""
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def end_of(data: bytes, at: int) -> int:
    """Where the opcode at `at` ends, its argument included."""
    argument = ARGUMENT_BYTES[data[at]]
    if argument >= 0:
        return at + 1 + argument
    start = at + 1 + _LENGTH_BYTES[argument]
    return start + int.from_bytes(data[at + 1 : start], "little")


BUILT_BY = {
    "numpy._core.numeric._frombuffer": "ndarray",
    "numpy.core.numeric._frombuffer": "ndarray",
    "millpond.values.serialize.rebuild_array": "ndarray",
    "millpond.hot.load_contained": "ObjectRef",
    "cloudpickle.cloudpickle._make_function": "function",
    "cloudpickle.cloudpickle.subimport": "module",
    "collections.deque": "deque",
    "collections.defaultdict": "defaultdict",
    "numpy.dtype": "dtype",
}
"""Functions that build a value for its type, and what the value then is."""
GIVEN_THE_TYPE = {
    "numpy._core.multiarray._reconstruct": 0,
    "numpy.core.multiarray._reconstruct": 0,
    "copyreg._reconstructor": 0,
    "cloudpickle.cloudpickle._builtin_type": 0,
    "cloudpickle.cloudpickle._make_skeleton_class": 1,
}
"""Functions that are given the type instead, and as which of their arguments."""


def built_kind(called: str) -> str:
    """What a callable builds, as a kind: classes begin with a capital letter, as a rule."""
    name = called.rpartition(".")[2]
    return BUILT_BY.get(called) or (name if name[:1].isupper() else f"{name}()" if name else "object")
