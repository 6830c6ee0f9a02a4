"""Data of older releases of chromadb, written by those releases."""

from __future__ import annotations

import shutil

import numpy as np
import old_chromadb
import pytest

import aiochroma
from aiochroma.disk.layout import connect_read_only
from aiochroma.disk.preflight import preflight
from aiochroma.disk.salvage import iter_log_vectors
from aiochroma.disk.schema import record_ids

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=old_chromadb.VERSIONS)
def written(request, tmp_path_factory):
    """A database of an older release, and what has to be in it."""
    directory = tmp_path_factory.mktemp("old") / "db"
    try:
        truth = old_chromadb.write_database(request.param, directory)
    except old_chromadb.IndexUnreachableError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    return directory, truth


@pytest.fixture
def database(written, tmp_path):
    """A copy of it."""
    return shutil.copytree(written[0], tmp_path / "db"), written[1]


async def contents(directory, where, **options):
    tenant, database, name = where.split("/")
    async with aiochroma.AsyncPersistentClient(
        directory, tenant=tenant, database=database, **options
    ) as client:
        collection = await client.get_collection(name, embedding_function=None)
        found = await collection.get(include=["embeddings", "documents", "metadatas"])
        rows = zip(found["embeddings"].tolist(), found["documents"], found["metadatas"], strict=True)
        return dict(zip(found["ids"], rows, strict=True))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for id, (vector, document, metadata) in expected.items():
        np.testing.assert_allclose(found[id][0], vector, atol=1e-5)
        assert found[id][1] == document
        assert found[id][2] == metadata


@pytest.mark.parametrize("durable", [None, True])
async def test_it_opens_and_is_complete(database, durable):
    """Every tenant, database, collection and record is there with vector, document and metadata, types included."""
    directory, truth = database
    for where, expected in truth.items():
        assert_same(await contents(directory, where, durable=durable), expected)


async def test_it_is_durable_only_when_its_log_holds_every_vector(database):
    """After it was opened durably the log alone has the vector of each record, and says that it is kept."""
    directory, truth = database
    async with aiochroma.AsyncPersistentClient(directory, durable=True):
        pass
    report = preflight(directory)
    assert report.keeps_log
    assert report.problems == ()
    for entry in report.collections:
        expected = truth[f"{entry.tenant}/{entry.database}/{entry.name}"]
        with connect_read_only(directory) as connection:
            assert record_ids(connection, entry.metadata_segment_id) == expected.keys()
        assert dict(iter_log_vectors(directory, entry.collection_id)).keys() >= expected.keys()


@pytest.mark.parametrize("durable", [None, True])
async def test_a_damaged_index_of_it_is_rebuilt(database, durable):
    """Where the header of each index is cut, before it was ever opened here, nothing is lost."""
    directory, truth = database
    headers = list(directory.glob("*/header.bin"))
    assert len(headers) == len(truth)
    for header in headers:
        header.write_bytes(header.read_bytes()[:10])
    for where, expected in truth.items():
        assert_same(await contents(directory, where, durable=durable), expected)


async def test_a_lost_index_of_it_is_rebuilt_once_it_is_durable(database):
    """Where the files of each index are deleted after it became durable, nothing is lost."""
    directory, truth = database
    async with aiochroma.AsyncPersistentClient(directory, durable=True):
        pass
    for header in list(directory.glob("*/header.bin")):
        shutil.rmtree(header.parent)
    for where, expected in truth.items():
        assert_same(await contents(directory, where, durable=True), expected)


async def test_a_lost_index_of_it_is_missed_before_that(database):
    """Where they are deleted before, opening refuses and names what is lost."""
    directory, _ = database
    for header in list(directory.glob("*/header.bin")):
        shutil.rmtree(header.parent)
    with pytest.raises(aiochroma.DatabaseCorruptError, match="lost"):
        async with aiochroma.AsyncPersistentClient(directory, durable=True):
            pass
    async with aiochroma.AsyncPersistentClient(directory, allow_missing_vectors=True) as client:
        assert not client.recovery.is_complete
