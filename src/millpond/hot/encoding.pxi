# The stored value: a 16-byte head, what the kind needs, then the bytes.
#   head   u8 kind, u8 ndim, u8 order, u8 type number, u32 buffers, u64 in-band bytes
#   array  i64 shape[ndim]; data from the next multiple of 64
#   pickle {u64 offset, u64 length} for each buffer, the in-band bytes; buffers at multiples of 64;
#          order 1: the value contains refs
#   buffer data from byte 64; the in-band field holds its length
# Everything read back is checked against the size of the object: the arena is shared memory.

cdef enum:
    KIND_ARRAY = 1
    KIND_PICKLE = 2
    KIND_BUFFER = 3
    HEAD = 16
    ALIGN = 64
    NOGIL_BYTES = 65536
    INBAND_BYTES = 512
    FRAME_MAX = 65536 # the pickler puts larger payloads outside of its frames
    INBAND_COPY_MAX = 16384 # a copy of so few bytes costs less than a view
    AS_BYTES = 2 # in the place of `copy`: the stored bytes themselves, whatever they are

cdef struct Head:
    uint8_t kind
    uint8_t ndim
    uint8_t order
    uint8_t typenum
    uint32_t buffers
    uint64_t inband

# Out of band, a buffer costs a descriptor and up to 63 bytes of alignment, and its value must stay
# pinned as long as it lives. Below this size that is more than a sixth of the buffer, while copying
# it twice takes less time than building one view; and a value without buffers needs no pin.
INBAND_MAX = INBAND_BYTES

cdef char *MAIN_NAME = b"\x8c\x08__main__" # how a pickle spells the running program's module
cdef object _pickle = pickle.dumps
cdef object _wants_care = None # of a long pickle; these four are store.serialize's
cdef object _careful = None
cdef object _loads = None
cdef object _copy_private = None


STORED_BYTES = AS_BYTES


def set_pickle(dumps):
    """Installs what stands for `pickle.dumps` here: `dumps(value, 5, buffer_callback=...)`, bytes."""
    global _pickle
    _pickle = dumps


def set_serializer(wants_care, careful, loads, copy_private):
    """Installs what turns values into (in-band bytes, buffers) where plain pickle does not do, and back."""
    global _wants_care, _careful, _loads, _copy_private
    _wants_care, _careful, _loads, _copy_private = wants_care, careful, loads, copy_private


@cython.final
@cython.freelist(8)
cdef class OutOfBand:
    """A buffer_callback that collects buffers, and leaves small ones in the pickle."""

    cdef list buffers

    def __call__(self, buffer):
        cdef object view = buffer.raw()
        # A small read-only one would be loaded as immutable bytes, which get(copy=True) could not thaw.
        if view.nbytes < INBAND_BYTES and not view.readonly:
            return True
        if self.buffers is None:
            self.buffers = []
        self.buffers.append(view)
        return False

    @property
    def collected(self):
        """The buffers so far: contiguous memoryviews of bytes."""
        return [] if self.buffers is None else self.buffers


def dumps(value):
    """(in-band bytes, out-of-band buffers) of any picklable value.

    Plain pickle 5 where it does; else store.serialize's careful way. The buffers are views of the value's
    memory: copy them before the value changes. Raises SerializationError naming the part that cannot be
    pickled; KeyboardInterrupt, MemoryError and the like pass through.
    """
    cdef OutOfBand out = OutOfBand.__new__(OutOfBand)
    cdef bytes inband
    try:
        inband = _pickle(value, 5, buffer_callback=out)
        if PyBytes_GET_SIZE(inband) < FRAME_MAX:
            careful = memmem(PyBytes_AS_STRING(inband), PyBytes_GET_SIZE(inband), MAIN_NAME, 10) != NULL
        else:
            careful = _wants_care(inband)
        if not careful:
            return inband, out.collected
    except MemoryError:
        raise
    except Exception:
        pass # cloudpickle may know how, and else says why not
    return _careful(value)


cdef inline uint64_t align_up(uint64_t n) noexcept nogil:
    return (n + ALIGN - 1) & ~<uint64_t>(ALIGN - 1)


