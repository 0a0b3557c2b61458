# cython: language_level=3, boundscheck=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""The Cython face of the kernel, and the hot path: refs, views, get and put without an interpreted step.

Invariants: a View is one pin and lives as long as anything built over its bytes; an ObjectRef is
one local count; nothing touches the mappings of a store once it is closed and its last view is gone.
Calls that may wait for the store's mutex run without the GIL. What is slow (no room, spilled, not
sealed) is left to the methods `_put_slow` and `_get_slow` of the subclass.
Not here: files, policy, waiting (store/), the spill loops' decisions (spill/).
"""

import os
import pickle
import struct
import sys
import weakref

import numpy as np

from millpond import errors

cimport cython
cimport numpy as cnp
from cpython.buffer cimport (
    PyBUF_CONTIG_RO, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen
from millpond.kernel_api cimport *

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    void PyArray_CLEARFLAGS(cnp.ndarray, int) nogil
    cnp.dtype PyArray_DescrFromType(int)
    int PyArray_CopyInto(cnp.ndarray, cnp.ndarray) except -1

cdef extern from "string.h" nogil:
    size_t strnlen(const char *, size_t)

cdef extern from "stdatomic.h" nogil:
    int64_t atomic_add "__atomic_add_fetch"(int64_t *, int64_t, int)
    int64_t atomic_get "__atomic_load_n"(int64_t *, int)
    bint atomic_swap_if "__atomic_compare_exchange_n"(uint32_t *, uint32_t *, uint32_t, bint, int, int)
    int ACQ_REL "__ATOMIC_ACQ_REL"
    int ACQUIRE "__ATOMIC_ACQUIRE"

cdef extern from *:
    """
    /* An object, or NULL and MemoryError: looked at after what must be done in both cases. */
    #define mp_checked(object) (object)
    """
    PyObject *bytes_or_null "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    object checked "mp_checked"(PyObject *)

cdef extern from *:
    """
    /* For counts that only holders of the GIL change; without a GIL they are atomic. */
    #ifdef Py_GIL_DISABLED
    #define mp_count_add(count, n) __atomic_add_fetch(count, n, __ATOMIC_ACQ_REL)
    #else
    #define mp_count_add(count, n) (*(count) += (n))
    #endif
    """
    int64_t count_add "mp_count_add"(int64_t *, int64_t)

cdef extern from *:
    """
    /* What the pickling of this thread is for, innermost first: a ref asks it. */
    typedef struct mp_packing {
        PyObject *core; /* the store that the value is put into */
        PyObject *refs; /* list of the refs that were found, or NULL */
    } mp_packing;
    static __thread mp_packing *packing_now;
    static __thread int weak_depth;
    """
    ctypedef struct mp_packing:
        PyObject *core
        PyObject *refs
    mp_packing *packing_now
    int weak_depth

cdef extern from "<string.h>" nogil:
    void *memmem(const void *, size_t, const void *, size_t)

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, int64_t offset)

cdef extern from "atfork.h" nogil:
    int mp_atfork_add(mp_member *m)
    void mp_atfork_remove(mp_member *m)

include "hot/encoding.pxi"
include "hot/refs.pxi"
include "hot/private.pxi"
include "hot/drafts.pxi"
include "hot/member.pxi"
include "hot/core.pxi"
include "hot/queue.pxi"
include "hot/spill.pxi"
include "hot/restore.pxi"
include "hot/places.pxi"
include "hot/descriptor.pxi"
