"""What can go wrong between here and a Chroma server, told apart by two questions.

May the server have carried the call out, and can it help to try again? The answers decide what is repeated, and which of
our errors a caller gets in the end.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import orjson
from chromadb.errors import ChromaError, error_types

from aiochroma._errors import AccessDeniedError, AiochromaError, OutcomeUnknownError, StoreUnavailableError
from aiochroma.backend.address import redacted
from aiochroma.backend.retry import FailedCall
from aiochroma.core.operations import Lane

if TYPE_CHECKING:
    from aiochroma.backend.address import Access
    from aiochroma.core.request import Request

__all__ = ["Answer", "examine", "explained", "fault_of"]

_TOO_MANY = 429
_DENIED = frozenset({401, 403, 407})
_TRANSIENT = frozenset({_TOO_MANY, 502, 503, 504})
_TOO_LARGE = 413
_NOT_FOUND = 404
_SERVER_ERROR = 500
_SHOWN_CHARACTERS = 200
_PAGE_BYTES = 20_000
"""What lies beyond is not looked at: the reason stands at the beginning of an error page."""

_TAG = re.compile(r"<([^<>]*)>")
_HIDDEN = frozenset({"script", "style", "head"})

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


class Answer(Exception):  # noqa: N818 - not yet an error, and never a caller's
    """An answer that is not the server's own word on the call: a proxy's, or "not now".

    Attributes:
        status: The HTTP status.
        retry_after: For how many seconds not to ask again, as far as the answer says.
        chromas: Chroma's own error, where the answer carries one.
    """

    def __init__(self, text: str, status: int, retry_after: float, chromas: ChromaError | None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after
        self.chromas = chromas


def examine(response: httpx.Response, access: Access) -> None:
    """Look at a response before Chroma does, which would lose its status.

    Raises:
        Answer: It is not the server's own word on the call.
    """
    if response.is_success:
        return
    response.read()
    status = response.status_code
    chromas = _chromas_error(response)
    if chromas is not None and status not in _TRANSIENT:
        return
    is_page = "html" in response.headers.get("content-type", "")
    foreign = (
        response.is_redirect
        or is_page
        or status in _DENIED | {_TOO_LARGE, _NOT_FOUND}
        or status >= _SERVER_ERROR
    )
    if foreign or status in _TRANSIENT:
        seconds = response.headers.get("retry-after", "")
        raise Answer(
            f"HTTP {status}{_shown(response, access)}",
            status,
            float(seconds) if seconds.isdecimal() else 0.0,
            chromas,
        )


def fault_of(error: Exception) -> FailedCall | None:
    """Return what failed on the way, or None where the server itself has spoken."""
    if isinstance(error, Answer):
        refused = error.status == _TOO_MANY or error.status < _SERVER_ERROR
        return FailedCall(
            error, sent=not refused, permanent=error.status not in _TRANSIENT, pause=error.retry_after
        )
    if isinstance(error, httpx.TransportError):
        never = isinstance(error, _NEVER_SENT)
        return FailedCall(error, sent=not never, permanent=never and _tls_error(error) is not None)
    return None


def explained(fault: FailedCall, request: Request, url: str, access: Access) -> BaseException:
    """Return the error for the caller; its cause is set."""
    cause = fault.cause
    error: BaseException
    if (
        isinstance(cause, Answer)
        and cause.chromas is not None
        and (request.lane is Lane.READ or not fault.sent)
    ):
        return cause.chromas
    if fault.sent and request.lane is not Lane.READ:
        error = _outcome_unknown(fault, request, url, access)
    elif isinstance(cause, Answer):
        error = _answered(cause, url, access)
    else:
        error = _unreachable(fault, url, access)
    error.__cause__ = cause
    return error


def _outcome_unknown(fault: FailedCall, request: Request, url: str, access: Access) -> AiochromaError:
    what = f"`{request.row.label}` was sent to the Chroma server at {url}, but {_reason(fault.cause, access)}"
    times = f" ({fault.attempts} attempts)" if fault.attempts > 1 else ""
    return OutcomeUnknownError(
        f"{what}{times}, so it may or may not have happened. Read before you write again, or repeat it where that does no harm."
    )


def _answered(answer: Answer, url: str, access: Access) -> AiochromaError:
    begin = f"The server at {url} answered {answer}"
    if answer.status in _DENIED:
        sent = [name for name, _ in access.headers if name in {"authorization", "x-chroma-token"}]
        what = (
            f"A token was sent ({' and '.join(sent)}) and not accepted: check `auth_token` (CHROMA_AUTH_TOKEN) and "
            "`auth_header` (CHROMA_AUTH_HEADER)."
            if sent
            else "No token was sent: give `auth_token` (CHROMA_AUTH_TOKEN)."
        )
        return AccessDeniedError(f"{begin}: access denied. {what}")
    if answer.status == _TOO_LARGE:
        return StoreUnavailableError(
            f"{begin}: one record is too large for it. Let the reverse proxy accept larger bodies "
            "(nginx: `client_max_body_size`)."
        )
    if answer.status in _TRANSIENT:
        return StoreUnavailableError(
            f"{begin}: it is overloaded, or what it passes requests to is down. Try again later."
        )
    return StoreUnavailableError(
        f"{begin}, which no Chroma server (1.0 or newer) does. Check host, port, path and `ssl`."
    )


def _unreachable(fault: FailedCall, url: str, access: Access) -> AiochromaError:
    parts = urlsplit(url)
    where = f"host {parts.hostname!r}, port {parts.port}"
    times = f" after {fault.attempts} attempts" if fault.attempts > 1 else ""
    tls = _tls_error(fault.cause)
    if isinstance(tls, ssl.SSLCertVerificationError):
        trusted = f"the authorities in {access.ca_file!r}" if access.ca_file else "the system's authorities"
        return StoreUnavailableError(
            f"The certificate of the server at {url} was refused: {tls.verify_message}. It was checked against {trusted}; for a "
            "private authority give its certificate as `ca_file` (CHROMA_CA_FILE)."
        )
    if tls is not None:
        return StoreUnavailableError(
            f"No TLS connection to {where} could be made: {tls.reason or tls}. Does it speak TLS at all? If not, `ssl=False`."
        )
    return StoreUnavailableError(
        f"No Chroma server answers at {url} ({where}){times}: {_reason(fault.cause, access)}. Start it "
        f"(`chroma run --host {parts.hostname} --port {parts.port}`), or correct `host` and `port` (CHROMA_HOST, CHROMA_PORT)."
    )


def _reason(cause: BaseException, access: Access) -> str:
    if isinstance(cause, Answer):
        return f"the answer was {cause}"
    if isinstance(cause, httpx.ConnectTimeout):
        return "no connection was made in time"
    if isinstance(cause, httpx.TimeoutException):
        return "no answer came in time"
    text = redacted(str(cause), access).rstrip(".") or type(cause).__name__
    return text[:1].lower() + text[1:]


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
        seen += 1
    return None


def _chromas_error(response: httpx.Response) -> ChromaError | None:
    try:
        body: Any = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None
    kind = error_types.get(str(body.get("error"))) if isinstance(body, dict) else None
    return None if kind is None else kind(str(body.get("message", "")))


def _shown(response: httpx.Response, access: Access) -> str:
    """Return the beginning of an answer as text, without markup, and without what was sent to it."""
    if response.is_redirect:
        return (
            f" (a redirect to {redacted(response.headers.get('location', ''), access)[:_SHOWN_CHARACTERS]!r})"
        )
    page = response.content[:_PAGE_BYTES].decode(errors="replace")
    text = " ".join(redacted(_without_markup(page), access).split())
    return f" ({text[:_SHOWN_CHARACTERS]})" if text else ""


def _without_markup(page: str) -> str:
    """Return the text of an HTML page; one pass, whatever the page consists of."""
    shown: list[str] = []
    position, hidden = 0, ""
    for match in _TAG.finditer(page):
        if not hidden:
            shown.append(page[position : match.start()])
        position = match.end()
        closing = match[1].startswith("/")
        name = next(iter(match[1].strip("/ ").lower().split()), "")
        if hidden:
            hidden = "" if closing and name == hidden else hidden
        elif not closing and name in _HIDDEN:
            hidden = name
    if not hidden:
        shown.append(page[position:])
    return " ".join(shown)
