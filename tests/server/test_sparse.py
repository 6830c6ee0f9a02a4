"""A memory with sparse vectors: what a local server refuses, and what it finds on one that has them.

Neither Chroma Cloud nor distributed Chroma runs here. A proxy adds to a real local server what it lacks.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter

import chromadb
import httpx
import pytest
from chromadb import (
    K,
    Knn,
    Schema,
    Search,
    SparseEmbeddingFunction,
    SparseVectorIndexConfig,
    VectorIndexConfig,
)
from chromadb.base_types import SparseVector
from chromadb.errors import InvalidArgumentError

import aiochroma
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.memory import reembedding
from aiochroma.records import searching, server_index
from aiochroma.records.record import SPARSE, collection_name
from aiochroma.records.server_keeper import ServerKeeper

SPARSE_TYPE = {"#type": "sparse_vector"}
TEXTS = [f"a plain note number {n} about nothing" for n in range(60)]


class Words(SparseEmbeddingFunction[list[str]]):
    """A sparse vector of the words of a text; a question has its words at double weight."""

    def __init__(self):
        self.asked = []

    def __call__(self, input):
        return [self._vector(text, 1.0) for text in input]

    def embed_query(self, input):
        self.asked += input
        return [self._vector(text, 2.0) for text in input]

    @staticmethod
    def _vector(text, weight):
        counts = Counter(zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower()))
        return SparseVector(sorted(counts), [weight * counts[one] for one in sorted(counts)])

    @staticmethod
    def name():
        return "words"

    @staticmethod
    def build_from_config(config):
        return Words()

    def get_config(self):
        return {}


class SparseServer:
    """Answers for a local server as one with sparse vectors: it keeps them aside, and searches them itself.

    A rule of the relay: what a local server refuses is taken out of a request, and put back into the answer.
    """

    def __init__(self, port):
        self._url = f"http://127.0.0.1:{port}"
        self.indexes = {}  # By collection, what its schema says of sparse vectors.
        self.kept = {}  # By collection and id, the sparse vectors under their keys.
        self.refuses = False

    def __call__(self, seen):
        _, _, path = seen.path.partition("/collections")
        collection, _, operation = path.strip("/").rpartition("/")
        body = json.loads(seen.body) if seen.body else None
        if operation == "search":
            answer = self._refusal() if self.refuses else self._search(seen, body["searches"])
            return answer.status_code, dict(answer.headers), answer.content
        indexes, sparse = self._taken(body)
        answer = httpx.request(seen.method, self._url + seen.path, json=body, trust_env=False)
        if not answer.is_success:
            return answer.status_code, dict(answer.headers), answer.content
        kept = self.kept.setdefault(collection, {})
        for id, values in zip((body or {}).get("ids") or (), sparse, strict=False):
            known = {**kept.get(id, {}), **values}
            kept[id] = {key: value for key, value in known.items() if value is not None}
        if operation == "delete":
            for id in body["ids"]:
                kept.pop(id, None)
        found = answer.json()
        for one in found if isinstance(found, list) else [found]:
            self._put_back(one, indexes, kept)
        return answer.status_code, dict(answer.headers), json.dumps(found).encode()

    def _put_back(self, answered, indexes, kept):
        """Put what was taken out of requests back into a collection's schema, or into the metadata of records."""
        if not isinstance(answered, dict):
            return
        if "schema" in answered:
            answered["schema"]["keys"].update(self.indexes.setdefault(answered["id"], indexes))
        metadatas = answered.get("metadatas") or []
        nested = bool(metadatas) and isinstance(metadatas[0], list)  # Of a query: a list for each vector.
        ids = answered.get("ids", []) if nested else [answered.get("ids", [])]
        for some, columns in zip(ids, metadatas if nested else [metadatas], strict=True):
            for id, metadata in zip(some, columns, strict=False):
                metadata.update(kept.get(id, {}))

    def _taken(self, body):
        """Take what a local server refuses out of a request: indexes of a schema, and sparse vectors of records."""
        keys = ((body or {}).get("schema") or {}).get("keys", {})
        indexes = {key: keys.pop(key) for key in list(keys) if "sparse_vector" in keys[key]}
        sparse = []
        for metadata in (body or {}).get("metadatas") or ():
            taken = [
                key
                for key, value in (metadata or {}).items()
                if key == SPARSE or (isinstance(value, dict) and value.items() >= SPARSE_TYPE.items())
            ]
            sparse.append({key: metadata.pop(key) for key in taken})
        return indexes, sparse

    def _refusal(self):
        return httpx.Response(400, json={"error": "InvalidArgumentError", "message": "no such index"})

    def _search(self, seen, searches):
        (search,) = searches
        knn = search["rank"]["$knn"]
        collection = seen.path.split("/")[-2]
        if knn["key"] not in self.indexes[collection]:
            return self._refusal()
        asked = dict(zip(knn["query"]["indices"], knn["query"]["values"], strict=True))
        asks = {"where": search["filter"], "include": ["documents", "metadatas", "embeddings"]}
        url = self._url + seen.path.removesuffix("search") + "get"
        found = httpx.post(url, json=asks, trust_env=False).raise_for_status().json()
        scores = {}
        for at, id in enumerate(found["ids"]):
            kept = self.kept[collection].get(id, {}).get(knn["key"])
            if kept is not None:
                pairs = zip(kept["indices"], kept["values"], strict=True)
                scores[at] = sum(asked.get(index, 0.0) * value for index, value in pairs)
        best = sorted((at for at in scores if scores[at] > 0), key=lambda at: -scores[at])
        best = best[: min(knn["limit"], search["limit"]["limit"])]
        selected = {"documents": "#document", "metadatas": "#metadata", "embeddings": "#embedding"}
        columns = {
            name: [[found[name][at] for at in best] if key in search["select"]["keys"] else None]
            for name, key in selected.items()
        }
        ids = [[found["ids"][at] for at in best]]
        return httpx.Response(200, json={**columns, "ids": ids, "scores": [None], "select": [[]]})


