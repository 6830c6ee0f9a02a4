"""FastAPI: a lifespan that opens and closes the store, dependencies, a health route, errors as responses.

Needs the extra ``fastapi``. Importing this module does not import chromadb; the store's own thread does that.

A store that cannot be opened does not keep the application from starting: its server may be a moment late, or the process
that it replaces may still be closing. Until it is there, requests that need it and ``/health/chromadb`` are answered with 503,
``Retry-After`` and (health) the reason, the reason is logged, and opening is tried again with growing pauses. A wrong
configuration stops the application at once, and so does any reason with ``lifespan(..., required=True)``.

Example:
    >>> from fastapi import FastAPI
    >>> import aiochroma
    >>> from aiochroma.fastapi import MemoryDependency, install, lifespan
    >>> app = FastAPI(lifespan=lifespan(lambda: aiochroma.Memory("./memory")))
    >>> install(app)
    >>> @app.get("/recall")
    ... async def recall(question: str, memory: MemoryDependency) -> list[str]:
    ...     return [hit.text for hit in await memory.recall(question)]
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from aiochroma._clock import monotonic
from aiochroma._distribution import missing_extra
from aiochroma._errors import (
    AiochromaError,
    ClosedError,
    DatabaseInUseError,
    DeadlineExceededError,
    EmbeddingFailedError,
    InvalidInputError,
    OutcomeUnknownError,
    QueueFullError,
    StoreUnavailableError,
    shown,
)
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.client.options import check_flag, check_function
from aiochroma.memory.memory import Memory

try:
    from fastapi import APIRouter, Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads the annotation
    from starlette.routing import Mount
    from starlette.websockets import WebSocket, WebSocketState

    from aiochroma.fastapi.cancelling import CancellingRoute
except ImportError as _error:
    raise missing_extra("aiochroma.fastapi", "fastapi", _error.name) from _error

if TYPE_CHECKING:
    from starlette.types import HTTPExceptionHandler

    from aiochroma.client.client import AsyncClient
    from aiochroma.client.opening import ClientOpening

__all__ = [
    "CancellingRoute",
    "ClientDependency",
    "MemoryDependency",
    "get_client",
    "get_memory",
    "health_router",
    "install",
    "lifespan",
    "router",
    "store_of",
]

log: EventLogger = get_logger("aiochroma.fastapi")

A = TypeVar("A", bound=Starlette)
T = TypeVar("T")
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

_STATE = "aiochroma_store"
_LONGEST_PAUSE_SECONDS = 15.0
_DETAILS = ("owner", "last_error", "embedder", "chroma_version")
_RETRY_AFTER_SECONDS = 1
_SERVICE_UNAVAILABLE = 503


class _AppStore:
    """The store of an application: open, or with the reason why not and an attempt to come.

    Args:
        opening: Makes what is to be opened.
    """

    def __init__(self, opening: Callable[[], Memory | ClientOpening]) -> None:
        self.error: Exception | None = None
        self.retry_at = 0.0
        self._opening = opening
        self._store: Memory | AsyncClient | None = None
        self._stack = contextlib.AsyncExitStack()

    @property
    def store(self) -> Memory | AsyncClient:
        """The open store.

        Raises:
            StoreUnavailableError: Why it could not be opened.
        """
        if self.error is not None:
            # One of its own for each caller: they are raised at the same time, and each gets a traceback.
            raise StoreUnavailableError(str(self.error)) from self.error
        assert self._store is not None, "set when it was opened, and is not asked for before"
        return self._store

    async def open(self) -> None:
        """Open it; whatever that raises is kept as the reason, too."""
        try:
            self._store = await self._stack.enter_async_context(_context("opening", self._opening()))
        except Exception as error:
            self.error = error
            raise
        self.error = None

    async def keep_trying(self) -> None:
        """Return when it is open; try again with growing pauses."""
        failures = 0
        while True:
            with contextlib.suppress(Exception):  # The health route tells the reason.
                await self.open()
                log.info("store.available")
                return
            pause = min(0.5 * 2**failures, _LONGEST_PAUSE_SECONDS) + random.uniform(0, 0.5)  # noqa: S311 - not a secret
            self.retry_at = monotonic() + pause
            worker = _worker_that_has_it(self.error)
            if worker is None:
                log.error("store.unavailable", reason=self.error, next_attempt_seconds=round(pause, 1))
            elif not failures:  # Once is enough: it stays so until that one ends.
                log.error("store.in_use_by_worker", pid=worker)
            failures = min(failures + 1, 10)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Close it."""
        await self._stack.aclose()


