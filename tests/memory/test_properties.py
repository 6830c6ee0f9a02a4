"""Whatever the texts, names, filters and orders are, the promises hold."""

from __future__ import annotations

import json
import time
from datetime import timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from chroma_filters import matches
from chromadb.config import Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from aiochroma import InvalidInputError, sync
from aiochroma.embedding.words import HashedEmbedder
from aiochroma.memory import transfer
from aiochroma.memory.arguments import item_from
from aiochroma.memory.results import Hit
from aiochroma.records.record import EMBEDDER, chunks_name, collection_name, namespace_of

PATIENT = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, min_size=1, max_size=60).filter(str.strip)
VALUES = st.one_of(
    st.text(CHARACTERS, max_size=10),
    st.integers(-(2**63), 2**63 - 1),
    # Chroma itself may change the last digit of a number of extreme size.
    st.integers(-(10**9), 10**9).map(lambda number: number / 8),
    st.booleans(),
)
METADATA = st.dictionaries(
    st.text(CHARACTERS, min_size=1, max_size=8).filter(
        lambda key: not key.startswith(("aiochroma:", "chroma:", "$", "#"))
    ),
    VALUES,
    max_size=3,
)


def written_in(file):
    """Return the lines of an export, in an order that does not matter."""
    return sorted(
        json.dumps(json.loads(line), sort_keys=True) for line in file.read_text("utf-8").split("\n")[:-1]
    )


@given(TEXTS)
@settings(max_examples=300)
def test_any_text_names_a_namespace(name):
    """The collection's name is legal and leads back to the namespace, or is a digest of it."""
    made = collection_name(name)
    assert 3 <= len(made) <= 512
    assert made.isascii()
    assert namespace_of(made) in {name, None}
    assert (namespace_of(made) is None) == made.startswith("ns.sha256-")


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "v1..v2", "...", "1.2.3", "999.1.1.1", "a-", "-a", "ns.x.x", "ns..x"]
)
def test_what_is_no_name_to_chroma_names_a_namespace(shared, name):
    """Addresses and rows of periods, which Chroma refuses, are names like any other."""
    id = shared.remember("The cat sleeps.", namespace=name)
    assert [hit.id for hit in shared.recall("cat", namespaces=name)] == [id]
    assert name in shared.namespaces()
    shared.forget_namespace(name)


@pytest.mark.parametrize("made", ["ns._ff.x", "ns._20.x", "ns._00.x", "ns.default.x"])
def test_a_collection_that_only_looks_like_a_namespaces_own_has_no_other_name(tmp_path, made):
    """What another program made hinders no recall over all namespaces, and is not taken for one that there is."""
    assert namespace_of(made) == made
    with sync.Memory(tmp_path, embedder="hashed") as memory:
        memory.remember("The cat sleeps.")
        memory.client.create_collection(made, metadata={EMBEDDER: "x"}, embedding_function=None)
        assert memory.namespaces() == ["default", made]
        assert [hit.text for hit in memory.recall("cat")] == ["The cat sleeps."]
        assert memory.count() == 1


@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_different_namespaces_have_different_collections(names):
    """No two namespaces share a collection, nor does one use the other's parts."""
    one, other = names
    assert len({collection_name(one), collection_name(other), chunks_name(one), chunks_name(other)}) == 4
    assert collection_name(chunks_name(one)) != chunks_name(one)
    assert collection_name(collection_name(one)) != collection_name(other) or collection_name(one) == other


@given(TEXTS, METADATA)
@settings(max_examples=60, **PATIENT)
def test_any_text_survives_a_round_trip(shared, fresh, text, metadata):
    """A text in any script, and metadata of any kind, come back unchanged; its own words find it, if it has any."""
    namespace = fresh() + text
    if not HashedEmbedder().embed([text]).any():
        with pytest.raises(InvalidInputError, match="embeds to"):
            shared.remember(text, namespace=namespace)
        return
    id = shared.remember(text, namespace=namespace, metadata=metadata)
    hit = shared.get(id, namespace=namespace)
    assert (hit.text, hit.metadata) == (text, metadata)
    assert [type(value) for value in hit.metadata.values()] == [type(metadata[key]) for key in hit.metadata]
    assert [hit.text for hit in shared.recall(text, namespaces=namespace)] == [text]
    assert namespace in shared.namespaces()
    shared.forget_namespace(namespace)


