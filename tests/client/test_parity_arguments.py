"""What Chroma refuses of an argument's form is refused here in the same way: nothing is converted on the quiet."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("include", [None, ("documents",), "documents", {"documents"}], ids=repr)
async def test_include_must_be_a_list(collection, include):
    """An `include` that is no list is Chroma's ValueError, in `get` and in `query`."""
    with pytest.raises(ValueError, match="Expected include to be a list"):
        await collection.get(include=include)
    with pytest.raises(ValueError, match="Expected include to be a list"):
        await collection.query(query_embeddings=[[1.0, 2.0]], include=include)


async def test_the_callers_include_is_not_changed(client):
    """Chroma asks for the URIs as well where data are asked for; the caller's list stays as it was."""
    things = await client.create_collection(
        "things", embedding_function=None, data_loader=lambda uris: [f"data of {uri}" for uri in uris]
    )
    await things.add(ids=["one"], embeddings=[[1.0, 2.0]], uris=["memory:one"])
    include = ["data"]
    assert (await things.get(include=include))["data"] == ["data of memory:one"]
    assert include == ["data"]
