"""OpenTelemetry: spans for the calls of a memory, metrics for the database below it.

Spans follow the conventions for memories of the generative-AI group: ``gen_ai.operation.name`` is ``search_memory``,
``upsert_memory``, ``update_memory``, ``delete_memory``, ``create_memory_store`` or ``delete_memory_store``; store, record and
number of records are named as there. What is ours begins with ``aiochroma.``: times of requests, the depth of queues, stalls of
event loops. Texts, and the messages of errors, which may quote them, are recorded only where
``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``true``. ``opentelemetry-api`` comes with chromadb; until
:func:`instrument` is called, nothing is imported or computed.

With ``process="shared"`` a request tells the host which span it belongs to (a W3C ``traceparent``). The host's work shows up as
spans below it if the host is instrumented, too: ``AIOCHROMA_HOST_SETUP=package.module:function`` names a function that every
host calls at its start, which sets up OpenTelemetry and calls :func:`instrument`.

Example:
    >>> aiochroma.telemetry.instrument()  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import metrics, trace
from opentelemetry.context import Context as OtelContext
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aiochroma._clock import monotonic
from aiochroma._distribution import version
from aiochroma._types import JsonObject
from aiochroma.core.registry import open_databases
from aiochroma.core.stats import observer, set_observer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextvars import Context

    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider


__all__ = ["instrument", "uninstrument"]

_OPERATIONS = {
    "recall": "search_memory",
    "similar": "search_memory",
    "remember": "upsert_memory",
    "remember_many": "upsert_memory",
    "import_": "upsert_memory",
    "update": "update_memory",
    "pin": "update_memory",
    "forget": "delete_memory",
    "forget_many": "delete_memory",
    "erase": "delete_memory",
    "sweep": "delete_memory",
    "make_namespace": "create_memory_store",
    "forget_namespace": "delete_memory_store",
}
"""The conventions' operations; the other calls have a span of their own name."""

_STALL_SECONDS = 0.05
_WATCHED_SECONDS = 10.0
"""For so long after its last call an event loop is looked at."""

_CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@dataclass
class _Seen:
    """What happens during one call of a memory; written on the threads of the database and of the embedder."""

    waited: float = 0.0
    ran: float = 0.0
    embedded: float = 0.0
    requests: int = 0
    merged: int = 0

    def note(self, waited: float, ran: float, merged: int, requests: int = 1) -> None:
        """Note requests. Those of one call overlap; the longest tells how long it waited."""
        self.waited, self.ran = max(self.waited, waited), max(self.ran, ran)
        self.requests += requests
        self.merged = max(self.merged, merged)


_seen: ContextVar[_Seen | None] = ContextVar("aiochroma_telemetry", default=None)

_remote: ContextVar[OtelContext | None] = ContextVar("aiochroma_remote_call", default=None)
"""The call of another process that a request of a host belongs to."""

_PROPAGATOR = TraceContextTextMapPropagator()


