"""The same classes for callers without an event loop: scripts, threads, Streamlit.

No event loop runs behind these: the coroutines of the asynchronous classes run on the calling thread, which blocks where they
would wait. They may be used from any number of threads at once, beside asynchronous clients of the same directory, and refuse to
run on a thread whose event loop would stand still (:class:`aiochroma.BlockingCallError`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ParamSpec

from aiochroma._threads import drive
from aiochroma.client import opening as _opening
from aiochroma.memory.blocking import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiochroma.client.client import BlockingClient

__all__ = ["EphemeralClient", "HttpClient", "Memory", "PersistentClient", "connect"]

P = ParamSpec("P")


def _blocking(opener: Callable[P, _opening.ClientOpening], name: str) -> Callable[P, BlockingClient]:
    """Make the blocking form of what opens a client: same arguments and errors; returns the open client."""

    def open_client(*values: P.args, **arguments: P.kwargs) -> BlockingClient:
        client = drive(opener(*values, **arguments).open())
        # Not before the DB thread has imported chromadb.
        from aiochroma.client.client import BlockingClient

        return BlockingClient(client)

    open_client.__name__ = open_client.__qualname__ = name
    open_client.__doc__ = (
        f"The blocking form of :func:`aiochroma.{opener.__name__}`: same arguments and errors.\n\n"
        "It returns the open client, which is of Chroma's own class, so other libraries take it. Use it with ``with``, or\n"
        "``close`` it.\n"
    )
    signature = inspect.signature(opener).replace(return_annotation="BlockingClient")
    open_client.__signature__ = signature  # type: ignore[attr-defined] # read by `inspect.signature` and `help`
    return open_client


PersistentClient = _blocking(_opening.AsyncPersistentClient, "PersistentClient")
EphemeralClient = _blocking(_opening.AsyncEphemeralClient, "EphemeralClient")
HttpClient = _blocking(_opening.AsyncHttpClient, "HttpClient")
connect = _blocking(_opening.connect, "connect")
