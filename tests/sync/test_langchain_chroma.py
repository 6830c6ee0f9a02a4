"""Other libraries take the blocking client for Chroma's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from aiochroma import sync
from aiochroma.embedding.words import HashedEmbedder

pytest.importorskip(
    "langchain_chroma", reason="langchain-chroma is not installed (dependency group `frameworks`)"
)


class Embeddings:
    """What langchain expects of an embedder."""

    def __init__(self):
        self._embedder = HashedEmbedder()

    def embed_documents(self, texts):
        return [vector.tolist() for vector in self._embedder.embed(texts)]

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def test_as_the_client_of_langchain_chroma(tmp_path):
    """`langchain_chroma.Chroma(client=...)` adds, searches, updates and deletes over it, from several threads."""
    from langchain_chroma import Chroma
    from langchain_core.documents import Document

    with sync.PersistentClient(tmp_path) as client:
        store = Chroma(client=client, collection_name="notes", embedding_function=Embeddings())

        def add(number):
            return store.add_texts([f"note {number}: the colour of box {number} is blue"], ids=[str(number)])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(40)))
        assert [found.id for found in store.similarity_search("note 17 box 17", k=1)] == ["17"]
        assert len(store.as_retriever(search_kwargs={"k": 3}).invoke("the colour of a box")) == 3
        store.update_document("17", Document("note 17: the lid of box 17 is green", metadata={"box": 17}))
        store.delete(["3"])
        assert len(store.get()["ids"]) == 39
        assert store.get_by_ids(["17"])[0].page_content.endswith("green")
