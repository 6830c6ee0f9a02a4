"""The backend behind a client of this process, and faults of Chroma's in it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from chromadb.errors import InternalError


def backend_of(client):
    """Return what carries out the requests of a client."""
    return client.session.connection.engine.serving._opened[0]


@contextmanager
def failing_afterwards(client, method, message):
    """Let a method of Chroma's raise an error when it has done its work."""
    api = type(backend_of(client).api)
    real = getattr(api, method)

    def fail(*arguments, **named):
        real(*arguments, **named)
        raise InternalError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, method, fail)
        yield