@pytest.fixture
def sparse_server(relay):
    """A server that has sparse vectors, behind the relay."""
    relay.rule = SparseServer(relay.upstream_port)
    return relay.rule


@pytest.fixture
def namespace(name):
    return f"sparse memories of {name}"


@pytest.fixture
def no_copies(monkeypatch):
    """No namespace is read into the process, as one of more than 50,000 memories is not."""
    monkeypatch.setattr(ServerKeeper, "_makes_room", lambda *_: False)


@pytest.fixture
def quick_copies(monkeypatch):
    """A copy that takes over does not wait long for other clients: there is none."""
    for module in (reembedding, server_index):
        monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.05)
    monkeypatch.setattr(reembedding, "_ON_THE_WAY_SECONDS", 0.05)


@pytest.fixture
async def open_memory(relay):
    """Open memories over the relay."""
    opened = []

    async def open_one(port=relay.port, embedder=None, **options):
        client = await aiochroma.AsyncHttpClient("127.0.0.1", port, headers={"x-who": str(len(opened))})
        opened.append(client)
        opened.append(await aiochroma.Memory(client=client, embedder=embedder or HashedEmbedder(), **options))
        return opened[-1]

    yield open_one
    for one in reversed(opened):
        await one.close()


async def test_a_server_without_sparse_vectors_refuses_them(open_memory, server, namespace):
    """The error names the option and what to do, and nothing was made; namespaces that are there are used as they are."""
    memory = await open_memory(server.port, sparse_embedder=Words())
    with pytest.raises(
        aiochroma.InvalidInputError, match=r"sparse_embedder.*not enabled in local.*without"
    ) as caught:
        await memory.remember("a fact", namespace=namespace)
    assert isinstance(caught.value.__cause__, InvalidArgumentError)
    assert namespace not in await memory.namespaces()
    plain = await open_memory(server.port)
    await plain.remember("a fact", namespace=namespace)
    await memory.remember("another fact", namespace=namespace)
    assert len(await memory.recall("fact", namespaces=namespace)) == 2


@pytest.mark.parametrize("path", [None, "here"])
def test_a_directory_has_no_sparse_vectors(path, tmp_path):
    """The option is refused at once, and no directory is made."""
    with pytest.raises(aiochroma.InvalidInputError, match=r"sparse_embedder.*servers"):
        aiochroma.Memory(path and tmp_path / path, sparse_embedder=Words())
    assert not list(tmp_path.iterdir())


