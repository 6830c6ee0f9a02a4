"""A Chroma server, reached by Chroma's own synchronous HTTP interface; called from the connection threads.

Chroma's asynchronous client is not used: it keeps its connections by event loop, so two clients in one loop send the
first one's headers, and it never closes them. Each backend here has a transport of its own, whose headers are set once.
They are kept out of Chroma's settings, which anybody may print.
"""

from __future__ import annotations

import ssl
import threading
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiochroma._clock import monotonic
from aiochroma._errors import AiochromaError, InvalidInputError
from aiochroma._logging import EventLogger, get_logger
from aiochroma.backend.chroma import chroma_settings
from aiochroma.backend.chroma_records import ChromaRecords, read_records, server_api
from aiochroma.backend.protocol import BackendInfo, Capabilities, FailedCall, call_repeatedly
from aiochroma.backend.server import (
    Access,
    Answer,
    described,
    examine,
    explained,
    fault_of,
    is_loopback,
    proxy_secrets,
)
from aiochroma.core.operations import Effect, Lane, Result
from aiochroma.core.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from chromadb.api import ServerAPI
    from chromadb.config import System

    from aiochroma.backend.protocol import ServerOperations
    from aiochroma.core.config import EngineOptions, Location

__all__ = ["HttpBackend"]

log: EventLogger = get_logger("aiochroma.backend")

_limits: ContextVar[tuple[float | None, bool]] = ContextVar("limits", default=(None, False))
"""What is known of the call being made: when its last caller stops waiting, and whether it only reads."""

_received: ContextVar[httpx.Response | None] = ContextVar("received", default=None)
"""The last answer that came for the call being made."""

_ATTEMPTS = 6
"""With their pauses they take a little more than three seconds: enough for a server to restart."""

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0
_SHORTEST_READ_SECONDS = 0.05
_COUNTS_AT_ONCE = 32
_DROPS = frozenset({Effect.DROPS_COLLECTION, Effect.DROPS_ALL})


