"""OpenTelemetry: spans of a memory's calls, metrics of its database, and nothing of either while it is off."""

from __future__ import annotations

import asyncio
import contextvars
import json
import tempfile
import time

import pytest
from chromadb.errors import NotFoundError
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from programs import printed_by

import aiochroma
from aiochroma import sync, telemetry
from aiochroma.core.stats import observer


class Recorded:
    """What was exported."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self):
        return list(self.exporter.get_finished_spans())

    def metrics(self):
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric.data.data_points
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def recorded():
    recorded = Recorded()
    telemetry.instrument(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    yield recorded
    telemetry.uninstrument()
    recorded.tracers.shutdown()
    recorded.meters.shutdown()


async def test_spans_of_a_memory(recorded, tmp_path):
    """Each call is a span under the conventions' names, with times and numbers, and without texts."""
    async with aiochroma.Memory(tmp_path) as memory:
        with recorded.tracers.get_tracer("test").start_as_current_span("outer") as outer:
            id = await memory.remember("The secret door code is 4711.", namespace="house")
            await memory.recall("what is the secret?", namespaces="house")
            await memory.update(id, namespace="house", metadata={"n": 1})
            await memory.forget(id, namespace="house")
            await memory.forget_namespace("house")
    *spans, _ = recorded.spans()
    operations = ["upsert_memory", "search_memory", "update_memory", "delete_memory", "delete_memory_store"]
    made, *spans = spans
    assert [made.name, *(span.name for span in spans)] == ["create_memory_store", *operations]
    assert made.attributes["gen_ai.memory.store.id"] == "house"
    assert made.parent.span_id == spans[0].context.span_id
    assert made.attributes["aiochroma.requests"] == 1 < spans[0].attributes["aiochroma.requests"]
    for span in spans:
        attributes = span.attributes
        assert attributes["gen_ai.operation.name"] == span.name
        assert attributes["gen_ai.memory.store.id"] == "house"
        assert span.parent.span_id == outer.get_span_context().span_id
        assert attributes["aiochroma.requests"] >= 1
        assert attributes["aiochroma.queue_wait"] >= 0
        assert attributes["aiochroma.database_time"] > 0
        assert "secret" not in span.to_json()
    assert spans[0].attributes["gen_ai.memory.record.id"] == id
    assert spans[1].attributes["gen_ai.memory.record.count"] == 1
    assert spans[1].attributes["aiochroma.embedding_time"] > 0
    assert spans[3].attributes["gen_ai.memory.record.id"] == id


