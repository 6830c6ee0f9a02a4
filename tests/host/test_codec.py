"""What travels between processes comes out as it went in; what may not travel is refused before anything is sent."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

import msgpack
import numpy as np
import pytest
from host_support import same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiochroma.core.connection import BackendInfo, Capabilities
from aiochroma.disk.findings import CollectionRecovery, RecoveryReport
from aiochroma.disk.ownership import Owner
from aiochroma.host.messages import VectorRows, make_codec, message_frames, received, travelling
from aiochroma.host.wire import FRAME_LIMIT, Codec, FrameKind, MessageReader, ProtocolError, frame, json_frame
from aiochroma.records.ranking import ScoreParts
from aiochroma.records.spec import Neighbour, SearchHit, SearchResult

CODEC = make_codec()

texts = st.text(st.characters(exclude_categories=()))
numbers = st.one_of(st.integers(), st.integers(-(2**200), 2**200), st.floats(allow_nan=False), st.booleans())
arrays = hnp.arrays(
    dtype=st.sampled_from(["<f4", "<f8", "<i4", "<i8", "|u1", "|b1"]),
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    elements={"allow_nan": False},
)
leaves = st.one_of(st.none(), numbers, texts, st.binary(), st.uuids(), arrays)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4), st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(values)
def test_plain_data_come_out_as_they_went_in(value):
    """Value and type, however nested: texts with lone surrogates, integers of any size, tuples, arrays, UUIDs."""
    assert same(CODEC.decode(CODEC.encode(value)), value)


@given(values, st.integers(1, 50))
def test_a_value_in_pieces_is_the_same_value(value, size):
    """However the bytes of a message are cut on their way."""
    data = b"".join(CODEC.segments([value, {"again": [value, value]}]))
    decoding = CODEC.decoding(2**30)
    for start in range(0, len(data), size):
        decoding.feed(data[start : start + size])
    assert same(decoding.value(), [value, {"again": [value, value]}])


def test_arrays_are_writable_and_chromas_numbers_travel_as_32_bits():
    """Chroma's results are float64 whose values are 32-bit numbers: half the bytes, the same array."""
    vectors = np.random.default_rng(0).normal(size=(100, 8)).astype("f4").astype("f8")
    data = CODEC.encode(vectors)
    decoded = CODEC.decode(data)
    assert decoded.dtype == np.float64
    assert np.array_equal(decoded, vectors)
    assert decoded.flags.writeable
    assert len(data) < vectors.nbytes * 0.6
    exact = vectors + 1e-12
    assert np.array_equal(CODEC.decode(CODEC.encode(exact)), exact)
    odd = np.array([np.nan, np.inf, -0.0, 1e300])
    assert CODEC.decode(CODEC.encode(odd)).tobytes() == odd.tobytes()


@given(st.integers(1, 600), st.sampled_from(["f4", "f8", "i4"]))
def test_vectors_are_a_list_again(count, dtype):
    """The vectors of a request travel as few arrays, and arrive as the list of rows that was given."""
    rows = [np.arange(3, dtype=dtype) + number for number in range(count)]
    plain, blocks = travelling({"embeddings": rows, "ids": ["a"]})
    assert "embeddings" not in plain
    assert all(type(block) is VectorRows for block in blocks["embeddings"])
    arguments, blocks = CODEC.decode(CODEC.encode([plain, blocks]))
    arrived = received(arguments, blocks)["embeddings"]
    assert same(arrived, rows)
    assert all(row.flags.writeable for row in arrived)


@pytest.mark.parametrize(
    "vectors",
    [
        None,
        [],
        [[1.0, 2.0]],
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2), [0.0, 0.0]],
        [np.float32(1.0)],
        np.zeros((2, 2)),
    ],
    ids=["none", "empty", "lists", "ragged", "mixed", "scalars", "array"],
)
def test_vectors_of_any_other_form_keep_it(vectors):
    """What Chroma would refuse arrives as it is, so that Chroma says what is wrong with it."""
    plain, blocks = CODEC.decode(CODEC.encode(list(travelling({"embeddings": vectors}))))
    assert same(received(plain, blocks), {"embeddings": vectors})


