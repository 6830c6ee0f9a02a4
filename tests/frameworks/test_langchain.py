"""LangChain: a memory as a retriever, alone and in a chain."""

from __future__ import annotations

import asyncio

import pytest
from programs import error_without
from pydantic import ValidationError

import aiochroma
from aiochroma import sync

pytest.importorskip(
    "langchain_core", reason="langchain-core is not installed (dependency group `frameworks`)"
)

from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

from aiochroma.langchain import AiochromaRetriever


@pytest.fixture
async def memory(tmp_path):
    """A memory with two namespaces."""
    async with aiochroma.Memory(tmp_path) as memory:
        await memory.remember("My cat is called Kestrel.", namespace="personal", metadata={"kind": "pet"})
        await memory.remember("My bicycle is green.", namespace="personal")
        await memory.remember("The cat module is due in May.", namespace="projects")
        yield memory


def test_the_extra_is_named_where_langchain_is_absent():
    """Without the package the error names it, and the extra that brings it."""
    shown = error_without("langchain_core", "aiochroma.langchain")
    assert "aiochroma-memory[langchain]" in shown


async def test_documents_are_memories(memory):
    """Each document has the memory's text, id and metadata, with namespace, score and distance; the best comes first."""
    retriever = AiochromaRetriever(memory=memory, namespaces={"personal": 1, "projects": 1})
    assert isinstance(retriever, BaseRetriever)
    first, second = await retriever.ainvoke("what is my cat called?")
    assert first.page_content == "My cat is called Kestrel."
    assert await memory.get(first.id, namespace="personal")
    assert first.metadata["kind"] == "pet"
    assert (first.metadata["aiochroma:namespace"], second.metadata["aiochroma:namespace"]) == (
        "personal",
        "projects",
    )
    assert first.metadata["aiochroma:score"] > second.metadata["aiochroma:score"]
    assert 0 <= first.metadata["aiochroma:distance"] <= 2


async def test_options_reach_recall(memory):
    """All namespaces are searched by default, `k` holds for each, and what else recall takes can be given."""
    assert len(await AiochromaRetriever(memory=memory).ainvoke("cat")) == 3
    with pytest.raises(aiochroma.InvalidInputError, match="no argument 'nonsense'"):
        await AiochromaRetriever(memory=memory, options={"nonsense": 1}).ainvoke("cat")
    assert len(await AiochromaRetriever(memory=memory, k=1).ainvoke("cat")) == 2
    only = AiochromaRetriever(memory=memory, options={"where": {"kind": "pet"}})
    assert [document.metadata["kind"] for document in await only.ainvoke("cat")] == ["pet"]
    with pytest.raises(aiochroma.InvalidInputError):
        await AiochromaRetriever(memory=memory, k=0).ainvoke("cat")


async def test_arguments_of_one_question(memory, tmp_path):
    """`k`, namespaces and options may be given with the question as well."""
    retriever = AiochromaRetriever(memory=memory, k=1)
    assert len(await retriever.ainvoke("cat", k=2)) == 3
    assert len(await retriever.ainvoke("cat", k=2, namespaces="personal")) == 2
    assert len(await retriever.ainvoke("cat", where={"kind": "pet"})) == 1
    blocking = await asyncio.to_thread(sync.Memory(tmp_path).open)
    assert len(await AiochromaRetriever(memory=blocking, k=1).ainvoke("cat", k=2)) == 3
    await asyncio.to_thread(blocking.close)


async def test_metadata_of_the_user_stays(memory):
    """Keys that mean something to the retriever are the user's as well."""
    own = {"namespace": "mine", "score": 7, "distance": "far"}
    await memory.remember("The attic is dusty.", namespace="attic", metadata=own)
    (document,) = await AiochromaRetriever(memory=memory, namespaces="attic").ainvoke("dusty")
    assert {key: document.metadata[key] for key in own} == own
    assert document.metadata["aiochroma:namespace"] == "attic"


async def test_many_questions_at_once(memory):
    """A batch of questions is answered in order, each by itself."""
    answers = await AiochromaRetriever(memory=memory, k=1, namespaces="personal").abatch(
        ["cat", "bicycle"] * 10
    )
    assert [answer[0].page_content.split()[1] for answer in answers] == ["cat", "bicycle"] * 10


async def test_in_a_chain(memory):
    """The retriever is a part of a chain like any other."""
    prompt = PromptTemplate.from_template("{context}\n{question}")
    retriever = AiochromaRetriever(memory=memory, namespaces="personal", k=1)
    chain = {
        "context": retriever | (lambda found: found[0].page_content),
        "question": RunnablePassthrough(),
    } | prompt
    assert (await chain.ainvoke("my cat?")).text == "My cat is called Kestrel.\nmy cat?"


async def test_a_failing_namespace(memory, tmp_path):
    """A namespace that another embedder has written loses none of the others' documents."""
    async with aiochroma.Memory(
        tmp_path, embedder=lambda texts: [[1.0, float(len(text))] for text in texts]
    ) as other:
        await other.remember("x", namespace="foreign")
    found = await AiochromaRetriever(memory=memory).ainvoke("cat")
    assert {document.metadata["aiochroma:namespace"] for document in found} == {"personal", "projects"}


async def test_without_an_event_loop(memory, tmp_path):
    """A blocking memory serves both kinds of call; an asynchronous one says how to be called."""
    retriever = AiochromaRetriever(memory=memory)
    with pytest.raises(aiochroma.InvalidInputError, match="ainvoke"):
        retriever.invoke("cat")
    blocking = await asyncio.to_thread(sync.Memory(tmp_path).open)
    retriever = AiochromaRetriever(memory=blocking)
    assert len(await asyncio.to_thread(retriever.invoke, "cat")) == 3
    assert len(await retriever.ainvoke("cat")) == 3
    await asyncio.to_thread(blocking.close)


def test_wrong_arguments(tmp_path):
    """Something that is no memory, and arguments that do not exist, are refused at once."""
    with pytest.raises(ValidationError, match="memory"):
        AiochromaRetriever(memory=object())
    with pytest.raises(ValidationError, match="namespace"):
        AiochromaRetriever(memory=sync.Memory(tmp_path), namespace="typo")