class HttpBackend:
    """A Chroma server that is in use, connected to when the object is made, on the serving thread.

    Args:
        location: The server's address.
        options: How it is used.
        make_operations: Makes the operations that Chroma does not have.

    Raises:
        InvalidInputError: The file of certificates cannot be read.
        StoreUnavailableError: The server cannot be reached, or does not answer as Chroma does.
        AccessDeniedError: It did not accept the token.

    Attributes:
        max_batch_size: How many records the server takes in one call.
    """

    def __init__(
        self,
        location: Location,
        options: EngineOptions,
        make_operations: Callable[[ServerAPI, EngineOptions], ServerOperations],
    ) -> None:
        self._url = location.url
        self._make_operations = make_operations
        self._options = options
        access = options.access or Access()
        self._access = replace(access, secrets=(*access.secrets, *proxy_secrets()))
        self._attempts = options.attempts or _ATTEMPTS
        self._stopped = threading.Event()
        self._counts: dict[str, int] = {}
        self._connect()
        try:
            self.max_batch_size: int = int(self.execute(Request("get_max_batch_size", {})))
        except BaseException:
            self.close()
            raise

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return Capabilities(parallel_calls=True)

    def describe(self) -> BackendInfo:
        """See :class:`aiochroma.backend.protocol.Backend`; the settings are without headers and credentials."""
        return BackendInfo(self.capabilities, self._system.settings)

    def execute(self, request: Request, deadline: float | None = None) -> Any:
        """Carry out one call and return Chroma's result.

        Args:
            request: The call.
            deadline: The moment (``monotonic()``) after which the result is no longer awaited. A read is then given up, a
                write that was sent completes.

        Raises:
            StoreUnavailableError: The server cannot be reached; nothing was changed.
            AccessDeniedError: It did not accept the token.
            OutcomeUnknownError: A write was sent, and no answer came.
        """

        def retrying(attempt: int, fault: FailedCall) -> None:
            log.info(
                "request.repeated",
                server=self._url,
                operation=request.operation,
                attempt=attempt,
                error=f"{type(fault.cause).__name__}: {fault.cause}",
            )

        try:
            return call_repeatedly(
                lambda: self._once(request, deadline),
                repeatable=request.row.may_be_repeated(request.arguments),
                attempts=self._attempts,
                deadline=deadline,
                stopped=self._stopped,
                on_retry=retrying,
            )
        except FailedCall as fault:
            raise explained(fault, request, self._url, self._access) from fault.cause

    def stop_retrying(self) -> None:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        self._stopped.set()

    def close(self) -> None:
        """Close all connections."""
        self._further.close()
        self._session.close()
        self._system.stop()

    def _once(self, request: Request, deadline: float | None) -> Any:
        _limits.set((deadline, request.lane is Lane.READ))
        try:
            result = self._carried_out(request)
            _check_form(request, result)
        except Exception as error:
            response = _received.get()
            fault = fault_of(error)
            if fault is None and response is not None:
                fault = _misread(error, response, self._access)
            if fault is None:
                raise
            raise fault from error
        finally:
            _received.set(None)
        return result

    def _carried_out(self, request: Request) -> Any:
        if request.lane in {Lane.CATALOG, Lane.BARRIER}:
            self._further.collections_changed(renamed=request.row.renames)
        own = self._own.get(request.operation)
        if own is not None:
            return own(**request.arguments)
        if request.row.result in {Result.RECORDS, Result.ROWS}:
            return read_records(self._api, request)
        if request.lane is not Lane.WRITE and request.row.effect not in _DROPS:
            return getattr(self._api, request.operation)(**request.arguments)
        try:
            return getattr(self._api, request.operation)(**request.arguments)
        finally:
            self._further.after_write(request)

    def _examine(self, response: httpx.Response) -> None:
        _received.set(response)
        examine(response, self._access)

    def _connect(self) -> None:
        settings = chroma_settings(
            self._options.settings, is_persistent=False, chroma_api_impl="chromadb.api.fastapi.FastAPI"
        )
        from chromadb.config import System

        parts = urlsplit(self._url)
        settings.chroma_server_host, settings.chroma_server_http_port = self._url, parts.port
        settings.chroma_server_ssl_enabled = parts.scheme == "https"
        settings.chroma_server_headers = None
        verify = settings.chroma_server_ssl_verify
        # Only a context is accepted without a warning of deprecation; Chroma hands on whatever it finds here. Without TLS it is
        # an empty one: else httpx reads certificates, and fails where the environment names a file of them that is not there.
        uses_tls = parts.scheme == "https"
        self._verify = self._tls_context(verify) if uses_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        settings.chroma_server_ssl_verify = self._verify  # type: ignore[assignment]
        if self._access.secrets and not uses_tls and not is_loopback(str(parts.hostname)):
            log.warning(
                "server.unencrypted_credentials",
                server=self._url,
                hint="headers travel in the clear; use TLS",
            )
        self._system = System(settings)
        self._api: Any = _api_without_proxies(self._system)
        self._further = self._make_operations(self._api, self._options)
        self._own: dict[str, Callable[..., Any]] = {
            "count_documents": self._count_documents,
            "reopen": self._reopen,
            **self._further.operations(),
        }
        self._system.start()
        settings.chroma_server_ssl_verify = self._access.ca_file or verify
        settings.chroma_client_auth_credentials = None
        self._prepare_session()

    def _prepare_session(self) -> None:
        """Put a transport of our own in the place of Chroma's: with time limits, and with headers that no settings show."""
        import httpx

        options, parts = self._options, urlsplit(self._url)
        try:
            self._session = httpx.Client(
                timeout=httpx.Timeout(
                    options.read_timeout or _READ_SECONDS, connect=options.connect_timeout or _CONNECT_SECONDS
                ),
                limits=self._api.http_limits,
                verify=self._verify,
                # What the environment says of proxies is for other machines.
                trust_env=not is_loopback(str(parts.hostname)),
                event_hooks={"request": [self._shorten_timeouts], "response": [self._examine]},
            )
        except (ValueError, ImportError, httpx.InvalidURL):
            # Not repeated: a proxy's address may contain a password.
            raise InvalidInputError(
                "The proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, or NO_PROXY beside them) cannot "
                "be used: its address is wrong, or it is a SOCKS proxy and the package 'socksio' is missing."
            ) from None
        replaced, self._api._session = self._api._session, self._session  # noqa: SLF001 - there is no other way
        self._session.headers = replaced.headers
        self._session.headers.update(dict(self._access.headers))
        replaced.close()

    def _tls_context(self, verify: bool | str | None) -> ssl.SSLContext:
        """Make what certificates are checked with.

        Raises:
            InvalidInputError: The file of certificates cannot be read.
        """
        ca_file = self._access.ca_file or (verify if isinstance(verify, str) else None)
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(
                f"`ca_file` {ca_file!r} cannot be used: {getattr(error, 'strerror', None) or error}. It must be a file of "
                "certificates in PEM form."
            ) from error
        if verify is False and ca_file is None:
            log.warning(
                "server.certificate_not_verified",
                server=self._url,
                hint="`chroma_server_ssl_verify` is False",
            )
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _shorten_timeouts(self, request: httpx.Request) -> None:
        """Let no connection be made, and no read be awaited, longer than a caller waits for it."""
        deadline, reads = _limits.get()
        if deadline is None:
            return
        left = max(_SHORTEST_READ_SECONDS, deadline - monotonic())
        timeouts = request.extensions["timeout"]
        timeouts["connect"] = min(timeouts["connect"], left)
        if reads:
            timeouts["read"] = min(timeouts["read"], left)

    def _reopen(self) -> None:
        """Close all connections and make new ones; nothing else is under way, this being a barrier."""
        self.close()
        self._connect()
        self._api.heartbeat()

    def _count_documents(self, tenant: str, database: str) -> int:
        """Return how many records a database holds, as of the last time each collection was counted.

        Others may write to the server, so every collection is counted again, a few at each call.
        """
        known = self._counts
        collections = [
            str(entry.id) for entry in self._api.list_collections(tenant=tenant, database=database)
        ]
        age = {collection: position for position, collection in enumerate(list(known))}
        for collection in sorted(collections, key=lambda collection: age.get(collection, -1))[
            :_COUNTS_AT_ONCE
        ]:
            count = ChromaRecords(self._api).count(collection, tenant=tenant, database=database)
            known.pop(collection, None)
            known[collection] = count
        return sum(known.get(collection, 0) for collection in collections)