def test_subclasses_of_plain_types_travel_as_what_chroma_stores():
    """A text that is also a member of an enumeration is stored as its text, in another process, too."""

    class Colour(str, enum.Enum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    decoded = CODEC.decode(CODEC.encode({"colour": Colour.RED, "level": Level.HIGH, "text": np.str_("t")}))
    assert same(decoded, {"colour": "red", "level": 3, "text": "t"})


class Unknown:
    """Registered nowhere."""


@dataclasses.dataclass
class UnknownRecord:
    """Registered nowhere, although it looks plain."""

    text: str = "x"


@pytest.mark.parametrize(
    "value",
    [
        Unknown(),
        UnknownRecord(),
        datetime.now(timezone.utc),
        {1, 2},
        object,
        len,
        np.array(["a"], dtype=object),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_registered_is_refused(value):
    """By name, before anything is sent; nothing silently becomes something else."""
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        CODEC.encode({"deep": [value]})
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        list(CODEC.segments({"deep": [value]}))


def reports():
    """One instance of every report that travels, with no field left at its default."""
    recovery = CollectionRecovery("id", "notes", True, 3, 4, ("a", "b"), Path("/quarantine"), "why")
    owner = Owner(1, "here", "2026-01-01", "1.0", "bot", "host", "/run/x.sock")
    capabilities = Capabilities(True, True, True, True)
    report = RecoveryReport(Path("/data"), (recovery,))
    info = BackendInfo(capabilities, None, owner, report, True, {"pid": 1})
    return [recovery, owner, capabilities, report, info, found()]


def found():
    """What a search finds, with no field left at its default."""
    score = ScoreParts(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    near = Neighbour("b", "beside it", {"n": 1})
    hit = SearchHit("a", "the text", {"m": 2.0}, 0.1, score, "a passage", (near,), (near, near))
    return SearchResult((hit, SearchHit("c", "", {}, None, score)), 0.5, "a problem")


@pytest.mark.parametrize("report", reports(), ids=lambda report: type(report).__name__)
def test_reports_travel_with_every_field(report):
    """A field that is added to a report travels as well: the registration names none."""
    decoded = CODEC.decode(CODEC.encode(report))
    assert type(decoded) is type(report)
    assert decoded == report
    for field in dataclasses.fields(report):
        assert same(getattr(decoded, field.name), getattr(report, field.name)), field.name


def test_what_is_within_a_hit_is_of_its_class():
    """A hit is encoded with all that is in it, and what is something else is refused there, too."""
    hit = found().hits[0]
    for odd in ({"score": hit}, {"before": (hit.score,)}):
        with pytest.raises(TypeError, match="cannot be sent to another process"):
            CODEC.encode(SearchResult((dataclasses.replace(hit, **odd),)))
    code = msgpack.unpackb(CODEC.encode(hit)).code
    rest = ["a", "", {}, 0.1, [0.0] * 7, None]
    assert CODEC.decode(msgpack.packb(msgpack.ExtType(code, msgpack.packb([*rest, [], []])))).after == ()
    for odd in ([], 7, "rows", [*rest, []], [*rest, [], 1], [*rest, [], [1]], [*rest[:4], {}, None, [], []]):
        with pytest.raises(ProtocolError):
            CODEC.decode(msgpack.packb(msgpack.ExtType(code, msgpack.packb(odd))))


def test_chromas_own_types_travel():
    """Collections with every field, identities, read levels, sparse vectors, settings."""
    from chromadb.api.types import ReadLevel
    from chromadb.auth import UserIdentity
    from chromadb.base_types import SparseVector
    from chromadb.config import Settings
    from chromadb.types import Collection

    collection = Collection(
        UUID(int=7), "notes", {"hnsw": {"space": "l2"}}, {"keys": {}}, {"a": 1, "b": None}, 3, "t", "d", 5, 6
    )
    decoded = CODEC.decode(CODEC.encode(collection))
    assert type(decoded) is Collection
    assert dict(decoded) == dict(collection)
    assert set(dict(decoded)) == set(Collection.model_fields)
    for value in (
        UserIdentity("u", "t", ["d"], {"a": 1}),
        *ReadLevel,
        SparseVector(indices=[1, 2], values=[0.5, 1.5]),
        Settings(allow_reset=True, chroma_otel_collection_headers={"a": "b"}),
    ):
        decoded = CODEC.decode(CODEC.encode(value))
        assert type(decoded) is type(value)
        assert decoded == value


def test_settings_are_those_that_were_sent(tmp_path, monkeypatch):
    """Whatever variables and a file ``.env`` say where they arrive; one that is no text is not even read."""
    from chromadb.config import Settings

    data = CODEC.encode(Settings(is_persistent=True))
    (tmp_path / ".env").write_bytes(b"ALLOW_RESET=true\n\xff\xfe\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALLOW_RESET", "true")
    decoded = CODEC.decode(data)
    assert (decoded.is_persistent, decoded.allow_reset) == (True, False)


def test_registering_twice_is_refused():
    """A number or a class that is taken would make two versions of a message."""
    codec = Codec()
    codec.register(10, Unknown, lambda _: None, lambda _: Unknown())
    assert type(codec.decode(codec.encode(Unknown()))) is Unknown
    with pytest.raises(ValueError, match="is taken"):
        codec.register(10, UnknownRecord, vars, UnknownRecord)
    with pytest.raises(ValueError, match="is taken"):
        codec.register(11, Unknown, vars, Unknown)


# -- frames --------------------------------------------------------------------------------------------------------------


def read(*chunks, codec=CODEC):
    reader = MessageReader(codec)
    return [message for chunk in chunks for message in reader.feed(chunk)]


@given(st.lists(values, min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_messages_survive_any_cut_of_the_stream(sent, size, large):
    """A stream has no borders: frames are put together from whatever arrives."""
    stream = b"".join(
        piece
        for number, value in enumerate(sent)
        for piece in message_frames(CODEC, FrameKind.REQUEST, number, [value], large=large)
    )
    messages = read(*(stream[start : start + size] for start in range(0, len(stream), size)))
    assert [(kind, number) for kind, number, _ in messages] == [
        (FrameKind.REQUEST, number) for number in range(len(sent))
    ]
    assert all(same(value, [original]) for (_, _, value), original in zip(messages, sent, strict=True))


def test_small_messages_pass_between_the_parts_of_a_large_one():
    """So that a read does not wait for the whole of a long write."""
    value = {"documents": ["x" * 1000] * 2000}
    parts = list(message_frames(CODEC, FrameKind.REQUEST, 1, [value], large=True))
    assert len(parts) > 5
    small = frame(FrameKind.REQUEST, 2, CODEC.encode("small"))
    messages = read(*parts[:3], small, *parts[3:])
    assert [number for _, number, _ in messages] == [2, 1]
    assert messages[1][2] == [value]


def test_a_cancelled_message_is_dropped():
    """Its number is free again."""
    parts = list(message_frames(CODEC, FrameKind.REQUEST, 1, [["x" * 1000] * 2000], large=True))
    again = frame(FrameKind.REQUEST, 1, CODEC.encode("again"))
    messages = read(*parts[:3], frame(FrameKind.CANCEL, 1), again)
    assert messages == [(FrameKind.CANCEL, 1, None), (FrameKind.REQUEST, 1, "again")]


@given(st.binary(max_size=200))
def test_nonsense_is_a_protocol_error_at_worst(data):
    """Whatever comes: nothing else is raised, and nothing is run."""
    with contextlib.suppress(ProtocolError):
        read(data)


@given(st.sampled_from(list(FrameKind)), st.integers(0, 3), st.binary(max_size=200))
def test_nonsense_in_a_frame_is_a_protocol_error_at_worst(kind, number, body):
    """The same behind a correct header, also where parts precede."""
    with contextlib.suppress(ProtocolError):
        read(
            frame(FrameKind.SEGMENT, number, body),
            frame(kind, number, body),
            json_frame(FrameKind.STATUS, {}),
        )


@given(values, st.data())
def test_damaged_messages_are_a_protocol_error_at_worst(value, data):
    """One byte of a real message is another one."""
    encoded = bytearray(CODEC.encode([value]))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        CODEC.decode(bytes(encoded))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\xc0",
        b"\xc7\x05\x04" + b"\x93\xa2|O\x90\xc4\x00"[:5],
    ],
    ids=["array of four billion", "map of four billion", "deep", "array of objects"],
)
def test_messages_that_would_exhaust_us_are_refused(data):
    """Before anything is allocated for them."""
    with pytest.raises(ProtocolError):
        CODEC.decode(data)


def test_registered_types_in_each_other_without_end_are_refused():
    """Each level takes room on the C stack: a thousand of them would end the process."""
    import msgpack

    data = msgpack.packb([])
    for _ in range(5000):
        data = msgpack.packb(msgpack.ExtType(1, data))
    with pytest.raises(ProtocolError):
        CODEC.decode(data)


def test_oversized_and_unknown_frames_are_refused():
    """Before their bodies are awaited."""
    with pytest.raises(ProtocolError, match="limit"):
        read(frame(FrameKind.REQUEST, 1, b"x" * (FRAME_LIMIT + 1))[:20])
    with pytest.raises(ProtocolError, match="unknown kind"):
        read(b"\0\0\0\0\xff" + b"\0" * 8)
