"""Plasma's Python API, as pyarrow 11 had it, over a store that needs no server.

`import millpond.integrations.plasma as plasma` in place of `import pyarrow.plasma as plasma`. An object is
`data_size` bytes and some metadata under an id of 20 bytes; in the store it is a buffer with a name
(client.py says which). pyarrow is not needed; where it is installed, buffers are `pyarrow.Buffer` and
errors are also `pyarrow.lib.ArrowException`.
Not here, and not anywhere: what only C++ can use (`to_capsule`, the TensorFlow operator), quotas of
clients.
"""

from millpond.integrations.plasma.buffers import PlasmaBuffer
from millpond.integrations.plasma.client import PlasmaClient, connect
from millpond.integrations.plasma.errors import (
    PlasmaConnectionError,
    PlasmaObjectExists,
    PlasmaObjectNotFound,
    PlasmaObjectSealed,
    PlasmaStoreFull,
)
from millpond.integrations.plasma.ids import ObjectID, ObjectNotAvailable
from millpond.integrations.plasma.keeper import start_plasma_store

__all__ = [
    "ObjectID",
    "ObjectNotAvailable",
    "PlasmaBuffer",
    "PlasmaClient",
    "PlasmaConnectionError",
    "PlasmaObjectExists",
    "PlasmaObjectNotFound",
    "PlasmaObjectSealed",
    "PlasmaStoreFull",
    "connect",
    "start_plasma_store",
]