_COLUMNS = ("documents", "metadatas", "embeddings", "distances", "uris")


def _check_form(request: Request, result: Any) -> None:
    """Refuse a result that Chroma's client hands on although it has not the form that it has to have.

    Raises:
        TypeError: It has not.
    """
    expected = request.row.returns
    if not isinstance(result, expected):
        raise TypeError(f"{expected.__name__} was expected, and {type(result).__name__} came")
    if request.row.result in {Result.RECORDS, Result.ROWS} and isinstance(result, dict):
        ids = result["ids"]
        columns = [ids, *(result[name] for name in _COLUMNS if result.get(name) is not None)]
        if not isinstance(ids, list) or any(len(column) != len(ids) for column in columns):
            raise TypeError("a column has not one entry for each id")


_making = threading.Lock()


def _api_without_proxies(system: System) -> ServerAPI:
    """Return Chroma's API, whose own transport, which is replaced, reads no environment: a wrong proxy there would end it."""
    import httpx
    from chromadb.api import fastapi

    with _making:
        names = vars(fastapi)
        own = names["httpx"]
        names["httpx"] = SimpleNamespace(**{**vars(httpx), "Client": partial(httpx.Client, trust_env=False)})
        try:
            return server_api(system)
        finally:
            names["httpx"] = own


def _misread(error: Exception, response: httpx.Response, access: Access) -> FailedCall | None:
    """Return what failed where an answer has not the form that Chroma's answers have; None where it has.

    Args:
        error: What looking at the answer has raised.
        response: The answer.
        access: How the server is reached.
    """
    from chromadb.errors import ChromaError

    of_form = isinstance(error, (LookupError, AttributeError, TypeError, ValueError, AssertionError))
    if not of_form or isinstance(error, (AiochromaError, ChromaError)):
        return None
    answer = Answer(described(response, access), response.status_code, 0.0, None)
    answer.__cause__ = error
    return FailedCall(answer, sent=True, permanent=True)
