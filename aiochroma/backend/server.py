"""A Chroma server: where it is, what is sent along with every request, and what can go wrong on the way to it and back.

Secrets are held here and shown nowhere. What goes wrong is told apart by two questions: may the server have carried the call out,
and can it help to try again? The answers decide what is repeated, and which of our errors a caller gets in the end.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from aiochroma._errors import (
    AccessDeniedError,
    AiochromaError,
    InvalidInputError,
    OutcomeUnknownError,
    StoreUnavailableError,
    is_one_of,
    shown,
)
from aiochroma.backend.protocol import FailedCall
from aiochroma.core.operations import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx
    from chromadb.errors import ChromaError
    from pydantic import SecretStr

    from aiochroma.core.request import Request

__all__ = [
    "Access",
    "Answer",
    "AuthHeader",
    "access_to",
    "described",
    "examine",
    "explained",
    "fault_of",
    "is_loopback",
    "proxy_secrets",
    "redacted",
    "url_of",
]

AuthHeader = Literal["authorization", "x-chroma-token", "both"]
_AUTH_HEADERS = {
    "authorization": ("authorization",),
    "x-chroma-token": ("x-chroma-token",),
    "both": ("authorization", "x-chroma-token"),
}
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_MOST_PORT = 65535
_SHORTEST_SECRET = 4
_KEY = secrets.token_bytes(32)
"""Fingerprints mean nothing outside this process: no one can try tokens against one that was printed."""


@dataclass(frozen=True)
class Access:
    """How a server is reached, beyond its address.

    Attributes:
        headers: Sent with every request; names in lower case. Not shown.
        ca_file: Certificates of the authorities to trust instead of the system's, or None.
        secrets: What must not appear in a message.
        fingerprint: Equal for equal access, and for nothing else; says nothing about what is in it.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    fingerprint: str = field(default="", repr=False)


def url_of(host: str, port: int, *, ssl: bool) -> str:
    """Return the address of a server: scheme, host in lower case, port, and path where there is one.

    Args:
        host: Name or address; or, as Chroma accepts it, a whole URL, which then also says port and path.
        port: Port.
        ssl: Speak TLS.

    Raises:
        InvalidInputError: One of them is wrong.
    """
    if not isinstance(host, str) or not host.strip():
        raise InvalidInputError(f"`host` must be the name or address of a Chroma server, got {host!r}.")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= _MOST_PORT:
        raise InvalidInputError(f"`port` must be a whole number from 1 to {_MOST_PORT}, got {port!r}.")
    host = host.strip()
    if "@" in host:
        # Not repeated: what stands before the @ is a password.
        raise InvalidInputError(
            "`host` must not contain user name or password; use `headers` or `auth_token`."
        )
    scheme, path = "https" if ssl else "http", ""
    if "://" in host:
        try:
            parts = urlsplit(host)
            given = parts.port
        except ValueError as error:
            raise InvalidInputError(f"`host` is not a URL: {error}.") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInputError(
                f"`host` must be a name, or a URL that begins with http:// or https://, got {host!r}."
            )
        scheme = "https" if ssl else parts.scheme
        port = given or (443 if scheme == "https" else 80)
        host, path = parts.hostname, parts.path.rstrip("/")
    return f"{scheme}://{_checked_host(host)}:{port}{path}"


