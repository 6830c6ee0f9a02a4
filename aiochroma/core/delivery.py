"""Handing outcomes back: one function, which never blocks and never raises."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiochroma._logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiochroma.core.queue import Home, Ticket

__all__ = ["Outcome", "deliver", "report_unseen"]

log = get_logger("aiochroma.core")


class Outcome:
    """What became of a request: a result or an error."""

    __slots__ = ("error", "result", "ticket")

    def __init__(self, ticket: Ticket, result: object = None, error: BaseException | None = None) -> None:
        self.ticket = ticket
        self.result = result
        if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
            # A future refuses StopIteration, and it would stay unresolved; GeneratorExit would close the awaiting coroutines.
            cause, error = error, RuntimeError(f"The call raised {type(error).__name__}.")
            error.__cause__ = cause
        self.error = error


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Resolve the futures of finished requests, with one wakeup for each event loop and one batch for every other home.

    Futures that are done already (their caller left) are let alone. A loop that has been closed has no callers any more;
    its outcomes are dropped.
    """
    by_home: dict[asyncio.AbstractEventLoop | Home | None, list[Outcome]] = {}
    for outcome in outcomes:
        by_home.setdefault(outcome.ticket.home, []).append(outcome)
    for home, batch in by_home.items():
        if home is None:
            _resolve(batch)
            continue
        if not isinstance(home, asyncio.AbstractEventLoop):
            home.take(batch)
            continue
        try:
            home.call_soon_threadsafe(_resolve, batch)
        except RuntimeError:
            # The loop is closed: whoever waited is gone.
            log.debug("outcomes.dropped", reason="event loop closed", count=len(batch))
            for outcome in batch:
                if outcome.error is not None:
                    report_unseen(outcome.ticket, outcome.error)


def _resolve(batch: Sequence[Outcome]) -> None:
    for outcome in batch:
        future = outcome.ticket.future
        if future is None or future.done():
            # The caller left between the end of the call and this moment.
            if outcome.error is not None:
                report_unseen(outcome.ticket, outcome.error)
            continue
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.result)


def report_unseen(ticket: Ticket, error: BaseException) -> None:
    """Log a failure that no caller awaits any more: this is the only place where it can be seen."""
    ticket.context.run(
        log.warning,
        "request.abandoned_failure",
        database=ticket.queue.name,
        operation=ticket.request.operation,
        error=repr(error),
    )
