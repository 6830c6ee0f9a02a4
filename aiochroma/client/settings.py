"""Configuration from the environment and from arguments, checked as a whole.

Importing this module imports pydantic; it is imported on a worker thread when a client is opened by configuration.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aiochroma._errors import InvalidInputError
from aiochroma.backend.address import access_to, url_of
from aiochroma.client.opening import AsyncEphemeralClient, AsyncHttpClient, AsyncPersistentClient
from aiochroma.client.target import DEFAULT_DATABASE, DEFAULT_TENANT, ConnectTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ConnectionSettings"]

_CLIENTS: dict[str, Any] = {
    "persistent": AsyncPersistentClient,
    "http": AsyncHttpClient,
    "ephemeral": AsyncEphemeralClient,
}
_OF_SERVER = ("host", "port", "ssl", "auth_token", "auth_header", "ca_file")
_SHOWN = frozenset({"mode", "port", "ssl", "auth_header", "ca_file", "timeout"})
"""Fields whose wrong value is repeated in the message; in the others there may be a secret."""


class ConnectionSettings(BaseSettings):
    """Where the database is and how to reach it.

    Fields are read from the variables ``CHROMA_MODE``, ``CHROMA_DB_PATH``, ``CHROMA_HOST`` and so on; see
    :func:`aiochroma.connect`. A variable that is empty counts as not set. No file is read.
    """

    model_config = SettingsConfigDict(env_prefix="CHROMA_", env_ignore_empty=True, extra="ignore")

    # The order matters: a validator sees the fields before its own.
    mode: Literal["persistent", "http", "ephemeral"] = "persistent"
    path: Path = Field(default=Path("./chroma"), validation_alias="CHROMA_DB_PATH")
    host: str | None = Field(default=None, validate_default=True)
    port: int = Field(default=8000, ge=1, le=65535)
    ssl: bool = False
    auth_token: SecretStr | None = None
    auth_header: Literal["authorization", "x-chroma-token", "both"] = "authorization"
    ca_file: Path | None = None
    tenant: str = Field(default=DEFAULT_TENANT, min_length=1)
    database: str = Field(default=DEFAULT_DATABASE, min_length=1)
    timeout: float | None = Field(default=None, gt=0)

    @field_validator("mode", "auth_header", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("mode") == "http":
            raise PydanticCustomError("missing", "is missing, and the mode is 'http'")
        if value is not None:
            try:
                url_of(value, 1, ssl=False)
            except InvalidInputError as error:
                raise _problem(error) from None
        return value

    @field_validator("auth_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            access_to(None, value, "both", None)
        except InvalidInputError as error:
            raise _problem(error) from None
        return value

    @field_validator("ca_file")
    @classmethod
    def _check_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None or info.data.get("mode") != "http":
            return value
        if not value.is_file():
            raise PydanticCustomError("no_file", "there is no such file")
        if info.data.get("ssl") is False and not str(info.data.get("host")).startswith("https:"):
            raise PydanticCustomError(
                "no_tls", "is of no use without TLS: set CHROMA_SSL=true, or leave it out"
            )
        return value

    def target(self, **further: Any) -> ConnectTarget:
        """Return what to open; ``further`` are arguments of the client that are not among the fields."""
        use = {"tenant": self.tenant, "database": self.database, "timeout": self.timeout, **further}
        if self.mode == "persistent":
            return AsyncPersistentClient(self.path, **use).settle()
        if self.mode == "ephemeral":
            return AsyncEphemeralClient(**use).settle()
        return AsyncHttpClient(**{name: getattr(self, name) for name in _OF_SERVER}, **use).settle()

    @classmethod
    def settled(cls, overrides: Mapping[str, Any]) -> ConnectTarget:
        """Return what to open according to the environment.

        Args:
            overrides: Values in place of the variables, and further arguments of the client that is chosen.

        Raises:
            InvalidInputError: Values are wrong or missing; lists them all.
        """
        own = {name: value for name, value in overrides.items() if name in cls.model_fields}
        further = {name: value for name, value in overrides.items() if name not in own}
        problems: list[str] = []
        settings: ConnectionSettings | None = None
        try:
            settings = cls(**{_key(name): value for name, value in own.items()})
        except ValidationError as error:
            problems.extend(_described(error))
        problems.extend(_unknown(settings.mode if settings is not None else None, further))
        if problems or settings is None:
            lines = "".join(f"\n  - {problem}" for problem in problems)
            raise InvalidInputError(f"The configuration is wrong ({len(problems)}):{lines}")
        return settings.target(**further)


def _key(name: str) -> str:
    return str(ConnectionSettings.model_fields[name].validation_alias or name)


def _described(error: ValidationError) -> Iterator[str]:
    fields = {_key(name): name for name in ConnectionSettings.model_fields}
    for problem in error.errors(include_url=False):
        name = fields[str(problem["loc"][0])]
        variable = _key(name) if _key(name) != name else f"CHROMA_{name.upper()}"
        message = problem["msg"][:1].lower() + problem["msg"][1:]
        got = f", got {problem['input']!r}" if name in _SHOWN and problem["input"] is not None else ""
        yield f"{variable} (`{name}`): {message}{got}"


def _unknown(mode: str | None, further: Mapping[str, Any]) -> Iterator[str]:
    """Find arguments that the client does not have; while the mode is not known, that no client has."""
    clients = list(_CLIENTS.values()) if mode is None else [_CLIENTS[mode]]
    known = {name for client in clients for name in inspect.signature(client).parameters}
    for name in sorted(set(further) - known):
        yield f"`{name}`: there is no such argument" + (f" in mode {mode!r}" if mode else "")


def _problem(error: InvalidInputError) -> PydanticCustomError:
    # Braces are placeholders there.
    return PydanticCustomError("invalid", "{reason}", {"reason": str(error)})