async def test_no_client_of_a_directory_has_them(tmp_path, monkeypatch):
    """Neither a client that is given, nor one that the environment names."""
    async with aiochroma.AsyncEphemeralClient() as client:
        with pytest.raises(aiochroma.InvalidInputError, match=r"sparse_embedder.*servers"):
            aiochroma.Memory(client=client, sparse_embedder=Words())
    monkeypatch.setenv("CHROMA_MODE", "ephemeral")
    with pytest.raises(aiochroma.InvalidInputError, match=r"sparse_embedder.*servers"):
        await aiochroma.Memory.from_env(embedder=HashedEmbedder(), sparse_embedder=Words())
    with pytest.raises(aiochroma.InvalidInputError, match="`sparse_embedder` must be"):
        aiochroma.Memory(tmp_path, sparse_embedder=5)


async def test_what_is_sent_is_what_chromas_own_client_sends(
    relay, sparse_server, open_memory, namespace, name, no_copies
):
    """Schema, record and search have the same form."""
    memory, words = await open_memory(sparse_embedder=Words()), Words()
    await memory.remember("seventeen apple trees", namespace=namespace, metadata={"n": 1})
    await memory.recall("apple trees", namespaces=namespace, where={"n": 1})
    sent = {seen.operation: json.loads(seen.body) for seen in relay.seen if seen.body}
    relay.seen.clear()

    client = chromadb.HttpClient("127.0.0.1", relay.port)
    schema = Schema().create_index(VectorIndexConfig(space="cosine", embedding_function=None))
    schema = schema.create_index(SparseVectorIndexConfig(), key=SPARSE)
    collection = client.create_collection(name, schema=schema, embedding_function=None)
    (document,), (query,) = words(["seventeen apple trees"]), words.embed_query(["apple trees"])
    collection.upsert("a", embeddings=[[1.0, 0.0]], metadatas={SPARSE: document, "n": 1})
    limit = sent["search"]["searches"][0]["limit"]["limit"]
    search = Search(where={"n": 1}, rank=Knn(query=query, key=SPARSE, limit=limit), limit=limit)
    collection.search(search.select(K.DOCUMENT, K.METADATA, K.EMBEDDING))
    for one in (client, client._admin_client):  # Nothing else closes their connections.
        one._server._session.close()
    chromas = {seen.operation: json.loads(seen.body) for seen in relay.seen if seen.body}

    for both in (sent, chromas):
        both["search"]["searches"][0]["select"]["keys"].sort()
    assert sent["search"] == chromas["search"]
    assert {name: sent["collections"][name] for name in ("schema", "configuration")} == {
        name: chromas["collections"][name] for name in ("schema", "configuration")
    }
    assert sent["upsert"]["metadatas"][0][SPARSE] == chromas["upsert"]["metadatas"][0][SPARSE]


async def test_the_server_ranks_words(relay, sparse_server, open_memory, namespace, no_copies):
    """A word is found among many memories without a look for it in each text, within the filter, as exactly as elsewhere."""
    words = Words()
    memory = await open_memory(sparse_embedder=words)
    await memory.remember_many(TEXTS, namespace=namespace)
    where = {"kind": "sign"}
    id = await memory.remember("xyzzy is on the gate", namespace=namespace, metadata=where)
    await memory.remember("xyzzy", namespace=namespace, metadata={"kind": "other"})
    relay.seen.clear()
    found = await memory.recall("xyzzy", namespaces=namespace, where=where, k=3)
    assert [hit.id for hit in found][:1] == [id]
    assert not found.errors
    assert not found.indexing
    assert relay.count("search") == 1
    assert not [seen for seen in relay.seen if b"$contains" in seen.body]
    assert words.asked == ["xyzzy"]
    # One that the vectors do not bring has its exact distance, and everything else, all the same.
    (hit,) = await memory.recall("xyzzy gate", namespaces=namespace, where=where, k=1)
    assert hit.distance == pytest.approx(
        (await memory.recall("xyzzy gate", namespaces=namespace, mode="vector", where=where))[0].distance
    )
    assert hit.metadata == where


