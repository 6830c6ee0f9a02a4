"""The asynchronous client is Chroma's: the same members, names, orders and defaults."""

from __future__ import annotations

import inspect

import pytest
from chromadb.api import AsyncAdminAPI, AsyncClientAPI
from chromadb.api.async_client import AsyncClient as ChromaAsyncClient
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.errors import NotFoundError

import aiochroma
from aiochroma.client.client import AdminClient


def public(kind):
    return sorted(name for name in dir(kind) if not name.startswith("_"))


def shape(callable_):
    """Return what a caller sees: names, order, kinds and defaults; default functions of one class are the same."""
    plain = (type(None), bool, int, float, str, list, tuple)
    return [
        (
            parameter.name,
            parameter.kind,
            parameter.default if isinstance(parameter.default, plain) else type(parameter.default),
        )
        for parameter in inspect.signature(callable_).parameters.values()
    ]


MEMBERS = (
    [(AsyncClientAPI, aiochroma.AsyncClient, name) for name in public(AsyncClientAPI)]
    + [(AsyncCollection, aiochroma.Collection, name) for name in public(AsyncCollection)]
    + [(AsyncAdminAPI, AdminClient, name) for name in public(AsyncAdminAPI)]
)


def test_the_members_are_all_there():
    """The interface of Chroma 1.5 has 46 public members; two are attributes of the instance, the others are compared."""
    assert {"tenant", "database"} <= AsyncClientAPI.__annotations__.keys()
    assert len(MEMBERS) == 46 - 2
    assert [name for _, ours, name in MEMBERS if not hasattr(ours, name)] == []


@pytest.mark.parametrize(("theirs", "ours", "name"), MEMBERS)
def test_signatures_match_chromadb(theirs, ours, name):
    """Each public member takes what Chroma's takes, in that order, with those defaults, and is awaited where Chroma's is."""
    expected, own = inspect.getattr_static(theirs, name), inspect.getattr_static(ours, name)
    if isinstance(expected, property):
        assert isinstance(own, property)
        return
    if not callable(getattr(theirs, name)):
        return
    expected, own = getattr(theirs, name), getattr(ours, name)
    assert shape(own) == shape(expected)
    assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(expected)


def test_create_takes_what_chromas_takes():
    """`AsyncClient.create` too, except that its default settings are not one object that all calls share."""
    theirs, ours = (
        inspect.signature(kind.create).parameters for kind in (ChromaAsyncClient, aiochroma.AsyncClient)
    )
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("opening", [aiochroma.AsyncPersistentClient, aiochroma.AsyncEphemeralClient])
def test_opening_takes_what_chromas_takes(opening):
    """The arguments of Chroma's own function come first and in its order; ours are keywords."""
    import chromadb

    theirs = {
        aiochroma.AsyncPersistentClient: chromadb.PersistentClient,
        aiochroma.AsyncEphemeralClient: chromadb.EphemeralClient,
    }[opening]
    own = inspect.signature(opening).parameters.values()
    positional = [p.name for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(theirs).parameters)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in own if p.name not in positional)


async def test_attributes(client, collection):
    """Tenant, database and what a collection knows of itself are those of Chroma."""
    assert (client.tenant, client.database) == ("default_tenant", "default_database")
    assert (collection.tenant, collection.database) == ("default_tenant", "default_database")
    assert collection.name == "things"
    assert collection.metadata is None
    assert collection.get_model().id == collection.id
    assert isinstance(collection, AsyncCollection)
    assert isinstance(client, ChromaAsyncClient)
    assert client.get_settings().is_persistent


async def test_chromas_errors_are_chromas(client, collection):
    """What is wrong by Chroma's rules raises Chroma's own exception."""
    with pytest.raises(NotFoundError):
        await client.get_collection("absent")
    with pytest.raises(NotFoundError):
        await client.delete_collection("absent")
    await client.delete_collection("things")
    with pytest.raises(NotFoundError):
        await collection.count()


async def test_what_local_chroma_cannot(client, collection):
    """Operations of the hosted service raise NotImplementedError, as they do in embedded Chroma."""
    for attempt in (collection.fork("copy"), collection.fork_count(), collection.get_indexing_status()):
        with pytest.raises(NotImplementedError):
            await attempt


async def test_collections_are_found_again(client):
    """A collection is the same by name, by id, in the list and from `get_or_create`."""
    made = await client.create_collection("made", metadata={"a": 1}, embedding_function=None)
    again = await client.get_collection("made", embedding_function=None)
    by_id = await client.get_collection_by_id(made.id, embedding_function=None)
    same = await client.get_or_create_collection("made", embedding_function=None)
    (listed,) = await client.list_collections()
    assert {found.id for found in (made, again, by_id, same, listed)} == {made.id}
    assert all(found.metadata == {"a": 1} for found in (made, again, by_id, listed))
    assert await client.count_collections() == 1
    await made.modify(name="renamed")
    assert (await client.get_collection("renamed", embedding_function=None)).id == made.id


async def test_reset_needs_allow_reset(client):
    """A reset is refused unless the settings allow it."""
    with pytest.raises(Exception, match=r"[Rr]eset"):
        await client.reset()


async def test_reset(tmp_path, vectors):
    """Where it is allowed a reset empties the database, and it can be used at once."""
    from chromadb.config import Settings

    async with aiochroma.AsyncPersistentClient(tmp_path, Settings(allow_reset=True)) as client:
        collection = await client.create_collection("gone", embedding_function=None)
        await collection.add(ids=["a"], embeddings=vectors(1))
        assert await client.reset() is True
        assert await client.list_collections() == []
        again = await client.create_collection("gone", embedding_function=None)
        await again.add(ids=["b"], embeddings=vectors(1))
        assert await again.count() == 1


async def test_admin(client):
    """Tenants and databases can be made, listed, entered and deleted, through `client.admin`."""
    admin = client.admin
    await admin.create_tenant("guests")
    await admin.create_database("library", "guests")
    assert (await admin.get_tenant("guests"))["name"] == "guests"
    assert (await admin.get_database("library", "guests"))["tenant"] == "guests"
    assert [database["name"] for database in await admin.list_databases(tenant="guests")] == ["library"]
    await client.set_tenant("guests", "library")
    await client.create_collection("books", embedding_function=None)
    assert [collection.name for collection in await client.list_collections()] == ["books"]
    await client.set_tenant("default_tenant")
    assert await client.list_collections() == []
    await admin.delete_database("library", "guests")
    with pytest.raises(NotFoundError):
        await admin.get_database("library", "guests")
    with pytest.raises(Exception, match=r"tenant|[Nn]ot found"):
        await client.set_tenant("strangers")
    assert client.tenant == "default_tenant"


async def test_max_batch_size_is_chromas(client):
    """The limit that our writes may exceed is still told."""
    assert await client.get_max_batch_size() == 5461
