"""Who is compared: each does the same work, in the way its users do it on an event loop."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from _data import PLACES, place_name

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = 5
QUERY: dict[str, Any] = {"n_results": RESULTS, "include": ["documents", "distances"]}
_SERVER_START_SECONDS = 60.0


class Contender:
    """A way to use Chroma from an event loop.

    Attributes:
        label: What tables call it.
        places: The collections, in the order of their numbers.
        server: Process id of a server of its own, or None.
    """

    label = ""
    server: int | None = None

    def __init__(self) -> None:
        self.places: list[Any] = []

    async def open(self, directory: Path) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def query(self, place: int, vector: Any) -> Any:
        return await self.places[place].query(query_embeddings=[vector], **QUERY)

    async def fan_out(self, vector: Any) -> list[Any]:
        """Ask all places at once."""
        return await asyncio.gather(*(self.query(place, vector) for place in range(PLACES)))

    async def get(self, place: int, ids: list[str]) -> Any:
        return await self.places[place].get(ids=ids, include=["documents"])

    async def upsert(self, place: int, ids: list[str], vectors: Any, documents: list[str]) -> None:
        await self.places[place].upsert(ids=ids, embeddings=vectors, documents=documents)


class _Synchronous(Contender):
    """Plain chromadb; the subclasses differ in where a call runs."""

    async def call(self, function: Any, **arguments: Any) -> Any:
        raise NotImplementedError

    async def open(self, directory: Path) -> None:
        self.places = open_plain(directory)

    async def close(self) -> None:
        self.places.clear()

    async def query(self, place: int, vector: Any) -> Any:
        return await self.call(self.places[place].query, query_embeddings=[vector], **QUERY)

    async def get(self, place: int, ids: list[str]) -> Any:
        return await self.call(self.places[place].get, ids=ids, include=["documents"])

    async def upsert(self, place: int, ids: list[str], vectors: Any, documents: list[str]) -> None:
        await self.call(self.places[place].upsert, ids=ids, embeddings=vectors, documents=documents)


class Plain(_Synchronous):
    """Called on the event loop, one call after the other."""

    label = "chromadb on the loop"

    async def call(self, function: Any, **arguments: Any) -> Any:
        return function(**arguments)

    async def fan_out(self, vector: Any) -> list[Any]:
        # Without the tasks of a gather, which would only cost: the calls cannot overlap.
        return [self.places[place].query(query_embeddings=[vector], **QUERY) for place in range(PLACES)]


class ToThread(_Synchronous):
    """The event loop's own pool of threads."""

    label = "asyncio.to_thread"

    async def call(self, function: Any, **arguments: Any) -> Any:
        return await asyncio.to_thread(function, **arguments)


class FourThreads(_Synchronous):
    """A pool of four threads."""

    label = "pool of 4 threads"

    async def open(self, directory: Path) -> None:
        await super().open(directory)
        self.pool = ThreadPoolExecutor(4)

    async def close(self) -> None:
        await super().close()
        self.pool.shutdown()

    async def call(self, function: Any, **arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(function, **arguments))


class Http(Contender):
    """Chroma's asynchronous client and a server of its own on the loopback interface."""

    label = "AsyncHttpClient + chroma run"

    async def open(self, directory: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        port = _free_port()
        # What the program `chroma` does; it is not on every PATH.
        program = [sys.executable, "-c", "from chromadb.cli.cli import app; app()"]
        self.process = subprocess.Popen(
            [*program, "run", "--path", str(directory), "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.server = self.process.pid
        until = time.monotonic() + _SERVER_START_SECONDS
        while True:
            try:
                settings = Settings(anonymized_telemetry=False)
                self.client = await chromadb.AsyncHttpClient("127.0.0.1", port, settings=settings)
                break
            except Exception:
                if self.process.poll() is not None or time.monotonic() > until:
                    await self.close()
                    raise
                await asyncio.sleep(0.1)
        self.places = [
            await self.client.get_collection(place_name(place), embedding_function=None)
            for place in range(PLACES)
        ]

    async def close(self) -> None:
        self.process.terminate()
        self.process.wait()


class Ours(Contender):
    """aiochroma's client."""

    label = "aiochroma"

    async def open(self, directory: Path) -> None:
        import aiochroma

        self.client = await aiochroma.AsyncPersistentClient(directory)
        self.places = [
            await self.client.get_collection(place_name(place), embedding_function=None)
            for place in range(PLACES)
        ]

    async def close(self) -> None:
        await self.client.aclose()


class _Recalling(Contender):
    """Takes a text and returns (namespace, id, distance) of the nearest memories in every namespace."""

    async def recall(self, text: str) -> list[tuple[str, str, float]]:
        raise NotImplementedError


class LangChain(_Recalling):
    """langchain-chroma's asynchronous methods with aiochroma's embedder."""

    label = "langchain-chroma, asynchronous"

    async def open(self, directory: Path) -> None:
        import chromadb
        from chromadb.config import Settings
        from langchain_chroma import Chroma

        client = chromadb.PersistentClient(str(directory), Settings(anonymized_telemetry=False))
        embeddings = _langchain_embeddings()
        self.places = [
            Chroma(place_name(place), embedding_function=embeddings, client=client) for place in range(PLACES)
        ]

    async def close(self) -> None:
        self.places.clear()

    async def recall(self, text: str) -> list[tuple[str, str, float]]:
        found = await asyncio.gather(
            *(store.asimilarity_search_with_score(text, k=RESULTS) for store in self.places)
        )
        return [
            (place_name(place), str(document.id), distance)
            for place, documents in enumerate(found)
            for document, distance in documents
        ]


class OurMemory(_Recalling):
    """aiochroma's memory."""

    label = "aiochroma.Memory"

    async def open(self, directory: Path) -> None:
        import aiochroma

        self.memory = aiochroma.Memory(directory)
        await self.memory.open()
        self.names = [place_name(place) for place in range(PLACES)]
        # langchain-chroma searches vectors only, so a memory is asked for the same.
        self.options: dict[str, Any] = {"mode": "vector"}
        # Plain chromadb wrote the database; what a memory has written itself has its index, which this makes.
        await self.memory.recall("index", namespaces=self.names)

    async def close(self) -> None:
        await self.memory.aclose()

    async def recall(self, text: str) -> list[tuple[str, str, float]]:
        found = await self.memory.recall(text, namespaces=self.names, k=RESULTS, **self.options)
        return [(hit.namespace, hit.id, hit.distance) for hit in found]


CONTENDERS: dict[str, type[Contender]] = {
    "plain": Plain,
    "to_thread": ToThread,
    "threads-4": FourThreads,
    "http": Http,
    "ours": Ours,
    "langchain": LangChain,
    "memory": OurMemory,
}


def open_plain(directory: Path) -> list[Any]:
    """Open a database with plain chromadb and return its collections."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(directory), Settings(anonymized_telemetry=False))
    return [client.get_collection(place_name(place), embedding_function=None) for place in range(PLACES)]


def _langchain_embeddings() -> Any:
    from langchain_core.embeddings import Embeddings

    from aiochroma.embedding.choice import default_embedder

    function = default_embedder().function

    class Wrapped(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector.tolist() for vector in function(texts)]

        def embed_query(self, text: str) -> list[float]:
            return function.embed_query(input=[text])[0].tolist()

    return Wrapped()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
