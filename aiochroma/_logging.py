"""Events of the library, as structlog loggers that never configure logging.

An unconfigured structlog prints every event to standard output, which a library must not do to a program that never
asked for it. So the events go to structlog when the program has configured it, and else to the standard library's
logger of the same name, where the program's own levels and handlers decide (nothing below WARNING by default).
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

import structlog

__all__ = ["EventLogger", "get_logger"]


def _as_record(logger: Any, method: str, values: Any) -> dict[str, Any]:  # noqa: ARG001 - structlog's signature
    """Write an event for the standard library: readable with any formatter, the values as attributes of the record."""
    event = values.pop("event")
    pairs = "".join(f" {name}={value!r}" for name, value in values.items())
    return {
        "msg": f"{event}{pairs}".replace("%", "%%"),
        "extra": {f"aiochroma_{name}": value for name, value in values.items()},
    }


class EventLogger:
    """A named logger; each event is a short name and keyword values.

    Logging never fails a request or ends a thread: what a program's own log processors raise goes to stderr, as what its
    handlers raise does in :mod:`logging`.
    """

    __slots__ = ("_name", "_standard")

    def __init__(self, name: str) -> None:
        self._name = name
        self._standard = structlog.wrap_logger(
            logging.getLogger(name),
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.contextvars.merge_contextvars,
                _as_record,
            ],
        )

    def _target(self) -> Any:
        return structlog.get_logger(self._name) if structlog.is_configured() else self._standard

    def _write(self, level: str, event: str, values: dict[str, Any]) -> None:
        try:
            getattr(self._target(), level)(event, **values)
        except Exception:  # noqa: BLE001 - see the class docstring
            traceback.print_exc()

    def debug(self, event: str, **values: Any) -> None:
        """Log at DEBUG."""
        self._write("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        """Log at INFO."""
        self._write("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """Log at WARNING."""
        self._write("warning", event, values)

    def error(self, event: str, **values: Any) -> None:
        """Log at ERROR."""
        self._write("error", event, values)


def get_logger(name: str) -> EventLogger:
    """Return the logger of that name; by convention ``aiochroma.<part>``."""
    return EventLogger(name)