@given(st.lists(st.tuples(TEXTS, METADATA, st.booleans(), st.sampled_from([None, "a", "b"])), max_size=8))
@settings(max_examples=15, **PATIENT)
def test_export_and_import_are_the_identity(shared, fresh, items):
    """What was exported and imported is exported as the same lines again."""
    one = fresh()
    for text, metadata, pinned, thread in items:
        try:
            shared.remember(text, namespace=one, metadata=metadata, pinned=pinned, thread=thread, ttl=1e6)
        except InvalidInputError:
            continue
    with TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.jsonl", Path(folder) / "second.jsonl"
        shared.export(first, namespaces=one)
        shared.forget_namespace(one)
        shared.import_(first)
        shared.export(second, namespaces=one)
        assert written_in(first) == written_in(second)
    shared.forget_namespace(one)


_ODD_TEXTS = st.text(max_size=4) | st.sampled_from(
    ["", " ", "\0", "\ud800", " a", "aiochroma:x", "chroma:", "$a", "#"]
)
_ODD_VALUES = _ODD_TEXTS | st.integers() | st.floats() | st.none() | st.lists(st.integers(), max_size=2)
_ODD_MOMENTS = st.none() | st.datetimes(timezones=st.just(timezone.utc))


@given(
    st.builds(
        Hit,
        id=_ODD_TEXTS,
        text=_ODD_TEXTS,
        namespace=st.just("n"),
        distance=st.none(),
        score=st.just(0.0),
        metadata=st.dictionaries(_ODD_TEXTS, _ODD_VALUES, max_size=2),
        created_at=_ODD_MOMENTS,
        expires_at=_ODD_MOMENTS,
        scope=st.lists(_ODD_TEXTS, max_size=10).map(tuple),
        thread=st.none() | _ODD_TEXTS,
        position=st.floats(allow_nan=False, allow_infinity=False),
    )
)
@settings(**PATIENT)
def test_what_passes_for_ordinary_is_taken_by_an_import(hit):
    """An export looks closely only at what is odd at first sight."""
    entry = transfer._entry(hit, {})
    if transfer._is_ordinary(hit, json.dumps(entry, ensure_ascii=False)):
        item_from({name: value for name, value in entry.items() if name != "namespace"}, "It")


_CONDITIONS = st.one_of(
    st.tuples(
        st.sampled_from(["kind", "size"]),
        st.sampled_from(["$eq", "$ne"]),
        st.sampled_from(["a", "b", 1, 2, 1.0, 1.5, True]),
    ).map(lambda one: {one[0]: {one[1]: one[2]}}),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(0, 5)).map(
        lambda one: {"size": {one[0]: one[1]}}
    ),
    st.tuples(
        st.sampled_from(["$in", "$nin"]), st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3)
    ).map(lambda one: {"kind": {one[0]: one[1]}}),
)
FILTERS = st.recursive(
    _CONDITIONS,
    lambda inner: st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=2, max_size=3)).map(
        lambda one: {one[0]: one[1]}
    ),
    max_leaves=4,
)


@given(FILTERS, st.sampled_from(["hybrid", "vector", "text"]), st.integers(1, 20))
@settings(max_examples=40, **PATIENT)
def test_a_filtered_recall_equals_one_that_chroma_filters(shared, where, mode, k):
    """Leaving out afterwards gives the memories that Chroma's own filter gives, as many, and in the same order."""
    namespace = "for filters"
    if shared.count(namespace) == 0:
        shared.remember_many(
            [
                {
                    "text": f"apple number {n} of tree {n % 7}",
                    "metadata": {
                        **({"kind": "abc"[n % 3]} if n % 5 else {}),
                        "size": n % 6 if n % 2 else n % 6 + 0.5,
                    },
                }
                for n in range(130)
            ],
            namespace=namespace,
        )
    found = shared.recall("apple of tree 3", namespaces=namespace, where=where, mode=mode, k=k)
    place = shared.client.get_collection(collection_name(namespace), embedding_function=None)
    allowed = set(place.get(where=where, include=[])["ids"])
    records = place.get(include=["metadatas"])
    assert allowed == {
        id for id, own in zip(records["ids"], records["metadatas"], strict=True) if matches(where, own)
    }
    assert {hit.id for hit in found} <= allowed
    assert len(found) == min(k, len(allowed))
    if mode == "vector":
        vector = HashedEmbedder().embed(["apple of tree 3"])[0]
        wanted = place.query(query_embeddings=[vector], n_results=k, where=where, include=["distances"])[
            "distances"
        ][0]
        assert [round(hit.distance, 4) for hit in found] == [round(distance, 4) for distance in wanted]