def instrument(
    *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Record what the memories and clients of this process do from now on; again with other providers replaces these.

    Args:
        tracer_provider: Where spans go; default: the process's.
        meter_provider: Where metrics go; default: the process's.
    """
    tracer = trace.get_tracer("aiochroma", version(), tracer_provider)
    meter = metrics.get_meter("aiochroma", version(), meter_provider)
    set_observer(_Telemetry(tracer, meter))


def uninstrument() -> None:
    """Stop recording."""
    set_observer(None)


class _Telemetry:
    """See :class:`aiochroma.core.stats.Observer`."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "How long a call of a memory takes."
        )
        self._hits = meter.create_histogram("aiochroma.recall.hits", "{hit}", "What a recall returns.")
        self._wait = meter.create_histogram(
            "aiochroma.request.wait", "s", "How long a request waits in the queue."
        )
        self._run = meter.create_histogram(
            "aiochroma.request.run", "s", "How long the call into the database takes that answers a request."
        )
        self._faults = meter.create_counter(
            "aiochroma.request.faults", "{request}", "Requests that raised an error."
        )
        self._embedding = meter.create_histogram(
            "aiochroma.embedding.duration", "s", "How long embedding takes."
        )
        self._stalls = meter.create_histogram(
            "aiochroma.loop.stall",
            "s",
            "How late a timer of the event loop is, looked at 20 times a second while memories are used.",
        )
        self._watched: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()
        meter.create_observable_gauge(
            "aiochroma.queue.depth", [_depths], "{request}", "Requests that are queued or running."
        )

    async def memory_call(
        self,
        name: str,
        details: JsonObject,
        work: Callable[[], Awaitable[Any]],
        database: Callable[[], str],
    ) -> Any:
        """See :class:`aiochroma.core.stats.Observer`."""
        operation = _OPERATIONS.get(name, name)
        outer, seen, began, failure = _seen.get(), _Seen(), monotonic(), None
        self._watch_loop(began)
        token = _seen.set(seen)
        with self._tracer.start_as_current_span(
            operation, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                result = await work()
            except BaseException as error:
                failure = type(error).__qualname__
                span.set_attribute("error.type", failure)
                span.set_status(_failed(error))
                raise
            else:
                _describe_result(span, result)
                if operation == "search_memory":
                    self._hits.record(len(result), {"aiochroma.database": database()})
                return result
            finally:
                _seen.reset(token)
                if outer is not None:
                    # The namespace that a write has made is part of the write.
                    outer.note(seen.waited, seen.ran, seen.merged, seen.requests)
                    outer.embedded += seen.embedded
                attributes = {"gen_ai.operation.name": operation, "aiochroma.database": database()}
                span.set_attributes(attributes)
                _describe_call(span, name, details, seen)
                if failure is not None:
                    attributes["error.type"] = failure
                self._duration.record(monotonic() - began, attributes)

    def request(
        self,
        database: str,
        operation: str,
        context: Context,
        waited: float,
        ran: float,
        merged: int,
        error: BaseException | None,
    ) -> None:
        """See :class:`aiochroma.core.stats.Observer`."""
        seen = context.get(_seen)
        if seen is not None:
            seen.note(waited, ran, merged)
        attributes = {"aiochroma.database": database, "aiochroma.operation": operation}
        self._wait.record(waited, attributes)
        self._run.record(ran, attributes)
        if error is not None:
            self._faults.add(1, {**attributes, "error.type": type(error).__qualname__})
        caller = context.get(_remote)
        if caller is not None:
            self._record_work(caller, attributes, waited, ran, merged, error)

    def embedding(self, seconds: float, texts: int) -> None:
        """See :class:`aiochroma.core.stats.Observer`."""
        seen = _seen.get()
        if seen is not None:
            seen.embedded += seconds
        self._embedding.record(seconds, {"aiochroma.texts": "one" if texts == 1 else "many"})

    def carrier(self, context: Context) -> dict[str, str]:
        """See :class:`aiochroma.core.stats.Observer`."""
        carrier: dict[str, str] = {}
        context.run(_PROPAGATOR.inject, carrier)
        return carrier

    def continue_call(self, carrier: Mapping[str, str]) -> None:
        """See :class:`aiochroma.core.stats.Observer`."""
        _remote.set(_PROPAGATOR.extract(carrier, OtelContext()))

    def _record_work(
        self,
        caller: OtelContext,
        attributes: JsonObject,
        waited: float,
        ran: float,
        merged: int,
        error: BaseException | None,
    ) -> None:
        """Record what a host has done for a call of another process, as a span below that call's."""
        values = {**attributes, "aiochroma.queue_wait": waited, "aiochroma.merged_with": merged - 1}
        span = self._tracer.start_span(
            f"aiochroma.{attributes['aiochroma.operation']}",
            caller,
            SpanKind.SERVER,
            values,
            start_time=time.time_ns() - int(ran * 1e9),
        )
        if error is not None:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(_failed(error))
        span.end()

    def _watch_loop(self, now: float) -> None:
        """Record how late timers of the running event loop are, for as long as it makes calls."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # A blocking call: there is no loop that could stand still.
        is_watched = loop in self._watched
        self._watched[loop] = now
        if not is_watched:
            loop.call_later(_STALL_SECONDS, self._look_at_loop, loop, loop.time() + _STALL_SECONDS)

    def _look_at_loop(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = loop.time()
        self._stalls.record(max(0.0, now - due))
        if monotonic() - self._watched[loop] > _WATCHED_SECONDS or observer() is not self:
            del self._watched[loop]
            return
        loop.call_later(_STALL_SECONDS, self._look_at_loop, loop, now + _STALL_SECONDS)


def _describe_call(span: Span, name: str, details: JsonObject, seen: _Seen) -> None:
    values: JsonObject = {
        "aiochroma.call": name,
        "aiochroma.queue_wait": seen.waited,
        "aiochroma.database_time": seen.ran,
        "aiochroma.embedding_time": seen.embedded,
        "aiochroma.requests": seen.requests,
        "aiochroma.merged_with": max(0, seen.merged - 1),
    }
    namespaces = details.get("namespaces")
    if namespaces is not None and len(namespaces) == 1:
        values["gen_ai.memory.store.id"] = namespaces[0]
    elif namespaces is not None:
        values["aiochroma.namespaces"] = namespaces
    if details.get("id") is not None:
        values["gen_ai.memory.record.id"] = details["id"]
    if _captures_content():
        if "query" in details:
            values["gen_ai.memory.query.text"] = details["query"]
        if "texts" in details:
            values["gen_ai.memory.records"] = _json([{"content": text} for text in details["texts"]])
    span.set_attributes(values)


def _describe_result(span: Span, result: object) -> None:
    """Say how many records there were, and which if there was one."""
    from aiochroma.memory.results import Recall

    if isinstance(result, str):
        span.set_attributes({"gen_ai.memory.record.count": 1, "gen_ai.memory.record.id": str(result)})
    elif isinstance(result, int):
        span.set_attribute("gen_ai.memory.record.count", int(result))
    elif isinstance(result, (list, tuple, Recall)):
        span.set_attribute("gen_ai.memory.record.count", len(result))
    if isinstance(result, Recall):
        if result.errors:
            span.set_attribute("aiochroma.failed_namespaces", list(result.errors))
        if _captures_content():
            records = [{"id": hit.id, "content": hit.text, "score": hit.score} for hit in result]
            span.set_attribute("gen_ai.memory.records", _json(records))


def _failed(error: BaseException) -> Status:
    """Return the status of a span; a message may quote what the caller gave, so it counts as content."""
    return Status(StatusCode.ERROR, str(error) if _captures_content() else type(error).__qualname__)


def _captures_content() -> bool:
    return os.environ.get(_CONTENT_VARIABLE, "").lower() == "true"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _depths(_: CallbackOptions) -> Iterable[Observation]:
    """Return how many requests each open database has to do."""
    return [metrics.Observation(pending, {"aiochroma.database": name}) for name, pending in open_databases()]