async def test_what_the_server_finds_alone_has_its_distance(
    sparse_server, open_memory, namespace, no_copies, monkeypatch
):
    """A memory that comes by its words, beyond the nearest, is compared by its vector too."""
    monkeypatch.setattr(searching, "_NEAREST", 1)

    def embed(texts):
        return [[3.0, 4.0] if text == "plugh stands here" else [1.0, 0.0] for text in texts]

    memory = await open_memory(embedder=embed, sparse_embedder=Words())
    await memory.remember_many([*TEXTS, "plugh stands here"], namespace=namespace)
    (hit,) = await memory.recall("where is plugh", namespaces=namespace, k=1, vector_weight=0.1)
    assert hit.text == "plugh stands here"
    assert hit.distance == pytest.approx(0.4, abs=1e-5)


async def test_a_changed_text_has_a_new_vector_and_no_user_sees_it(
    sparse_server, open_memory, namespace, tmp_path
):
    """A new text has its own vector, other changes leave it, and a memory without the option leaves no wrong one behind."""
    memory, plain = await open_memory(sparse_embedder=Words()), await open_memory()
    id = await memory.remember("apple", namespace=namespace, metadata={"n": 1})
    collection = await memory.client.get_collection(collection_name(namespace), embedding_function=None)

    async def stored():
        return (await collection.get(id))["metadatas"][0].get(SPARSE)

    assert await stored() == Words()(["apple"])[0]
    await memory.update(id, namespace=namespace, metadata={"n": 2})
    await memory.pin(id, namespace=namespace)
    await plain.update(id, namespace=namespace, metadata={"m": 1})
    assert await stored() == Words()(["apple"])[0]
    changed = await memory.update(id, namespace=namespace, text="pear")
    assert await stored() == Words()(["pear"])[0]
    shown = [
        changed,
        await memory.get(id, namespace=namespace),
        *await memory.list(namespace),
        *await memory.recall("pear", namespaces=namespace),
    ]
    assert [hit.metadata for hit in shown] == [{"n": 2, "m": 1}] * 4
    await memory.export(tmp_path / "out.jsonl", namespaces=namespace)
    assert json.loads((tmp_path / "out.jsonl").read_text())["metadata"] == {"n": 2, "m": 1}
    await memory.import_(tmp_path / "out.jsonl")
    assert await stored() == Words()(["pear"])[0]
    for text in ("plum", "fig"):  # One by `update`, one by `remember`.
        await memory.remember("pear", id=id, namespace=namespace)
        await (
            plain.update(id, namespace=namespace, text=text)
            if text == "plum"
            else plain.remember(text, id=id, namespace=namespace)
        )
        assert await stored() is None


async def test_a_copy_at_the_client_is_read_once(relay, sparse_server, open_memory, namespace):
    """Sparse vectors, which the copy leaves out, do not make every memory look changed."""
    memory = await open_memory(sparse_embedder=Words())
    await memory.remember_many(TEXTS, namespace=namespace)
    relay.seen.clear()
    for _ in range(2):
        assert await memory.recall("note 7", namespaces=namespace)
    assert len([seen for seen in relay.seen if seen.operation == "get" and b'"embeddings"' in seen.body]) == 1
    assert relay.count("search") == 0


async def test_without_the_index_words_are_looked_for_as_before(
    relay, sparse_server, open_memory, namespace, no_copies, quick_copies
):
    """Where the namespace has none, has another function's, or the server refuses, the recall finds and says so."""
    plain = await open_memory()
    await plain.remember("xyzzy is on the gate", namespace=namespace)
    memory = await open_memory(sparse_embedder=Words())
    found = await memory.recall("xyzzy", namespaces=namespace)
    assert [hit.text for hit in found] == ["xyzzy is on the gate"]
    assert "some hits may be missing" in str(found.errors[namespace])
    assert relay.count("search") == 0
    # Embedding again gives it to the namespace.
    assert (await memory.reembed(namespace)).embedded == {namespace: 1}
    found = await memory.recall("xyzzy", namespaces=namespace)
    assert (len(found), found.errors, relay.count("search")) == (1, {}, 1)
    sparse_server.refuses = True
    relay.seen.clear()
    found = await memory.recall("xyzzy", namespaces=namespace)
    assert len(found) == 1
    assert all(why in str(found.errors[namespace]) for why in ("no such index", "are kept in this process"))
    assert [seen for seen in relay.seen if b"$contains" in seen.body]
    other = await open_memory(sparse_embedder=lambda texts: Words()(texts))
    searches = relay.count("search")
    assert "some hits may be missing" in str(
        (await other.recall("xyzzy", namespaces=namespace)).errors[namespace]
    )
    assert relay.count("search") == searches