_METADATA = st.dictionaries(st.sampled_from(["a", "b", "ключ"]), VALUES, max_size=3)
_WORDY = st.lists(st.sampled_from(["lake", "Boat", "東京", "a-b", "  ", "ünï"]), min_size=1, max_size=4).map(
    " ".join
)


@settings(max_examples=100, **PATIENT)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(
                ["remember", "remember", "update", "chroma upsert", "chroma update", "forget", "recall"]
            ),
            st.sampled_from("xxy"),
            _WORDY,
            _METADATA,
            st.sets(st.sampled_from(["a", "b"])),
        ),
        max_size=12,
    ),
    mode=st.sampled_from(["hybrid", "vector", "text"]),
)
def test_a_recall_returns_what_chroma_has(shared, fresh, changes, mode):
    """Whatever way a memory came to be what it is, a recall gives its text and metadata as Chroma holds them."""
    namespace = fresh()
    shared.remember("the first lake", id="first", namespace=namespace)
    place = shared.client.get_collection(collection_name(namespace), embedding_function=None)
    for kind, id, text, metadata, without in changes:
        words = f"lake {text}"
        vector = HashedEmbedder().embed([words])[0]
        if kind == "remember":
            shared.remember(words, id=id, metadata=metadata, namespace=namespace)
        elif kind == "update":
            shared.update(id, text=words, metadata=metadata, namespace=namespace)
        elif kind == "forget":
            shared.forget(id, namespace=namespace)
        elif kind == "recall":
            shared.recall("lake", namespaces=namespace, mode=mode)
        else:
            given = {"a": 1, **metadata, **dict.fromkeys(without)}
            method = place.upsert if kind.endswith("upsert") else place.update
            method(ids=[id], documents=[words], embeddings=[vector], metadatas=[given])
    everything = place.get(include=["documents", "metadatas"])
    expected = {
        id: (document, {name: value for name, value in (metadata or {}).items() if ":" not in name})
        for id, document, metadata in zip(
            *(everything[name] for name in ("ids", "documents", "metadatas")), strict=True
        )
    }
    hits = shared.recall("lake", namespaces=namespace, mode=mode, k=10)
    assert {hit.id: (hit.text, hit.metadata) for hit in hits} == expected
    assert all(
        type(value) is type(expected[hit.id][1][name]) for hit in hits for name, value in hit.metadata.items()
    )


