"""Where a server is and what is sent along with every request; secrets are held here and shown nowhere."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from aiochroma._errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

__all__ = ["Access", "AuthHeader", "access_to", "is_loopback", "proxy_secrets", "redacted", "url_of"]

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
    if auth_header not in _AUTH_HEADERS:
        raise InvalidInputError(
            f"`auth_header` must be one of {', '.join(map(repr, _AUTH_HEADERS))}, got {auth_header!r}."
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
    picture = repr((sorted(sent.items()), str(ca_file or ""), further))
    return Access(
        headers=tuple(sorted(sent.items())),
        ca_file=None if ca_file is None else str(ca_file),
        secrets=tuple(
            sorted({text for text in hidden if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)
        ),
        fingerprint=hmac.new(_KEY, picture.encode(), hashlib.sha256).hexdigest(),
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
            raise InvalidInputError(f"`headers` has a name that is none: {name!r}.")
        plain = _plain(value)
        if not isinstance(plain, str) or not _HEADER_VALUE.fullmatch(plain):
            raise InvalidInputError(
                f"The value of the header {name!r} must be a string of printable ASCII characters."
            )
        sent[name.lower()] = plain
    return sent