def _context(name: str, made: T) -> T:
    """Return what a function of the application's made, which ``async with`` has to take.

    Raises:
        InvalidInputError: It does not.
    """
    if not hasattr(type(made), "__aenter__"):
        raise InvalidInputError(f"`{name}` must make what `async with` takes, and made {shown(made)}.")
    return made


def _worker_that_has_it(error: Exception | None) -> int | None:
    """Return the process that has the store open, if it was started by the same process as this one; else None."""
    if not isinstance(error, DatabaseInUseError) or error.pid is None or error.host != socket.gethostname():
        return None
    try:
        # Its parent is the second field after its name, which may hold anything. Other systems than Linux do not say it so.
        parent = int(Path(f"/proc/{error.pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
    # The first process adopts what has lost its parent.
    return error.pid if parent == os.getppid() != 1 else None


def lifespan(
    opening: Callable[[], Memory | ClientOpening], inner: Lifespan | None = None, *, required: bool = False
) -> Lifespan:
    """Return a lifespan that opens a store when the application starts and closes it when it ends.

    At the end the server has let the requests under way finish; what they have written is completed before the store closes.

    Args:
        opening: Makes what is to be opened: a :class:`aiochroma.Memory`, or what
            :func:`aiochroma.AsyncPersistentClient`, ``AsyncHttpClient`` or :func:`aiochroma.connect` return.
        inner: The application's own lifespan; runs inside, so it may use the store (see :func:`store_of`). What it yields is
            kept.
        required: Let the start of the application fail when the store cannot be opened, instead of answering with 503 until
            it can. Servers with several workers may start a worker that failed again and again.

    Raises:
        InvalidInputError: An argument is wrong; at the start, when ``opening`` or ``inner`` makes something else.

    Example:
        >>> app = FastAPI(lifespan=lifespan(lambda: Memory("./memory")))  # doctest: +SKIP
    """
    check_function("opening", opening, "a function that makes what is to be opened (`lambda: Memory(...)`)")
    check_flag("required", required)
    if inner is not None:
        check_function(
            "inner", inner, "a lifespan: a function of the application, with `@asynccontextmanager`"
        )
    # Without the decorator, as Starlette takes it.
    context = asynccontextmanager(inner) if inspect.isasyncgenfunction(inner) else inner

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[Any]:
        opened = _AppStore(opening)
        retrying: asyncio.Task[None] | None = None
        served = list(_with_mounted(app))
        for each in served:
            setattr(each.state, _STATE, opened)
            _answer_errors_as(app, each)
        try:
            try:
                await opened.open()
            except (StoreUnavailableError, DeadlineExceededError):
                if required:
                    raise
                retrying = asyncio.ensure_future(opened.keep_trying())
            async with contextlib.AsyncExitStack() as stack:
                yield (
                    None
                    if context is None
                    else await stack.enter_async_context(_context("inner", context(app)))
                )
        finally:
            if retrying is not None:
                retrying.cancel()
                await asyncio.wait([retrying])
            for each in served:
                delattr(each.state, _STATE)
            await opened.close()

    return running


def _with_mounted(app: Any) -> Iterator[Any]:
    """Return an application and those that are mounted below it, whose own lifespans no server runs."""
    yield app
    for route in app.routes:
        below = getattr(route, "app", None)
        if isinstance(route, Mount) and isinstance(below, Starlette):
            yield from _with_mounted(below)


def _answer_errors_as(app: Any, mounted: Any) -> None:
    """Turn the store's errors into responses in a mounted application, too, where :func:`install` did so above it."""
    for kind in _ANSWERS:
        if app.exception_handlers.get(kind) is _answer:
            mounted.exception_handlers.setdefault(kind, _answer)


def _application(app: object, kind: type[A]) -> A:
    if not isinstance(app, kind):
        raise InvalidInputError(f"`app` must be the {kind.__name__} application, got {shown(app)}.")
    return app


def store_of(app: FastAPI) -> Memory | AsyncClient:
    """Return what :func:`lifespan` opened: for the application's own lifespan, background tasks and tests.

    Applications that are mounted below one with such a lifespan, when it starts, have its store.

    Raises:
        ClosedError: The application has no such lifespan, or is not running.
        InvalidInputError: It is no application.
        StoreUnavailableError: The store could not be opened so far.
    """
    opened: _AppStore | None = getattr(_application(app, Starlette).state, _STATE, None)
    if opened is None:
        raise ClosedError(
            "No store is open: give the application `lifespan=aiochroma.fastapi.lifespan(...)`, and let the lifespan run "
            "(in tests: `with TestClient(app)`). No server runs the lifespan of an application that is mounted in another one: "
            "give it to the outermost application, whose store those have that are mounted before it starts."
        )
    return opened.store


def get_memory(connection: HTTPConnection) -> Memory:
    """Return the application's memory, for a request or a WebSocket; overridable in tests as any dependency.

    Raises:
        ClosedError: None is open, or the store is a client and not a memory.
        StoreUnavailableError: The store could not be opened so far.
    """
    store = store_of(connection.app)
    if not isinstance(store, Memory):
        raise ClosedError("The application's store is a client, not a memory; depend on `ClientDependency`.")
    return store


async def get_client(connection: HTTPConnection) -> AsyncClient:
    """Return the application's client, or that of its memory, for a request or a WebSocket.

    Raises:
        ClosedError: None is open.
        StoreUnavailableError: The store could not be opened so far.
    """
    store = store_of(connection.app)
    if not isinstance(store, Memory):
        return store
    with contextlib.suppress(ClosedError):
        client = store.client
        if not client.closed:
            return client
    # A memory that degrades starts without a client when its store is not available; any call opens it.
    error = (await store.namespaces()).error
    if error is not None:
        raise error
    return store.client


MemoryDependency = Annotated[Memory, Depends(get_memory)]
"""A parameter of this type receives the application's memory."""

if TYPE_CHECKING:
    ClientDependency = Annotated[AsyncClient, Depends(get_client)]
else:
    # FastAPI never looks at the type, and its module imports chromadb.
    ClientDependency = Annotated[Any, Depends(get_client)]
    """A parameter of this type receives the application's client."""


def health_router(*, details: bool = False) -> APIRouter:
    """Make a router with the route ``/health/chromadb``: 200 with the number of documents, 503 with the kind of error.

    Args:
        details: Tell also what is not for the public: the whole reason of a failure, with paths and process ids, who owns the
            directory, the last error, the embedder, and Chroma's version.
    """
    check_flag("details", details)
    made = APIRouter(tags=["health"])

    @made.get("/health/chromadb")
    async def health(request: Request) -> Response:
        """Tell how the store is: 200 with the number of documents, 503 with the reason."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        body: JsonObject
        reason: str | None
        try:
            state = await (await get_client(request)).health()
        except AiochromaError as error:
            body, reason = {"status": "unavailable"}, _described(error)
        else:
            reason = state.error
            body = {
                "status": state.status,
                "mode": state.mode,
                "documents": state.documents,
                "queue_depth": state.pending,
                "latency_ms": state.latency_ms,
            }
            if details:
                body |= {name: getattr(state, name) for name in _DETAILS}
        body["timestamp"] = now
        if reason is None:
            return JSONResponse(body)
        _report(request, reason)
        body["error"] = reason if details else reason.partition(":")[0]
        return _unavailable(request, body)

    return made


router: APIRouter = health_router()
"""Has the route ``/health/chromadb``, without details; see :func:`health_router`."""


_ANSWERS: dict[type[AiochromaError], tuple[int, str | None]] = {
    QueueFullError: (_SERVICE_UNAVAILABLE, "Too many requests are waiting for the store."),
    StoreUnavailableError: (_SERVICE_UNAVAILABLE, "The store is not available."),
    ClosedError: (_SERVICE_UNAVAILABLE, "The store is not open."),
    DeadlineExceededError: (504, "The store did not answer in time."),
    EmbeddingFailedError: (_SERVICE_UNAVAILABLE, "The embedder failed."),
    OutcomeUnknownError: (504, "The store gave no answer; what was to be written may or may not have been."),
    InvalidInputError: (422, None),
}
"""Status and text by error; None for the error's own text. The others' names paths, hosts and processes: they are logged."""


def install(app: FastAPI, *, details: bool = False) -> None:
    """Add the health route, and turn the store's errors into responses, also those of mounted applications.

    ``QueueFullError``, an unavailable store and an embedder that fails become 503 with ``Retry-After``; a deadline that passed
    and a write without an answer 504; wrong input 422. A WebSocket that has been accepted is closed with 1013 or 1011. What
    responses leave out, which is paths, hosts and process ids, is logged.

    Args:
        app: The application.
        details: Let the health route tell what is not for the public; see :func:`health_router`.

    Raises:
        InvalidInputError: It is no application, or ``details`` is no flag.
    """
    _application(app, FastAPI).include_router(health_router(details=details))
    for kind in _ANSWERS:
        app.add_exception_handler(kind, cast("HTTPExceptionHandler", _answer))


async def _answer(request: HTTPConnection, error: Exception) -> Response | None:
    """Answer a request, or a WebSocket; one that has been accepted can only be closed."""
    status, detail = next(answer for kind, answer in _ANSWERS.items() if isinstance(error, kind))
    body: JsonObject = {"error": _described(error).partition(":")[0], "detail": detail or str(error)}
    if isinstance(error, DeadlineExceededError):
        body["started"] = error.started
    if detail is not None:
        _report(request, _described(error))
    is_temporary = status == _SERVICE_UNAVAILABLE
    if isinstance(request, WebSocket) and request.application_state is WebSocketState.CONNECTED:
        await request.close(1013 if is_temporary else 1011, body["error"])  # Try again later; internal error.
        return None
    return _unavailable(request, body) if is_temporary else JSONResponse(body, status_code=status)


def _report(request: HTTPConnection, reason: str) -> None:
    opened: _AppStore | None = getattr(request.app.state, _STATE, None)
    # Why the store is not open is reported by what tries to open it.
    if opened is None or opened.error is None:
        log.warning("request.failed", path=request.url.path, error=reason)


def _described(error: Exception) -> str:
    # What `_AppStore.store` raises says less than its cause.
    cause = error.__cause__ if type(error) is StoreUnavailableError and error.__cause__ is not None else error
    return f"{type(cause).__name__}: {error}"


def _unavailable(request: HTTPConnection, body: JsonObject) -> Response:
    opened: _AppStore | None = getattr(request.app.state, _STATE, None)
    pause = opened.retry_at - monotonic() if opened is not None and opened.error is not None else 0.0
    seconds = max(_RETRY_AFTER_SECONDS, math.ceil(pause))
    return JSONResponse(body, status_code=_SERVICE_UNAVAILABLE, headers={"Retry-After": str(seconds)})