cdef inline bint plain_array(object value):
    """An exact ndarray of a builtin number type in native byte order: stored without pickle."""
    if type(value) is not cnp.ndarray:
        return False
    cdef int typenum = cnp.PyArray_TYPE(value)
    if typenum > 16 and typenum != 23:
        return False
    return PyArray_DescrFromType(typenum) is (<cnp.ndarray>value).dtype


@cython.final
cdef class Encoded:
    """A value on its way into the store: `size` bytes, as a prefix and buffers at known offsets."""

    cdef readonly uint64_t size
    cdef readonly bytes prefix
    cdef readonly list buffers
    cdef list offsets
    cdef list refs     # that the value contains, or None

    cdef void write(self, uint8_t *target) except *:
        """Copies the value into `size` bytes of arena; gaps are zeroed."""
        cdef uint64_t at = PyBytes_GET_SIZE(self.prefix), start
        memcpy(target, PyBytes_AS_STRING(self.prefix), at)
        for buffer, offset in zip(self.buffers, self.offsets):
            start = offset
            memset(target + at, 0, start - at)
            at = start + copy_buffer(target + start, buffer)

    def parts(self):
        """The pieces of the value in order, gaps included: for a write that never sees the arena."""
        cdef uint64_t at = PyBytes_GET_SIZE(self.prefix)
        pieces = [self.prefix]
        for buffer, offset in zip(self.buffers, self.offsets):
            if offset > at:
                pieces.append(bytes(offset - at))
            view = memoryview(buffer).cast("B") if len(memoryview(buffer).shape) else memoryview(buffer)
            pieces.append(view)
            at = offset + view.nbytes
        return pieces


cdef uint64_t copy_buffer(uint8_t *target, object buffer) except? 0:
    cdef Py_buffer b
    cdef uint64_t n
    PyObject_GetBuffer(buffer, &b, PyBUF_SIMPLE)
    n = b.len
    if n >= NOGIL_BYTES:
        with nogil:
            memcpy(target, b.buf, n)
    else:
        memcpy(target, b.buf, n)
    PyBuffer_Release(&b)
    return n


cdef tuple pack(Core core, object value):
    """(in-band bytes, buffers, contained refs or None)."""
    global packing_now
    cdef mp_packing packing
    cdef mp_packing *outer = packing_now
    packing.core = <PyObject *>core
    packing.refs = NULL
    packing_now = &packing
    try:
        inband, buffers = dumps(value)
        return inband, buffers, <object>packing.refs if packing.refs != NULL else None
    finally:
        packing_now = outer
        Py_XDECREF(packing.refs)


cdef Encoded encode_pickle(Core core, object value):
    cdef Encoded e = Encoded.__new__(Encoded)
    cdef Head head
    cdef uint64_t at, n
    cdef bytes inband
    inband, e.buffers, e.refs = pack(core, value)
    e.offsets = []
    memset(&head, 0, sizeof(head))
    head.kind = KIND_PICKLE
    head.order = e.refs is not None
    head.buffers = len(e.buffers)
    head.inband = PyBytes_GET_SIZE(inband)
    at = HEAD + 16 * <uint64_t>head.buffers + head.inband
    if head.buffers == 0:
        e.prefix = PyBytes_FromStringAndSize(<char *>&head, HEAD) + inband
        e.size = at
        return e
    table = []
    for buffer in e.buffers:
        at = align_up(at)
        n = memoryview(buffer).nbytes
        e.offsets.append(at)
        table.append(struct.pack("<QQ", at, n))
        at += n
    e.prefix = PyBytes_FromStringAndSize(<char *>&head, HEAD) + b"".join(table) + inband
    e.size = at
    return e


cdef uint64_t array_head(cnp.ndarray a, Head *head, bint fortran) noexcept:
    """Fills the head; returns where the data starts."""
    memset(head, 0, sizeof(Head))
    head.kind = KIND_ARRAY
    head.ndim = cnp.PyArray_NDIM(a)
    head.order = c"F" if fortran else c"C"
    head.typenum = cnp.PyArray_TYPE(a)
    return align_up(HEAD + 8 * <uint64_t>head.ndim)


cdef inline bint is_fortran(cnp.ndarray a) noexcept:
    return cnp.PyArray_IS_F_CONTIGUOUS(a) and not cnp.PyArray_IS_C_CONTIGUOUS(a)


