"""LangChain: the vector store, beside langchain-chroma's on the same collection and beside a memory on the same namespace."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

import aiochroma
from aiochroma import sync

pytest.importorskip(
    "langchain_core", reason="langchain-core is not installed (dependency group `frameworks`)"
)

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from aiochroma.langchain import AiochromaEmbeddings, AiochromaVectorStore

TEXTS = ["My cat is called Kestrel.", "The bicycle is green.", "Invoice INV-2231 is paid."]


class Letters(Embeddings):
    """An embedder of LangChain's: how often each letter occurs."""

    model = "letters-1"

    def embed_documents(self, texts):
        return [
            [1.0 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts
        ]

    def embed_query(self, text):
        return self.embed_documents([text])[0]


@pytest.fixture
async def store(tmp_path):
    store = AiochromaVectorStore(tmp_path)
    await store.aadd_texts(
        TEXTS, [{"kind": "pet"}, {"kind": "thing"}, {"kind": "paper"}], ids=["a", "b", None]
    )
    yield store
    await store.aclose()


async def test_both_ways_on_one_object(store):
    """What was added on the event loop is found on a plain thread and the other way round."""
    await asyncio.to_thread(store.add_documents, [Document("A dog called Rex.", id="d")])
    assert [found.id for found in await store.asimilarity_search("the dog Rex", k=1)] == ["d"]
    found = await asyncio.to_thread(store.similarity_search_with_score, "my cat's name", 1)
    assert found[0][0] == Document(TEXTS[0], id="a", metadata={"kind": "pet"})
    assert 0 <= found[0][1] < 2
    with pytest.raises(aiochroma.BlockingCallError):
        store.similarity_search("on the loop")


async def test_copies_share_the_store(store):
    """A program's state with a store in it can be copied; no other process can have it."""
    assert copy.deepcopy({"store": store})["store"] is store
    with pytest.raises(aiochroma.InvalidInputError, match="cannot be pickled"):
        pickle.dumps(store)


async def test_searches(store):
    """Filters, texts, vectors, differing results and words each find what they should."""
    thing = await store.asimilarity_search("cat", k=3, filter={"kind": "thing"})
    assert [found.id for found in thing] == ["b"]
    assert [
        found.id
        for found in await store.asimilarity_search("cat", k=3, where_document={"$contains": "green"})
    ] == ["b"]
    vector = await store.embeddings.aembed_query(TEXTS[0])
    assert [found.id for found in await store.asimilarity_search_by_vector(vector, k=1)] == ["a"]
    relevance = await store.asimilarity_search_with_relevance_scores(TEXTS[0], k=1)
    assert 0.9 < relevance[0][1] <= 1
    hybrid = await store.asimilarity_search("INV-2231", k=1, mode="hybrid")
    assert [found.page_content for found in hybrid] == [TEXTS[2]]
    assert hybrid[0].metadata == {"kind": "paper"}
    retriever = store.as_retriever(search_kwargs={"k": 1, "mode": "text"})
    assert [found.page_content for found in await retriever.ainvoke("INV-2231")] == [TEXTS[2]]


async def test_results_that_differ(tmp_path):
    """Of near-duplicates only one is returned where results are to differ from each other."""
    store = AiochromaVectorStore(tmp_path, Letters(), collection_name="letters")
    await store.aadd_texts(["aaaa", "aaaa a", "aaaa b", "zzzz"], ids=["1", "2", "3", "4"])
    nearest = [found.id for found in await store.asimilarity_search("aaaa", k=2)]
    assert nearest == ["1", "2"]
    differing = await store.amax_marginal_relevance_search("aaaa", k=2, fetch_k=4, lambda_mult=0.1)
    assert [found.id for found in differing] == ["1", "4"]
    vector = Letters().embed_query("aaaa")
    again = await asyncio.to_thread(
        store.max_marginal_relevance_search_by_vector, vector, 2, 4, 0.1, filter=None
    )
    assert [found.id for found in again] == ["1", "4"]
    await store.aclose()


async def test_replaced_with_its_metadata(store):
    """A document that is added again under its id leaves nothing of the one before, and the others alone."""
    await store.aadd_documents([Document("A lizard.", id="a", metadata={"new": 1})])
    assert await store.aget_by_ids(["b", "a", "nobody"]) == [
        Document(TEXTS[1], id="b", metadata={"kind": "thing"}),
        Document("A lizard.", id="a", metadata={"new": 1}),
    ]
    await store.aadd_documents([Document("A lizard.", id="a")])
    assert (await store.aget_by_ids(["a"]))[0].metadata == {}


async def test_deleted(store):
    """By id, by filter, or all; what is not there is ignored."""
    assert await store.adelete(["a", "nobody"])
    assert await store.adelete(filter={"kind": "thing"})
    left = await store.asimilarity_search("anything", k=5)
    assert [found.page_content for found in left] == [TEXTS[2]]
    assert await store.adelete()
    assert await store.asimilarity_search("anything", k=5) == []
    assert await store.adelete()


async def test_the_collection_is_deleted_by_somebody_else(store, tmp_path):
    """It is empty then, and made again by the next write."""
    async with await aiochroma.AsyncPersistentClient(tmp_path) as client:
        await client.delete_collection("langchain")
    assert await store.asimilarity_search("cat") == []
    await store.aadd_texts(["A new beginning."], ids=["n"])
    assert [found.id for found in await store.asimilarity_search("cat")] == ["n"]


async def test_wrong_arguments(store, tmp_path):
    """Lists of different lengths, unknown arguments and another embedder's collection are refused by name."""
    with pytest.raises(aiochroma.InvalidInputError, match="2 `ids`"):
        await store.aadd_texts(["one"], ids=["1", "2"])
    for texts in ("one", ["one", 5]):
        with pytest.raises(aiochroma.InvalidInputError, match=r"`texts` must be|must be a string, got 5"):
            await store.aadd_texts(texts)
    with pytest.raises(aiochroma.InvalidInputError, match="filters"):
        await store.asimilarity_search("cat", filters={"kind": "pet"})
    other = AiochromaVectorStore(tmp_path, Letters())
    with pytest.raises(aiochroma.EmbedderMismatchError, match="letters-1"):
        await other.asimilarity_search("cat")
    await other.aclose()


async def test_the_same_collection_as_a_memory(store, tmp_path):
    """A store's collection is a memory's namespace: each finds what the other has written."""
    async with aiochroma.Memory(tmp_path) as memory:
        assert await memory.namespaces() == ["langchain"]
        assert (await memory.recall("INV-2231", k=1))[0].text == TEXTS[2]
        await memory.remember("The parrot sings.", namespace="langchain", metadata={"kind": "pet"})
    found = await store.asimilarity_search("a parrot that sings", k=1)
    assert [(document.page_content, document.metadata) for document in found] == [
        ("The parrot sings.", {"kind": "pet"})
    ]


@pytest.mark.filterwarnings(
    "ignore:Relevance scores"
)  # Its own: letters are counted, and vectors of any length.
@pytest.mark.parametrize("embeddings", [Letters(), AiochromaEmbeddings()])
def test_the_same_collection_as_langchain_chroma(tmp_path, embeddings):
    """A collection that langchain-chroma wrote is opened and written here, and the other way round."""
    chroma = pytest.importorskip("langchain_chroma", reason="langchain-chroma is not installed").Chroma
    with sync.PersistentClient(tmp_path) as client:
        theirs = chroma("theirs", embeddings, client=client)
        theirs.add_texts(TEXTS, [{"n": 1}, {"n": 2}, {"n": 3}], ids=["1", "2", "3"])
        ours = AiochromaVectorStore(client=client, embedding=embeddings, collection_name="theirs")
        # Also the first time, when nothing is known yet of the collection.
        relevant = theirs.similarity_search_with_relevance_scores("The cat is called Kestrel.", k=1)
        assert ours.similarity_search_with_relevance_scores("The cat is called Kestrel.", k=1) == relevant
        expected = theirs.similarity_search_with_score("a green bicycle", k=3)
        assert ours.similarity_search_with_score("a green bicycle", k=3) == expected
        ours.add_documents([Document("A red car.", id="4", metadata={"n": 4})])
        assert theirs.get_by_ids(["4"]) == [Document("A red car.", id="4", metadata={"n": 4})]
        with pytest.raises(aiochroma.EmbedderMismatchError, match="another program"):
            ours.similarity_search("car", mode="hybrid")

        mine = AiochromaVectorStore.from_texts(TEXTS, embeddings, client=client, collection_name="mine")
        read = chroma("mine", embeddings, client=client, create_collection_if_not_exists=False)
        assert read.similarity_search("a green bicycle", k=3) == mine.similarity_search(
            "a green bicycle", k=3
        )
        read.add_texts(["A red car."], [{"n": 4}], ids=["4"])
        assert mine.get_by_ids(["4"]) == [Document("A red car.", id="4", metadata={"n": 4})]


async def test_clients_of_the_caller(tmp_path):
    """A client of either kind serves both kinds of methods, and is not closed with the store."""
    async with await aiochroma.AsyncPersistentClient(tmp_path) as client:
        store = await AiochromaVectorStore.afrom_texts(TEXTS, Letters(), client=client)
        assert len(await store.asimilarity_search("x", k=5)) == 3
        assert len(await asyncio.to_thread(store.similarity_search, "x", 5)) == 3
        await store.aclose()
        assert not client.closed
    blocking = await asyncio.to_thread(sync.PersistentClient, tmp_path)
    store = AiochromaVectorStore(client=blocking, embedding=Letters())
    assert len(await store.asimilarity_search("x", k=5)) == 3
    await store.aclose()
    assert not blocking.closed
    await asyncio.to_thread(blocking.close)


async def test_langchains_embeddings_in_a_memory(tmp_path):
    """A memory takes an embedder of LangChain's, and refuses to read what another model of it has written."""
    async with aiochroma.Memory(tmp_path, embedder=Letters()) as memory:
        await memory.remember("abc")
        await memory.remember("xyz")
        assert [hit.text for hit in await memory.recall("cba", k=1, mode="vector")] == ["abc"]

    class Others(Letters):
        def embed_documents(self, texts):
            return [row[::-1] for row in super().embed_documents(texts)]

    async with aiochroma.Memory(tmp_path, embedder=Others()) as memory:
        with pytest.raises(aiochroma.EmbedderMismatchError, match="letters-1"):
            await memory.recall("abc", namespaces="default")


class _Down(Letters):
    """An embedder whose service goes away, or answers something else."""

    answer = None

    def embed_documents(self, texts):
        return super().embed_documents(texts) if self.answer is None else self.answer()

    def embed_query(self, text):
        return [1.0] * 26 if self.answer is None else self.answer()


def _refused():
    raise ConnectionError("connection refused")


@pytest.mark.parametrize("answer", [_refused, lambda: 7, lambda: [float("nan")] * 26, list])
async def test_what_an_embedder_does_is_an_error_of_the_tree(tmp_path, answer):
    """Whether it raises or returns no vectors, awaited and without a loop; nothing is written."""
    embedder = _Down()
    store = AiochromaVectorStore(tmp_path, embedder)
    await store.aadd_texts(TEXTS)
    embedder.answer = answer
    for call in (
        lambda: store.aadd_texts(["One more."]),
        lambda: store.asimilarity_search("cat"),
        lambda: store.amax_marginal_relevance_search("cat"),
        lambda: asyncio.to_thread(store.add_texts, ["One more."]),
        lambda: asyncio.to_thread(store.similarity_search, "cat"),
    ):
        with pytest.raises(aiochroma.EmbeddingFailedError, match="_Down"):
            await call()
    embedder.answer = None
    assert len(await store.asimilarity_search("cat", k=10)) == len(TEXTS)
    await store.aclose()


async def test_one_id_is_not_the_ids_of_its_letters(store):
    """Given in the place of a list it would delete other documents."""
    for call in (store.adelete("ab"), store.aget_by_ids("ab"), store.aadd_texts(["x", "y"], ids="ab")):
        with pytest.raises(aiochroma.InvalidInputError, match="`ids`"):
            await call
    assert len(await store.aget_by_ids(["a", "b"])) == 2


async def test_what_is_no_text_is_refused_before_it_is_embedded(store):
    """Half a character, no text at all, metadata that are none."""
    for call, named in (
        (store.asimilarity_search("half a \ud83d"), "`query`"),
        (store.asimilarity_search(None), "`query`"),
        (store.aadd_texts(["whole", "half a \ud83d"]), r"texts\[1\]"),
        (store.aadd_texts(["whole"], ["kind"]), r"metadatas\[0\]"),
    ):
        with pytest.raises(aiochroma.InvalidInputError, match=named):
            await call


_ODD = [
    7,
    -1,
    float("nan"),
    10**400,
    b"x",
    object(),
    True,
    {"a": object()},
    [b"x"],
    ["\ud800"],
    [[1.0]],
    print,
]
_ODD_CALLS = {
    "texts": (lambda store, odd: store.aadd_texts(odd), []),
    "metadatas": (lambda store, odd: store.aadd_texts(["text"], odd), []),
    "a value of metadata": (lambda store, odd: store.aadd_texts(["text"], [{"key": odd}]), [7, -1, True]),
    "a key of metadata": (lambda store, odd: store.aadd_texts(["text"], [{str: odd}]), []),
    "ids": (lambda store, odd: store.aadd_texts(["text"], ids=odd), []),
    "an id": (lambda store, odd: store.aadd_texts(["text"], ids=[odd]), []),
    "ids to get": (lambda store, odd: store.aget_by_ids(odd), []),
    "an id to get": (lambda store, odd: store.aget_by_ids([odd]), []),
    "ids to delete": (lambda store, odd: store.adelete(odd), []),
    "a filter": (lambda store, odd: store.asimilarity_search("text", filter=odd), []),
    "a question": (lambda store, odd: store.asimilarity_search(odd), []),
    "k": (lambda store, odd: store.asimilarity_search("text", odd), [7]),
    "a mode": (lambda store, odd: store.asimilarity_search("text", mode=odd), []),
    "a condition on texts": (lambda store, odd: store.asimilarity_search("text", where_document=odd), []),
    "a vector": (lambda store, odd: store.asimilarity_search_by_vector(odd), []),
    "documents to fetch": (lambda store, odd: store.amax_marginal_relevance_search("text", 2, odd), [7]),
    "a diversity": (
        lambda store, odd: store.amax_marginal_relevance_search("text", 2, 4, odd),
        [7, -1],
    ),
}


@pytest.mark.parametrize("name", _ODD_CALLS)
async def test_odd_arguments_are_refused_in_words(store, name):
    """Each is an error of the tree, and nothing is written or deleted."""
    call, fine = _ODD_CALLS[name]
    before = await store.aget_by_ids(["a", "b"])
    count = await store._client.known_collection("langchain").count()
    for odd in _ODD:
        if not any(type(odd) is type(one) and odd == one for one in fine):
            with pytest.raises(aiochroma.InvalidInputError):
                await call(store, odd)
    assert await store.aget_by_ids(["a", "b"]) == before
    if not fine:
        assert await store._client.known_collection("langchain").count() == count


async def test_a_store_and_an_embedder_refuse_odd_options(tmp_path):
    """By name, before a directory is made; an embedder that returns no vectors is to blame itself."""
    for option in ("path", "embedding", "collection_name", "client"):
        for odd in _ODD:
            with pytest.raises(aiochroma.InvalidInputError, match=option):
                AiochromaVectorStore(**{"path": tmp_path / "new", option: odd})
    assert not (tmp_path / "new").exists()
    embeddings = AiochromaEmbeddings("hashed")
    for odd in _ODD:
        with pytest.raises(aiochroma.InvalidInputError, match="text"):
            embeddings.embed_documents([odd])
        with pytest.raises(aiochroma.InvalidInputError, match="text"):
            embeddings.embed_query(odd)
    with pytest.raises(aiochroma.EmbeddingFailedError):
        AiochromaEmbeddings(lambda texts: texts).embed_query("text")


async def test_a_question_without_a_direction_finds_the_first(store):
    """An empty question has no vector to be different from, and is no error."""
    assert len(await store.amax_marginal_relevance_search("", k=2)) == 2
