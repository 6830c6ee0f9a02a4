"""Requests, results and what a connection says of itself are plain data: they survive pickle and copy, in another process too."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

import aiochroma
from aiochroma.core.request import Request
from aiochroma.core.worker import WorkerState

ECHO = """
import pickle, sys
while True:
    try:
        values = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    pickle.dump(values, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


def plain(value):
    """Return what can be compared with `==`, and says the type of everything in it."""
    if isinstance(value, Request):
        return (
            "Request",
            value.operation,
            plain(dict(value.arguments)),
            value.bulk,
            value.atomic,
            value.lane,
        )
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return ("dict", [(key, plain(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [plain(item) for item in value])
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return (type(value).__name__, plain(fields))
    if hasattr(value, "model_dump"):
        return (type(value).__name__, value.model_dump())
    return (type(value).__name__, value)


@pytest.fixture
def elsewhere():
    """Send values to another process and back."""
    process = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(values):
        pickle.dump(values, process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)

    yield send
    process.stdin.close()
    process.stdout.close()
    process.wait()


async def test_requests_and_results_travel_to_another_process_and_back(tmp_path, monkeypatch, elsewhere):
    """All calls of a memory's life, and of a collection's, are the same after a journey."""
    seen = []
    call = WorkerState._call

    def noting(self, resource, tickets, request):
        result = call(self, resource, tickets, request)
        if not callable(request.arguments.get("function")):
            seen.append((request, result))
        return result

    monkeypatch.setattr(WorkerState, "_call", noting)
    async with aiochroma.Memory(tmp_path / "memory", history=True) as memory:
        id = await memory.remember("The boat is in the harbour.", metadata={"kind": "fact"}, thread="t")
        await memory.remember_many([f"fact number {number}" for number in range(40)])
        await memory.recall("boat", window=1, where={"kind": "fact"})
        await memory.similar(id)
        await memory.update(id, metadata={"kind": "old"})
        await memory.pin(id)
        [hit async for hit in memory.list()]
        await memory.forget(id)
        await memory.count()
        await memory.health()
        info = memory.client.session.connection.describe()
    async with aiochroma.AsyncPersistentClient(tmp_path / "db") as client:
        collection = await client.create_collection("notes", embedding_function=None)
        await collection.add(ids=["a", "b"], embeddings=np.eye(2), metadatas=[{"k": 1}, {"k": True}])
        await collection.get(include=["embeddings", "metadatas"])
        await collection.query(query_embeddings=[[1.0, 0.0]], n_results=1, where={"k": {"$in": [1, 2]}})
        await collection.modify(name="renamed")
        await client.list_collections()
        await client.get_version()
        await client.delete_collection("renamed")
    assert len({request.operation for request, _ in seen}) >= 15
    for request, result in seen:
        returned = elsewhere((request, result))
        assert plain(returned) == plain((request, result)), request.operation
        assert plain(copy.deepcopy(request)) == plain(request)
    assert plain(elsewhere(info)) == plain(info)