cdef void write_array_prefix(uint8_t *target, cnp.ndarray a, Head *head, uint64_t start) noexcept:
    cdef uint64_t at = HEAD + 8 * <uint64_t>head.ndim
    memcpy(target, head, HEAD)
    memcpy(target + HEAD, cnp.PyArray_DIMS(a), 8 * <size_t>head.ndim)
    memset(target + at, 0, start - at)


cdef void write_array(uint8_t *target, cnp.ndarray a, Head *head, uint64_t start) except *:
    cdef size_t n = cnp.PyArray_NBYTES(a)
    cdef const char *data = cnp.PyArray_BYTES(a)
    write_array_prefix(target, a, head, start)
    if cnp.PyArray_IS_C_CONTIGUOUS(a) or head.order == c"F":
        if n >= NOGIL_BYTES:
            with nogil:
                memcpy(target + start, data, n)
        else:
            memcpy(target + start, data, n)
    else:
        copy = cnp.PyArray_SimpleNewFromData(head.ndim, cnp.PyArray_DIMS(a), head.typenum, target + start)
        PyArray_CopyInto(copy, a)


cdef Encoded encode_array(cnp.ndarray a):
    """The same as an Encoded, for an array that goes straight to disk."""
    cdef Encoded e = Encoded.__new__(Encoded)
    cdef Head head
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) and not is_fortran(a):
        a = np.ascontiguousarray(a)
    cdef uint64_t start = array_head(a, &head, is_fortran(a))
    cdef bytes prefix = PyBytes_FromStringAndSize(NULL, start)
    write_array_prefix(<uint8_t *>PyBytes_AS_STRING(prefix), a, &head, start)
    e.prefix = prefix
    flat = a.T if head.order == c"F" else a
    e.buffers = [memoryview(flat.reshape(-1)).cast("B")] if a.size else []
    e.offsets = [start] if a.size else []
    e.size = start + cnp.PyArray_NBYTES(a)
    return e


cdef object damaged(uint64_t size):
    return errors.StoreCorruptedError(
        f"a stored value of {size} bytes has an impossible header: native code wrote into the arena"
    )


def item_bytes(value):
    """Bytes of one item of a stored array, 8 for a pickle with buffers, which are arrays as a rule, 1 else.

    `value`: the stored bytes, from the first on, at least a head. Whatever they are, the answer is 1 to 255.
    """
    cdef Py_buffer b
    cdef Head head
    memset(&head, 0, HEAD)
    PyObject_GetBuffer(value, &b, PyBUF_SIMPLE)
    if b.len >= HEAD:
        memcpy(&head, b.buf, HEAD)
    PyBuffer_Release(&b)
    if head.kind == KIND_ARRAY and (head.typenum <= 16 or head.typenum == 23):
        return PyArray_DescrFromType(head.typenum).itemsize
    return 8 if head.kind == KIND_PICKLE and head.buffers else 1


cdef object build(object owner, const uint8_t *p, uint64_t size, int copy):
    """The value over `size` bytes at p, which `owner` keeps in place (a buffer exporter of them)."""
    cdef Head head
    if copy == AS_BYTES:
        return memoryview(owner)
    if size < HEAD:
        raise damaged(size)
    memcpy(&head, p, HEAD)
    if head.kind == KIND_ARRAY:
        return build_array(owner, p, size, &head, copy)
    if head.kind == KIND_PICKLE:
        return build_pickle(owner, p, size, &head, copy)
    if head.kind == KIND_BUFFER and size >= ALIGN and head.inband <= size - ALIGN:
        if copy:
            return bytearray(PyMemoryView_FromMemory(<char *>p + ALIGN, head.inband, PyBUF_CONTIG_RO))
        return memoryview(owner)[ALIGN:ALIGN + head.inband].toreadonly()
    raise damaged(size)