async def test_texts_where_they_are_wanted(recorded, tmp_path, monkeypatch):
    """Question and records are recorded where the standard switch says so."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("The attic is dusty.")
        await memory.recall("dust?")
    _, written, searched = recorded.spans()
    assert json.loads(written.attributes["gen_ai.memory.records"]) == [{"content": "The attic is dusty."}]
    assert searched.attributes["gen_ai.memory.query.text"] == "dust?"
    assert json.loads(searched.attributes["gen_ai.memory.records"])[0]["content"] == "The attic is dusty."


async def test_errors(recorded, tmp_path):
    """What a call raises is on its span and in its duration; what a request raises is counted."""
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("x", namespace="foreign")
    async with aiochroma.Memory(tmp_path, embedder=lambda texts: [[1.0] for _ in texts]) as memory:
        with pytest.raises(aiochroma.EmbedderMismatchError):
            await memory.recall("x", namespaces="foreign")
        with pytest.raises(Exception, match="nowhere"):
            await memory.client.get_collection("nowhere")
    span = recorded.spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "EmbedderMismatchError"
    metrics = recorded.metrics()
    assert {point.attributes.get("error.type") for point in metrics["gen_ai.client.operation.duration"]} == {
        None,
        "EmbedderMismatchError",
    }
    assert [point.attributes["error.type"] for point in metrics["aiochroma.request.faults"]] == [
        "NotFoundError"
    ]


@pytest.mark.parametrize("captured", [False, True])
async def test_what_an_error_quotes_is_content(recorded, tmp_path, monkeypatch, captured):
    """The message of an error is on a span only where texts are wanted, in the process that has the database as well."""
    if captured:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")

    def fail(texts):
        raise RuntimeError(f"cannot read {texts[-1]}")

    async with aiochroma.Memory(tmp_path, embedder=fail) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError):
            await memory.remember("My PIN is 4711.")
        carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        context = contextvars.copy_context()
        context.run(observer().continue_call, carrier)
        with pytest.raises(NotFoundError):
            await asyncio.create_task(memory.client.get_collection("my-pin-is-4711"), context=context)
    failed = [span for span in recorded.spans() if span.status.status_code is StatusCode.ERROR]
    assert [span.attributes["error.type"] for span in failed] == ["EmbeddingFailedError", "NotFoundError"]
    assert ["4711" in span.status.description for span in failed] == [captured, captured]
    assert captured or not any("4711" in span.to_json() for span in failed)


async def test_metrics(recorded, tmp_path):
    """Queue, calls, embedding and hits are measured for each database; merged requests are told from lone ones."""
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember_many([f"note {number}" for number in range(20)])
        await asyncio.gather(*[memory.recall(f"note {number}", namespaces="default") for number in range(20)])
        metrics = recorded.metrics()
        assert [point.attributes["aiochroma.database"] for point in metrics["aiochroma.queue.depth"]] == [
            memory.stats().name
        ]
    for name in ("aiochroma.request.wait", "aiochroma.request.run", "aiochroma.embedding.duration"):
        assert sum(point.count for point in metrics[name]) > 0
        assert all(point.min >= 0 for point in metrics[name])
    (hits,) = metrics["aiochroma.recall.hits"]
    assert (hits.count, hits.sum) == (20, 100)
    searches = [span for span in recorded.spans() if span.name == "search_memory"]
    assert max(span.attributes["aiochroma.merged_with"] for span in searches) > 0


def test_without_an_event_loop(recorded, tmp_path):
    """The blocking memory is recorded as the asynchronous one."""
    with sync.Memory(tmp_path) as memory:
        memory.remember("x y z")
        memory.recall("x")
    assert [span.name for span in recorded.spans()] == [
        "create_memory_store",
        "upsert_memory",
        "search_memory",
    ]
    assert recorded.spans()[2].attributes["aiochroma.requests"] >= 1


async def test_off(recorded, tmp_path):
    """Afterwards nothing is recorded any more."""
    telemetry.uninstrument()
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("x y z")
    assert recorded.spans() == []
    assert recorded.reader.get_metrics_data() is None
    assert not trace.get_current_span().is_recording()


def test_nothing_is_imported_while_it_is_off():
    """Importing the package imports nothing of OpenTelemetry."""
    code = "import sys, aiochroma, aiochroma.sync; print([name for name in sys.modules if 'opentelemetry' in name])"
    assert printed_by("-c", code) == "[]\n"


async def test_stalls_of_the_loop_are_measured(recorded, tmp_path):
    """A timer that comes due while the loop stands still is late by as much."""
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("something")
        time.sleep(0.5)
        while "aiochroma.loop.stall" not in recorded.metrics():
            await asyncio.sleep(0)
    (stalls,) = recorded.metrics()["aiochroma.loop.stall"]
    assert stalls.max >= 0.4


SETUP = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from aiochroma import telemetry

def instrument():
    tracers = TracerProvider()
    out = open(os.environ["SPANS_OF_THE_HOST"], "a", buffering=1)
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n")
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.instrument(tracer_provider=tracers)
"""


async def test_the_hosts_work_is_below_the_callers_span(recorded, tmp_path, monkeypatch):
    """`AIOCHROMA_HOST_SETUP` instruments the host; a `traceparent` goes along with each request."""
    (tmp_path / "host_setup.py").write_text(SETUP)
    written = tmp_path / "spans"
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", folder)
        monkeypatch.setenv("AIOCHROMA_HOST_SETUP", "host_setup:instrument")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("SPANS_OF_THE_HOST", str(written))
        async with aiochroma.Memory(tmp_path / "memory", process="shared", host_idle=0) as memory:
            await memory.remember("something")
            await memory.recall("anything")
    there = [json.loads(line) for line in written.read_text().splitlines()]
    works = ("get_or_create_collection", "remember", "search_memories")
    for span, work in zip(recorded.spans(), works, strict=True):
        context = span.get_span_context()
        found = [each for each in there if each["name"] == f"aiochroma.{work}"]
        assert [each["parent_id"] for each in found] == [f"0x{context.span_id:016x}"]
        assert [each["context"]["trace_id"] for each in found] == [f"0x{context.trace_id:032x}"]
        assert found[0]["attributes"]["aiochroma.queue_wait"] >= 0


async def test_a_host_that_cannot_be_set_up_says_so(tmp_path, monkeypatch):
    """The error of the function is that of the opening."""
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", folder)
        monkeypatch.setenv("AIOCHROMA_HOST_SETUP", "no_such_module:function")
        with pytest.raises(aiochroma.InvalidInputError, match=r"AIOCHROMA_HOST_SETUP.*no_such_module"):
            async with aiochroma.AsyncPersistentClient(tmp_path / "store", process="shared") as client:
                await client.heartbeat()