def access_to(
    headers: Mapping[str, str | SecretStr] | None,
    auth_token: str | SecretStr | None,
    auth_header: AuthHeader,
    ca_file: object,
    *further: object,
) -> Access:
    """Check what is sent along with every request.

    Args:
        headers: Further headers.
        auth_token: The token, a string or a ``SecretStr``, or None.
        auth_header: Where the token goes: ``Authorization: Bearer``, ``X-Chroma-Token``, or both.
        ca_file: A file of certificates, or None.
        further: What else tells one access from another.

    Raises:
        InvalidInputError: Something is wrong; no value is repeated in the message.
    """
    if not is_one_of(auth_header, *_AUTH_HEADERS):
        raise InvalidInputError(
            f"`auth_header` must be one of {', '.join(map(repr, _AUTH_HEADERS))}, got {shown(auth_header)}."
        )
    sent = _checked_headers(headers)
    hidden = [part for value in sent.values() for part in (value, value.rpartition(" ")[2])]
    if auth_token is not None:
        token = str(_plain(auth_token))
        if not _TOKEN.fullmatch(token):
            raise InvalidInputError(
                "`auth_token` must be visible ASCII characters without spaces, and not empty."
            )
        for name in _AUTH_HEADERS[auth_header]:
            if name in sent:
                raise InvalidInputError(
                    f"`auth_token` would replace the header {name!r} of `headers`; give one of the two."
                )
            sent[name] = f"Bearer {token}" if name == "authorization" else token
        hidden.append(token)
    frozen = repr((sorted(sent.items()), str(ca_file or ""), further))
    return Access(
        headers=tuple(sorted(sent.items())),
        ca_file=None if ca_file is None else str(ca_file),
        secrets=tuple(
            sorted({text for text in hidden if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)
        ),
        fingerprint=hmac.new(_KEY, frozen.encode(), hashlib.sha256).hexdigest(),
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def proxy_secrets() -> tuple[str, ...]:
    """Return the passwords of the proxies that the environment names."""
    found = []
    for address in getproxies().values():
        try:
            password = urlsplit(address).password
        except ValueError:
            continue
        if password and len(password) >= _SHORTEST_SECRET:
            found.append(password)
    return tuple(found)


def redacted(text: str, access: Access) -> str:
    """Return a text that came from outside, without the secrets that might be echoed in it."""
    for secret in access.secrets:
        text = text.replace(secret, "***")
    return text


def _plain(value: object) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _checked_host(host: str) -> str:
    host = host.lower().strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host):
            return host
        raise InvalidInputError(
            f"`host` must be the name or address of a Chroma server, got {host!r}."
        ) from None
    return f"[{host}]" if address.version == 6 else host


def _checked_headers(headers: Mapping[str, str | SecretStr] | None) -> dict[str, str]:
    sent: dict[str, str] = {}
    for name, value in dict(headers or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidInputError(f"`headers` has a name that is not valid in HTTP: {name!r}.")
        plain = _plain(value)
        if not isinstance(plain, str) or not _HEADER_VALUE.fullmatch(plain):
            raise InvalidInputError(
                f"The value of the header {name!r} must be a string of printable ASCII characters."
            )
        sent[name.lower()] = plain
    return sent


_TOO_MANY = 429
_DENIED = frozenset({401, 403, 407})
_TRANSIENT = frozenset({_TOO_MANY, 502, 503, 504})
_TOO_LARGE = 413
_NOT_FOUND = 404
_FOREIGN = _DENIED | {_TOO_LARGE, _NOT_FOUND}
_SERVER_ERROR = 500
_SHOWN_CHARACTERS = 200
_PAGE_BYTES = 20_000
"""What lies beyond is not looked at: the reason stands at the beginning of an error page."""

_TAG = re.compile(r"<([^<>]*)>")
_HIDDEN = frozenset({"script", "style", "head"})
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)
"""Classes of httpx that say that nothing has reached the server."""


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
    is_page = "html" in response.headers.get("content-type", "")
    if response.is_success and not is_page:
        return
    response.read()
    status = response.status_code
    chromas = _chromas_error(response)
    if chromas is not None and status not in _TRANSIENT:
        return
    foreign = is_page or response.is_redirect or status in _FOREIGN or status >= _SERVER_ERROR
    if foreign or status in _TRANSIENT:
        seconds = response.headers.get("retry-after", "")
        pause = float(seconds) if seconds.isdecimal() else 0.0
        raise Answer(described(response, access), status, pause, chromas)


def fault_of(error: Exception) -> FailedCall | None:
    """Return what failed on the way, or None where the server itself has spoken."""
    if isinstance(error, Answer):
        refused = error.status == _TOO_MANY or error.status < _SERVER_ERROR
        return FailedCall(
            error, sent=not refused, permanent=error.status not in _TRANSIENT, pause=error.retry_after
        )
    import httpx

    if not isinstance(error, (httpx.RequestError, json.JSONDecodeError)):
        return None
    never = type(error).__name__ in _NEVER_SENT
    no_answer = isinstance(error, httpx.TransportError)
    return FailedCall(
        error, sent=not never, permanent=not no_answer or (never and _tls_error(error) is not None)
    )


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
    import httpx

    if isinstance(cause, httpx.ConnectTimeout):
        return "no connection was made in time"
    if isinstance(cause, httpx.TimeoutException):
        return "no answer came in time"
    if isinstance(cause, (Answer, json.JSONDecodeError)):
        return f"the answer was {cause if isinstance(cause, Answer) else 'no JSON'}"
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
    import orjson

    try:
        body: Any = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        return None
    from chromadb.errors import error_types

    kind = error_types.get(str(body.get("error")))
    return None if kind is None else kind(str(body.get("message", "")))


def described(response: httpx.Response, access: Access) -> str:
    """Return status and beginning of an answer as text, without markup, and without what was sent to it."""
    page = response.content[:_PAGE_BYTES].decode(errors="replace")
    text = " ".join(redacted(_without_markup(page), access).split())[:_SHOWN_CHARACTERS]
    if response.is_redirect:
        target = redacted(response.headers.get("location", ""), access)[:_SHOWN_CHARACTERS]
        text = f"a redirect to {target!r}"
    return f"HTTP {response.status_code}" + (f" ({text})" if text else "")


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
