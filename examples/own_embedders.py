"""Embedders of your own: any service with OpenAI's interface, Ollama, and sentence-transformers.

    EMBEDDINGS_URL=http://localhost:11434/v1 EMBEDDINGS_MODEL=nomic-embed-text python examples/own_embedders.py ./memory

An embedder is an object with ``identity`` (a name that is stored with the data: the model, no keys and no addresses),
``dimensions``, ``max_distance`` (up to which cosine distance it calls texts related) and ``embed``, which may be asynchronous.
With ``window`` and ``count_tokens`` longer texts are given to it in chunks. A plain function of a list of texts does as well.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import httpx

import aiochroma

if TYPE_CHECKING:
    from collections.abc import Sequence


class OpenAiCompatible:
    """A model behind ``POST {url}/embeddings``: OpenAI, Azure, vLLM, LM Studio, llama.cpp, Ollama's ``/v1`` and others.

    Args:
        url: The address of the service, up to and with its version.
        model: The name of the model.
        dimensions: The length of its vectors.
        api_key: Sent as bearer token.
        batch: How many texts a request may hold.
        seconds: How long a request may take.
    """

    def __init__(
        self,
        url: str,
        model: str,
        dimensions: int,
        *,
        api_key: str = "",
        batch: int = 64,
        seconds: float = 30.0,
    ) -> None:
        self.identity = f"openai-compatible:{model}:{dimensions}"
        self.dimensions = dimensions
        self.max_distance = 0.6
        self._url = f"{url.rstrip('/')}/embeddings"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._batch = batch
        self._seconds = seconds

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts, some at a time; what goes wrong comes out of the memory as ``EmbeddingFailedError``."""
        vectors: list[list[float]] = []
        # A client for each call: it belongs to the event loop on which the memory is used.
        async with httpx.AsyncClient(headers=self._headers, timeout=self._seconds) as client:
            for start in range(0, len(texts), self._batch):
                batch = list(texts[start : start + self._batch])
                answer = await client.post(self._url, json={"model": self._model, "input": batch})
                answer.raise_for_status()
                rows = sorted(answer.json()["data"], key=lambda row: row["index"])
                vectors += [row["embedding"] for row in rows]
        return vectors


class Ollama:
    """A model of a local Ollama, by its own interface.

    Args:
        model: The name of the model, which ``ollama pull`` has brought.
        dimensions: The length of its vectors.
        url: The address of the server.
        seconds: How long a request may take.
    """

    def __init__(
        self, model: str, dimensions: int, *, url: str = "http://localhost:11434", seconds: float = 60.0
    ) -> None:
        self.identity = f"ollama:{model}:{dimensions}"
        self.dimensions = dimensions
        self.max_distance = 0.6
        self._url = f"{url.rstrip('/')}/api/embed"
        self._model = model
        self._seconds = seconds

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts. Not asynchronous: it runs on a thread of its own, and serves the blocking memory as well."""
        answer = httpx.post(
            self._url, json={"model": self._model, "input": list(texts)}, timeout=self._seconds
        )
        answer.raise_for_status()
        vectors: list[list[float]] = answer.json()["embeddings"]
        return vectors


class SentenceTransformer:
    """A model of sentence-transformers from a folder or from its cache.

    Args:
        name: Its name or its folder.
    """

    max_distance = 0.7

    def __init__(self, name: str) -> None:
        import sentence_transformers

        self._model = sentence_transformers.SentenceTransformer(name)
        self.identity = f"sentence-transformers:{os.path.basename(name)}"  # noqa: PTH119 - a name or a folder
        self.dimensions = int(self._model.get_sentence_embedding_dimension())
        self.window = int(self._model.max_seq_length)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, those that the model adds included."""
        return len(self._model.tokenizer.encode(text, truncation=False))

    def embed(self, texts: Sequence[str]) -> Any:
        """Embed texts."""
        return self._model.encode(list(texts), normalize_embeddings=True)


async def main(path: str) -> None:
    """Remember a few facts with the service that the environment names, and ask for one by its meaning."""
    embedder = OpenAiCompatible(
        os.environ.get("EMBEDDINGS_URL", "http://localhost:11434/v1"),
        os.environ.get("EMBEDDINGS_MODEL", "nomic-embed-text"),
        int(os.environ.get("EMBEDDINGS_DIMENSIONS", "768")),
        api_key=os.environ.get("EMBEDDINGS_KEY", ""),
    )
    try:
        async with aiochroma.Memory(path, embedder=embedder) as memory:
            await memory.remember_many(
                ["The spare key is with the neighbour.", "The dentist moved to Harbour Street."]
            )
            for hit in await memory.recall("Who keeps the key?", k=1):
                print(hit.text)
    except aiochroma.EmbeddingFailedError as error:
        print(f"The embedding service failed: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "./memory"))