cdef object build_array(object owner, const uint8_t *p, uint64_t size, Head *head, bint copy):
    cdef uint64_t start = align_up(HEAD + 8 * <uint64_t>head.ndim), items = 1, dimension
    cdef bint empty = False
    cdef cnp.npy_intp dims[64]
    cdef cnp.ndarray a
    cdef int i
    if head.ndim > 64 or start > size or (head.typenum > 16 and head.typenum != 23):
        raise damaged(size)
    memcpy(dims, p + HEAD, 8 * <size_t>head.ndim)
    for i in range(head.ndim):
        empty = empty or dims[i] == 0 # then the others may be anything that numpy takes
    for i in range(head.ndim):
        dimension = <uint64_t>dims[i]
        if dims[i] < 0 or (not empty and (dimension > size or items > size // dimension)):
            raise damaged(size)
        items = 0 if empty else items * dimension
    if items > size - start:
        raise damaged(size)
    if empty:
        a = empty_array(dims, size, head)
    else:
        a = cnp.PyArray_SimpleNewFromData(head.ndim, dims, head.typenum, <void *>(p + start))
    if <uint64_t>cnp.PyArray_NBYTES(a) > size - start:
        raise damaged(size)
    if head.order == c"F":
        a = np.ndarray(tuple([dims[i] for i in range(head.ndim)]), a.dtype, a, 0, None, "F")
    if copy:
        return a.copy("K")
    PyArray_CLEARFLAGS(a, cnp.NPY_ARRAY_WRITEABLE)
    if cnp.get_array_base(a) is None:
        cnp.set_array_base(a, owner)
        return a
    return fortran_view(owner, p + start, a)


cdef cnp.ndarray empty_array(cnp.npy_intp *dims, uint64_t size, Head *head):
    """An array without items: nothing bounds its other dimensions but what numpy takes."""
    try:
        return cnp.PyArray_SimpleNew(head.ndim, dims, head.typenum)
    except ValueError:
        raise damaged(size)


cdef object fortran_view(object owner, const uint8_t *data, cnp.ndarray like):
    cdef object whole = memoryview(owner)
    cdef uint64_t offset = data - address_of(whole)
    return np.ndarray(tuple([like.shape[i] for i in range(like.ndim)]), like.dtype, whole, offset, None, "F")


cdef const uint8_t *address_of(object buffer) except NULL:
    cdef Py_buffer b
    cdef const uint8_t *p
    PyObject_GetBuffer(buffer, &b, PyBUF_CONTIG_RO)
    p = <const uint8_t *>b.buf
    PyBuffer_Release(&b)
    return p


def layout(stored, uint64_t size):
    """(kind, in-band bytes, sizes of the buffers) of a stored value of `size` bytes, or of its beginning.

    kind: "array", "pickle" or "buffer"; only a pickle has in-band bytes. Raises StoreCorruptedError.
    """
    cdef Head head
    cdef uint64_t at
    view = memoryview(stored)
    if size < HEAD or view.nbytes < HEAD:
        raise damaged(size)
    memcpy(&head, PyBytes_AS_STRING(bytes(view[:HEAD])), HEAD)
    at = align_up(HEAD + 8 * <uint64_t>head.ndim)
    if head.kind == KIND_ARRAY and at <= size:
        return "array", b"", [size - at]
    if head.kind == KIND_BUFFER:
        return "buffer", b"", [head.inband]
    at = HEAD + 16 * <uint64_t>head.buffers
    if head.kind != KIND_PICKLE or at > <uint64_t>view.nbytes or head.inband > <uint64_t>view.nbytes - at:
        raise damaged(size)
    sizes = [length for _, length in struct.iter_unpack("<QQ", view[HEAD:at])]
    return "pickle", bytes(view[at:at + head.inband]), sizes


cdef object build_pickle(object owner, const uint8_t *p, uint64_t size, Head *head, bint copy):
    cdef uint64_t at = HEAD + 16 * <uint64_t>head.buffers, offset, length
    cdef uint64_t entry[2]
    cdef uint32_t i
    if at > size or head.inband > size - at:
        raise damaged(size)
    inband = PyMemoryView_FromMemory(<char *>p + at, head.inband, PyBUF_CONTIG_RO)
    if head.buffers == 0:
        return _copy_private(inband, []) if copy else _loads(inband, [])
    whole = memoryview(owner)
    buffers = []
    for i in range(head.buffers):
        memcpy(entry, p + HEAD + 16 * i, 16)
        offset, length = entry[0], entry[1]
        if offset > size or length > size - offset:
            raise damaged(size)
        buffers.append(whole[offset:offset + length])
    return _copy_private(inband, buffers) if copy else _loads(inband, buffers)