class Lives(RuleBasedStateMachine):
    """Remembers, overwrites, forgets and expires; what is alive is known."""

    # No two of them akin by their letters: one would be found by the other.
    WORDS = ("red", "green", "blue", "white", "amber")

    @initialize()
    def begin(self):
        self.memory, self.namespace, self.alive = self.shared, self.fresh(), {}

    @rule(
        id=st.sampled_from("abc"),
        words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
        expired=st.booleans(),
    )
    def remember(self, id, words, expired):
        text = " ".join(words)
        # In no order: what arrived beside a word would lend it, and be found by it.
        expires = 1.0 if expired else None
        self.memory.remember(text, id=id, namespace=self.namespace, thread=False, expires_at=expires)
        self.alive.pop(id, None)
        if not expired:
            self.alive[id] = text

    @rule(id=st.sampled_from("abc"), words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    def update(self, id, words):
        changed = self.memory.update(id, text=" ".join(words), namespace=self.namespace)
        assert (changed is not None) == (id in self.alive)
        if changed is not None:
            self.alive[id] = " ".join(words)

    @rule(id=st.sampled_from("abc"))
    def forget(self, id):
        self.memory.forget(id, namespace=self.namespace)
        self.alive.pop(id, None)

    @rule()
    def sweep(self):
        self.memory.sweep(namespace=self.namespace)
        assert self.memory.count(self.namespace) == len(self.alive)

    @rule()
    def forget_all(self):
        self.memory.forget_namespace(self.namespace)
        self.alive.clear()

    @rule(word=st.sampled_from(WORDS), mode=st.sampled_from(["hybrid", "vector", "text"]))
    def recall(self, word, mode):
        found = {
            hit.id: hit.text for hit in self.memory.recall(word, namespaces=self.namespace, mode=mode, k=10)
        }
        wanted = {id: text for id, text in self.alive.items() if mode != "text" or word in text.split()}
        assert found == wanted
        assert {id: self.memory.get(id, namespace=self.namespace) is not None for id in "abc"} == {
            id: id in self.alive for id in "abc"
        }


def test_what_is_gone_is_never_returned(shared, fresh):
    """An expired, forgotten or overwritten memory is found by nothing, and every other one is."""
    lives = type("TheseLives", (Lives,), {"shared": shared, "fresh": staticmethod(fresh)})
    run_state_machine_as_test(lives, settings=settings(max_examples=15, stateful_step_count=15, **PATIENT))


def completed(memory):
    """Return a memory when its index is whole: each recall meanwhile answers from what is there, and says so."""
    while memory.recall("note").indexing:
        pass
    return memory


def test_the_index_rebuilt_equals_the_index_written(tmp_path):
    """Deleting the index between two openings changes no answer, nor does a damaged file or a foreign write."""
    index = tmp_path / "memory" / "aiochroma-text.sqlite3"
    questions = ["locker seven", "Köln 東京", "note 17 changed", "number 3"]

    def answers(memory):
        # By text: the search by vectors is approximate, and goes other ways in an index that was loaded from its files.
        return [
            [(hit.id, hit.score, hit.explain) for hit in memory.recall(question, mode="text", k=20)]
            for question in questions
        ]

    def opened():
        return sync.Memory(tmp_path / "memory", embedder=HashedEmbedder())

    with opened() as memory:
        ids = memory.remember_many([f"note {n} about locker number {n % 9}" for n in range(300)], thread="t")
        memory.remember("Ich bin nach Köln gezogen, dann nach 東京")
        memory.update(ids[17], text="note 17 changed, locker seven")
        memory.forget(ids[18])
        memory.forget(ids[30])
        memory.remember("note 5 about locker number 5", expires_at=time.time() + 1e5)
        written = answers(memory)
    with opened() as memory:
        assert answers(memory) == written
    index.unlink()
    with opened() as memory:
        assert answers(completed(memory)) == written
    index.write_bytes(b"damaged" * 1000)
    with opened() as memory:
        assert answers(completed(memory)) == written


def test_the_names_of_namespaces_follow_whatever_makes_renames_and_deletes_them(tmp_path):
    """The names are kept in memory; what the client below, another memory and a reset change is seen all the same."""
    with sync.Memory(tmp_path, embedder="hashed", settings=Settings(allow_reset=True)) as memory:
        assert memory.namespaces() == []
        memory.remember("The cat sleeps.")
        assert memory.namespaces() == ["default"]
        made = memory.client.create_collection(
            collection_name("more"), metadata={EMBEDDER: "x"}, embedding_function=None
        )
        assert memory.namespaces() == ["default", "more"]
        with sync.Memory(tmp_path, embedder="hashed", settings=Settings(allow_reset=True)) as other:
            other.remember("The dog barks.", namespace="dogs")
            assert other.namespaces() == ["default", "dogs", "more"]
        made.modify(name=collection_name("other"))
        assert memory.namespaces() == ["default", "dogs", "other"]
        memory.client.delete_collection(collection_name("other"))
        memory.forget_namespace("dogs")
        assert memory.namespaces() == ["default"]
        memory.client.reset()
        assert memory.namespaces() == []
