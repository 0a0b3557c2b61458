"""The log "millpond": what goes wrong where nobody can be told by an exception.

Python's `logging` is imported with the first message: it takes a tenth of what `import millpond` adds to
`import numpy`, and most processes have nothing to say.
Not here: what to do about it (the caller).
"""

from __future__ import annotations

__all__ = ["exception", "warning"]

NAME = "millpond"
CALLER = 2
"""The frame whose line the log shows: the one that calls a function of this module."""


def warning(message: str, *args: object) -> None:
    """Something went wrong, and what is done instead."""
    import logging

    logging.getLogger(NAME).warning(message, *args, stacklevel=CALLER)


def exception(message: str, *args: object) -> None:
    """The same, with the traceback of the exception that is being handled."""
    import logging

    logging.getLogger(NAME).exception(message, *args, stacklevel=CALLER)
