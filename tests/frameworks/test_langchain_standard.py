"""LangChain's own standard tests, for the vector store and for the retriever (see `environments.py`)."""

from __future__ import annotations

import pytest

from aiochroma import sync

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed (see environments.py)")

from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from aiochroma.langchain import AiochromaRetriever, AiochromaVectorStore


class TestVectorStore(VectorStoreIntegrationTests):
    """Both ways to call it, on a directory."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = AiochromaVectorStore(tmp_path, self.get_embeddings())
        yield store
        store.close()


class TestVectorStoreInMemory(VectorStoreIntegrationTests):
    """The same without files."""

    @pytest.fixture
    def vectorstore(self):
        store = AiochromaVectorStore(None, self.get_embeddings())
        yield store
        store.delete()
        store.close()


class TestRetriever(RetrieversIntegrationTests):
    """Over a memory."""

    @pytest.fixture(autouse=True)
    def memory(self, tmp_path):
        with sync.Memory(tmp_path) as memory:
            memory.remember_many([f"note {number} is about cats" for number in range(5)])
            self._memory = memory
            yield

    retriever_constructor = AiochromaRetriever
    retriever_query_example = "cats"

    @property
    def retriever_constructor_params(self):
        return {"memory": self._memory}
