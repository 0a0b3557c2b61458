"""Plasma's errors: each is also Millpond's error for the situation, and pyarrow's if that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond.errors import AttachError, MillpondError, ObjectNotFoundError, StoreFullError

if TYPE_CHECKING:

    class ArrowException(Exception):
        """The base of pyarrow's errors."""
else:
    try:
        from pyarrow.lib import ArrowException
    except ImportError:

        class ArrowException(Exception):
            """Stands for the base of pyarrow's errors, which is not installed."""


class PlasmaObjectExists(MillpondError, ValueError, ArrowException):
    """There is an object with that id already. The caller's fault."""


class PlasmaObjectNotFound(ObjectNotFoundError, ArrowException):
    """There is no object with that id, or it is not sealed."""


class PlasmaObjectSealed(MillpondError, TypeError, ArrowException):
    """The object is sealed already. The caller's fault."""


class PlasmaStoreFull(StoreFullError, ArrowException):
    """No room: the object is larger than the store, or too much of it is in use."""


class PlasmaConnectionError(AttachError, ConnectionError):
    """No store of that name could be joined."""