async def test_a_copy_of_a_namespace_keeps_its_sparse_vectors(
    sparse_server, open_memory, namespace, no_copies, quick_copies
):
    """Compacting carries index and vectors, also where the memory that does it has no such option."""
    memory = await open_memory(sparse_embedder=Words())
    await memory.remember("xyzzy is on the gate", namespace=namespace)
    assert await (await open_memory()).compact(namespace) == {namespace: 1}
    found = await memory.recall("xyzzy", namespaces=namespace)
    assert [hit.text for hit in found] == ["xyzzy is on the gate"]
    assert not found.errors
    collection = await memory.client.get_collection(collection_name(namespace), embedding_function=None)
    (metadata,) = (await collection.get())["metadatas"]
    assert metadata[SPARSE] == Words()(["xyzzy is on the gate"])[0]


async def test_a_migration_to_a_directory_leaves_them_out_and_says_so(
    relay, sparse_server, open_memory, name, no_copies, tmp_path
):
    """They are made of the texts, so the memories are whole; a sparse vector of the user's own is refused by name."""
    database = f"sparse-{name}"[:60]
    await (await open_memory()).client.admin.create_database(database)
    url = f"http://127.0.0.1:{relay.port}/default_tenant/{database}"
    async with await aiochroma.AsyncHttpClient("127.0.0.1", relay.port, database=database) as client:
        async with aiochroma.Memory(
            client=client, embedder=HashedEmbedder(), sparse_embedder=Words()
        ) as memory:
            await memory.remember("xyzzy is on the gate", metadata={"kind": "note"})
        report = await aiochroma.migrate(url, tmp_path / "copy")
        assert report.is_verified
        assert [note for note in report.notes if "default: a directory has no sparse vectors" in note]
        collection = await client.create_collection("own", embedding_function=None)
        own = {"kind": "note", "mine": SparseVector([1], [1.0])}
        await collection.add(ids=["a"], embeddings=[[1.0, 2.0]], metadatas=[own], documents=["text"])
    with pytest.raises(aiochroma.MigrationError, match=r"'a'.*'mine'"):
        await aiochroma.migrate(url, tmp_path / "other", to_database="default_database")
    async with (
        aiochroma.AsyncPersistentClient(tmp_path / "copy", database=database) as client,
        aiochroma.Memory(client=client, embedder=HashedEmbedder()) as copied,
    ):
        (hit,) = await copied.recall("xyzzy")
        assert (hit.text, hit.metadata) == ("xyzzy is on the gate", {"kind": "note"})


@pytest.mark.parametrize(
    "wrong", [lambda texts: [], lambda texts: [[1.0]], lambda texts: 1 / 0], ids=["few", "dense", "raises"]
)
async def test_a_sparse_embedder_that_fails_is_named(sparse_server, open_memory, namespace, wrong):
    """It fails as a dense one does, and before anything is written."""
    memory = await open_memory(sparse_embedder=wrong)
    with pytest.raises(aiochroma.EmbeddingFailedError, match="lambda"):
        await memory.remember("a fact", namespace=namespace)
    assert namespace not in await memory.namespaces()


async def test_a_text_without_words_has_no_vector(sparse_server, open_memory, namespace, no_copies):
    """It is remembered, and a question without words is answered by meaning."""

    async def asynchronous(texts):
        return [SparseVector([], []) for _ in texts]

    memory = await open_memory(sparse_embedder=asynchronous)
    await memory.remember("a fact", namespace=namespace)
    assert not any(kept for of_each in sparse_server.kept.values() for kept in of_each.values())
    assert len(await memory.recall("fact", namespaces=namespace)) == 1
