"""What the environment says about the database, checked as a whole; only the variables that the mode uses.

Importing this module imports pydantic; it is imported on a worker thread when a client is opened by configuration.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from aiochroma._errors import InvalidInputError
from aiochroma.backend.server import access_to, url_of
from aiochroma.client.options import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    EphemeralOptions,
    HttpOptions,
    PersistentOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiochroma.client.options import AnyOptions

__all__ = ["options_from_environment"]

_SHOWN = frozenset({"mode", "port", "ssl", "auth_header", "ca_file", "cache", "timeout", "process"})
"""Fields whose wrong value is repeated in the message; in the others there may be a secret."""


def _lowered(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


_LOWERED = BeforeValidator(_lowered)
"""A word may be written in capitals, and with spaces around it."""


class _Environment(BaseSettings):
    """Fields are read from the variables ``CHROMA_...``; one that is empty counts as not set, and no file is read."""

    model_config = SettingsConfigDict(env_prefix="CHROMA_", env_ignore_empty=True, extra="ignore")


class _Chosen(_Environment):
    mode: Annotated[Literal["persistent", "http", "ephemeral"], _LOWERED] = "persistent"


class _Ephemeral(_Environment):
    tenant: str = Field(default=DEFAULT_TENANT, min_length=1)
    database: str = Field(default=DEFAULT_DATABASE, min_length=1)
    timeout: float | None = Field(default=None, gt=0)


class _Persistent(_Ephemeral):
    path: Path = Field(default=Path("./chroma"), validation_alias="CHROMA_DB_PATH")
    process: Annotated[Literal["shared", "this"] | None, _LOWERED] = None


class _Http(_Ephemeral):
    # The order matters: a validator sees the fields before its own.
    host: str | None = Field(default=None, validate_default=True)
    port: int = Field(default=8000, ge=1, le=65535)
    ssl: bool = False
    auth_token: SecretStr | None = None
    auth_header: Annotated[Literal["authorization", "x-chroma-token", "both"], _LOWERED] = "authorization"
    ca_file: Path | None = None
    cache: Path | None = None

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str | None) -> str:
        if value is None:
            raise PydanticCustomError("missing", "is missing, and the mode is 'http'")
        try:
            url_of(value, 1, ssl=False)
        except InvalidInputError as error:
            raise _problem(error) from None
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _check_port(cls, value: object, info: ValidationInfo) -> Any:
        if "://" in str(info.data.get("host")):
            return 8000  # A URL says the port itself.
        if isinstance(value, str) and value.startswith("tcp://"):
            raise PydanticCustomError(
                "service_link",
                "is a link that Kubernetes makes for a service called 'chroma': name the port in CHROMA_HOST "
                "(http://chroma:8000), or set `enableServiceLinks: false` for the pod",
            )
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
        if value is None:
            return value
        if not value.expanduser().is_file():
            raise PydanticCustomError("no_file", "there is no such file")
        if info.data.get("ssl") is False and not str(info.data.get("host")).startswith("https:"):
            raise PydanticCustomError(
                "no_tls", "is of no use without TLS: set CHROMA_SSL=true, or leave it out"
            )
        return value


_MODES: dict[str, tuple[type[_Ephemeral], type[AnyOptions]]] = {
    "persistent": (_Persistent, PersistentOptions),
    "http": (_Http, HttpOptions),
    "ephemeral": (_Ephemeral, EphemeralOptions),
}
_OF_ENVIRONMENT = frozenset(
    {"mode", *(name for variables, _ in _MODES.values() for name in variables.model_fields)}
)


def options_from_environment(overrides: Mapping[str, Any]) -> AnyOptions:
    """Return what to open according to the environment.

    Args:
        overrides: Values in place of the variables, and further options of the client that is chosen; see
            :class:`~aiochroma.client.options.ConnectOverrides`.

    Raises:
        InvalidInputError: Values are wrong or missing; lists them all.
    """
    problems: list[str] = []
    chosen = cast("_Chosen | None", _read(_Chosen, overrides, problems))
    further = {name: value for name, value in overrides.items() if name not in _OF_ENVIRONMENT}
    if chosen is None:
        raise _all_of(problems)
    variables, options = _MODES[chosen.mode]
    found = _read(variables, overrides, problems)
    known = {each.name for each in fields(options)}
    problems.extend(
        f"`{name}`: there is no such argument in mode {chosen.mode!r}"
        for name in sorted(set(further) - known)
    )
    if problems or found is None:
        raise _all_of(problems)
    return options(**{name: getattr(found, name) for name in type(found).model_fields}, **further)


def _read(kind: type[_Environment], overrides: Mapping[str, Any], problems: list[str]) -> _Environment | None:
    own = {_key(kind, name): overrides[name] for name in kind.model_fields if name in overrides}
    try:
        return kind(**own)
    except ValidationError as error:
        problems.extend(_described(kind, error))
        return None


def _key(kind: type[_Environment], name: str) -> str:
    return str(kind.model_fields[name].validation_alias or name)


def _described(kind: type[_Environment], error: ValidationError) -> Iterator[str]:
    names = {_key(kind, name): name for name in kind.model_fields}
    for problem in error.errors(include_url=False):
        name = names[str(problem["loc"][0])]
        variable = _key(kind, name) if _key(kind, name) != name else f"CHROMA_{name.upper()}"
        message = problem["msg"][:1].lower() + problem["msg"][1:]
        given = str(problem["input"]) if isinstance(problem["input"], Path) else problem["input"]
        got = f", got {given!r}" if name in _SHOWN and given is not None else ""
        yield f"{variable} (`{name}`): {message}{got}"


def _all_of(problems: list[str]) -> InvalidInputError:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return InvalidInputError(f"The configuration is wrong ({len(problems)}):{lines}")


def _problem(error: InvalidInputError) -> PydanticCustomError:
    # Braces are placeholders there.
    return PydanticCustomError("invalid", "{reason}", {"reason": str(error)})
