"""The full-text index: finds any script, takes any question, follows every change, and can be thrown away."""

from __future__ import annotations

import signal
import sqlite3
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import python
from text_hits import search

from aiochroma.text.coverage import Term, best_rows
from aiochroma.text.index import IndexedText, TextIndex
from aiochroma.text.rows import RowFilter, TextQuery

_TEXTS = {
    "de": "Ich bin nach Köln gezogen, in die Große Straße.",
    "ja": "東京タワーに行きました。",
    "zh": "我喜欢喝绿茶",
    "hi": "हिन्दी भाषा सुंदर है",
    "ar": "القِطَّةُ نائمة",
    "he": "הספר על השולחן",
    "th": "ฉันรักประเทศไทย",
    "ko": "서울에서 만나요",
    "ru": "Москва зимой прекрасна",
    "ff": "𞤀𞤣𞤤𞤢𞤥 𞤯𞤮𞤼𞥆𞤮",
    "emoji": "party 🎉 tonight",
    "code": "locker code XK-4711_b",
    "wide": "\uff34\uff4f\uff4b\uff59\uff4f in full width",
}


def _index(texts=_TEXTS) -> TextIndex:
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(name, text) for name, text in texts.items()])
    return index


def neighbours(index: TextIndex, namespace, ids, window) -> list[tuple[str, str, int]]:
    """Return neighbours by ids in place of rows."""
    found = index.neighbours(namespace, index.rows(namespace, ids).values(), window)
    read = index.ids_of({row for pair in found for row in pair[:2]})
    return [(read[row], read[near], offset) for row, near, offset in found]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("KOLN", "de"),
        ("grosse strasse", "de"),
        ("東京", "ja"),
        ("タワー", "ja"),
        ("京", "ja"),
        ("绿茶", "zh"),
        ("茶", "zh"),
        ("हिन्दी", "hi"),
        ("القطة", "ar"),
        ("הַסֵּפֶר", "he"),
        ("ประเทศ", "th"),
        ("서울", "ko"),
        ("москва", "ru"),
        ("𞤣𞤤𞤢", "ff"),
        ("🎉", "emoji"),
        ("parties", "emoji"),
        ("xk 4711", "code"),
        ("Tokyo", "wide"),
    ],
)
def test_text_in_any_script_is_found(question, expected):
    """A word, a part of an unspaced run, a character or a symbol finds first the text that holds it."""
    hits = search(_index(), "n", question, 5)
    assert hits
    assert hits[0].id == expected
    assert 0.0 < hits[0].score <= 1.0
    assert hits[0].own > 0.0


_SHARED = _index()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60) | st.text('"*()^:-+{}ANDORNEAT \0', max_size=30))
def test_any_question_is_only_text(question):
    """Nothing in a question is an operator, an error, or finds what shares no word with it."""
    hits = search(_SHARED, "n", question, 5)
    assert len(hits) <= 5
    assert all(0.0 < hit.score <= 1.0 for hit in hits)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "M", "Zs", "So"]), min_size=1, max_size=30))
def test_any_text_can_be_written_and_taken_back(text):
    """Any text is indexed, replaced and removed without leaving a trace in the answers."""
    index = _index({"other": "a quiet day"})
    index.upsert("n", [IndexedText("x", text)])
    index.upsert("n", [IndexedText("x", "something else")])
    assert all(hit.id != "x" or "else" in text for hit in search(index, "n", text, 5) if hit.own == 1.0)
    assert index.delete("n", ["x", "never there"]) == 1
    assert [hit.id for hit in search(index, "n", "something else", 5)] == []
    assert index.count("n") == 1
    index.close()


_WORDS = st.sampled_from(["lake", "June", "Anna", "boat", "snow", "東京"])
_CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "delete", "fail"]),
        st.booleans(),
        st.sampled_from("nm"),
        st.integers(0, 7),
        st.lists(_WORDS, max_size=4).map(" ".join),
        st.none() | st.sampled_from(["t1", "t2"]),
        st.integers(0, 4),
    ),
    max_size=25,
)
_QUESTIONS = ["lake June", "anna 東", "boat snow lake Anna"]


def _scores(index: TextIndex, namespace: str, question: str) -> dict[str, float]:
    return {hit.id: pytest.approx(hit.score) for hit in search(index, namespace, question, 50)}


def _write_and_fail(index: TextIndex, namespace: str, row: IndexedText) -> None:
    def rows():
        yield row
        raise RuntimeError

    with pytest.raises(RuntimeError):
        index.upsert(namespace, rows())


@settings(max_examples=100, deadline=None)
@given(_CHANGES)
def test_an_index_rebuilt_equals_the_index_written(changes):
    """However the memories came to be what they are, and whatever was asked meanwhile, an index made of them answers the same."""
    written, expected = TextIndex(":memory:"), {"n": {}, "m": {}}
    for kind, asked, namespace, number, text, thread, position in changes:
        if asked:
            _ = [search(written, namespace, question, 50) for question in _QUESTIONS]
        row = IndexedText(str(number), text, thread, 10 * position + number)
        if kind == "write":
            written.upsert(namespace, [row])
            expected[namespace][row.id] = row
        elif kind == "fail":
            _write_and_fail(written, namespace, row)
        else:
            removed = expected[namespace].pop(row.id, None)
            assert written.delete(namespace, [row.id]) == (removed is not None)
    rebuilt = TextIndex(":memory:")
    for namespace, rows in expected.items():
        rebuilt.upsert(namespace, rows.values())
        for question in _QUESTIONS:
            assert _scores(written, namespace, question) == _scores(rebuilt, namespace, question)
        assert written.ids(namespace) == rebuilt.ids(namespace) == set(rows)
        assert written.count(namespace) == rebuilt.count(namespace) == len(rows)
        near = [set(neighbours(index, namespace, sorted(rows), 2)) for index in (written, rebuilt)]
        assert near[0] == near[1]
    written.close()
    rebuilt.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(1, 60)), st.sampled_from([0.25, 1.0, 1.5])), min_size=1, max_size=4
    ),
    st.integers(1, 10),
    st.none() | st.sets(st.integers(1, 60)),
    st.sampled_from([1, 10_000]),
)
def test_the_best_rows_are_those_whose_terms_weigh_most(terms, limit, allowed, apart):
    """Rows close together, which are added up, and far apart, which are sorted, give what adding up by hand gives."""
    sums: dict[int, float] = {}
    for held, weight in terms:
        for row in held if allowed is None else held & allowed:
            sums[row * apart] = sums.get(row * apart, 0.0) + weight
    # Of equal ones the newest.
    expected = sorted(sorted(sums, key=lambda row: (-sums[row], -row))[:limit])
    given = [Term(np.array(sorted(held), dtype=np.int64) * apart, weight) for held, weight in terms]
    among = None if allowed is None else np.array(sorted(allowed), dtype=np.int64) * apart
    assert best_rows(given, limit, among).tolist() == expected


_SAID = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 11),
        st.lists(st.sampled_from(["lake", "boat", "boats", "kayak", "anna"]), min_size=1, max_size=4),
        st.sampled_from([None, "t", "u"]),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(
    _SAID,
    st.lists(st.sampled_from(["lake anna", "boat", "kayak on the lake", "nowhere"]), min_size=1, max_size=3),
    st.sampled_from([None, "allowed", "excluded"]),
    st.integers(1, 5),
)
def test_queries_that_are_answered_together_find_what_each_finds_alone(said, questions, filtered, limit):
    """Namespaces whose rows alternate in the file, with filters and rows that are scored in any case; nothing is mixed up."""
    index = TextIndex(":memory:")
    for number, (namespace, id, words, thread) in enumerate(said):
        row = IndexedText(str(id), " ".join(words), thread=thread, position=float(number))
        index.upsert(namespace, [row])
    queries = []
    for namespace in ("a", "b", "c", "never written"):
        rows = np.array(sorted(index.rows(namespace, map(str, range(12))).values()), dtype=np.int64)
        none = np.empty(0, dtype=np.int64)
        keep = {
            None: RowFilter(None, none),
            "allowed": RowFilter(rows[::2], none),
            "excluded": RowFilter(None, rows[::3]),
        }[filtered]
        also = rows[keep.keeps(rows)][:2]
        queries += [TextQuery(namespace, question, limit, 2 * limit, also, keep) for question in questions]
    together = index.search_together(queries)
    for query, hits in zip(queries, together, strict=True):
        (alone,) = index.search_together([query])
        assert [column.tolist() for column in hits] == [column.tolist() for column in alone]
        by_row = {row: (score, own) for row, score, own in zip(*(one.tolist() for one in hits), strict=True)}
        best = index.search(
            query.namespace, query.query, limit, pool=query.pool, also=query.also, keep=query.keep
        )
        assert by_row == {
            row: (score, own) for row, score, own in zip(*(one.tolist() for one in best), strict=True)
        }
        assert set(index.rows(query.namespace, map(str, range(12))).values()) >= set(by_row)
        assert best.scores.tolist() == sorted(best.scores.tolist(), reverse=True)
    index.close()


def test_words_of_a_row_that_is_no_memory_are_never_taken_for_another_namespace():
    """Another program wrote into the file: a search of several namespaces calls it damage, as nothing else tells them apart."""
    index = TextIndex(":memory:")
    for namespace in "ab":
        index.upsert(namespace, [IndexedText("one", "A boat on the lake.")])
    queries = [
        TextQuery(name, "boat", 5, 10, np.empty(0, np.int64), RowFilter(None, np.empty(0, np.int64)))
        for name in "ab"
    ]
    assert [len(hits.rows) for hits in index.search_together(queries)] == [1, 1]
    (number,) = index._connection.execute("SELECT number FROM namespaces WHERE name = 'a'").fetchone()
    index._connection.execute(f"INSERT INTO terms_{number} (rowid, text) VALUES (2, 'boat')")
    index._terms._replaced(number)
    with pytest.raises(sqlite3.DatabaseError, match="words of a memory that is not there"):
        index.search_together(queries)
    index.close()


def test_neighbours_lend_each_other_their_terms():
    """The turn between two that share the question's words is found; what stands before lends more than what stands after."""
    index = TextIndex(":memory:")
    thread = ["Where was the photo taken?", "At the lake.", "Nice boat too.", "Bye.", "Dinner is at eight."]
    index.upsert("n", [IndexedText(str(place), text, "t", place) for place, text in enumerate(thread)])
    index.upsert("n", [IndexedText("alone", "At the lake.")])
    hits = {hit.id: hit for hit in search(index, "n", "photo boat", 10)}
    assert next(iter(hits)) == "2"
    assert hits["1"].own == hits["3"].own == 0.0
    assert hits["1"].score > hits["4"].score
    assert hits["2"].score > hits["0"].score
    assert "alone" not in hits
    assert {hit.id for hit in search(index, "n", "photo boat", 10, window=0)} == {"0", "2"}


def test_neighbours_are_counted_in_places():
    """Neighbours are the next places in order of position, however far apart the positions are."""
    index = TextIndex(":memory:")
    index.upsert(
        "n", [IndexedText(name, "x", "t", position) for name, position in [("c", 900), ("a", 1), ("b", 7)]]
    )
    index.upsert("n", [IndexedText("d", "x", "u", 2), IndexedText("e", "x")])
    assert set(neighbours(index, "n", ["a", "d", "e", "missing"], 2)) == {
        ("a", "b", 1),
        ("a", "c", 2),
    }
    assert neighbours(index, "n", ["b"], 1) == [("b", "a", -1), ("b", "c", 1)]


def test_the_limit_the_filter_and_the_extra_ids_are_honoured():
    """At most ``limit`` hits come, only allowed ones, and the ids asked for in any case."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(f"{number}", f"lake {number}") for number in range(100)])
    index.upsert("n", [IndexedText("other", "snow")])
    assert len(search(index, "n", "lake", 10)) == 10
    allowed = {"3", "7", "other"}
    assert {hit.id for hit in search(index, "n", "lake", 10, ids_allowed=allowed)} == {"3", "7"}
    also = search(index, "n", "lake", 10, also=["other", "5", "missing"])
    assert {"other", "5"} <= {hit.id for hit in also}
    assert len(also) <= 12
    assert next(hit for hit in also if hit.id == "other").score == 0.0
    assert {hit.id for hit in search(index, "n", "lake", 5, also=["1", "2"], ids_allowed=["2"])} == {"2"}


def test_rare_terms_and_more_terms_weigh_more():
    """Of two memories the one with the rarer term, or with more of the question's terms, comes first."""
    index = TextIndex(":memory:")
    index.upsert("n", [IndexedText(f"common {number}", "Anna called") for number in range(20)])
    index.upsert("n", [IndexedText("rare", "a kayak"), IndexedText("both", "Anna and the kayak")])
    assert [hit.id for hit in search(index, "n", "Did Anna buy a kayak?", 3)][:2] == ["both", "rare"]


def test_namespaces_are_apart():
    """What is written, counted, marked or removed in one namespace does not show in another."""
    index = TextIndex(":memory:")
    index.upsert("a", [IndexedText("1", "lake")], watermark="7")
    index.upsert("b", [IndexedText("1", "snow"), IndexedText("2", "lake")])
    assert [hit.id for hit in search(index, "a", "lake", 5)] == ["1"]
    assert search(index, "never written", "lake", 5) == []
    assert (index.watermark("a"), index.watermark("b"), index.watermark("c")) == ("7", None, None)
    index.delete_namespace("a")
    assert index.namespaces() == ["b"]
    assert (index.count("a"), index.count("b"), index.watermark("a")) == (0, 2, None)
    index.upsert("a", [IndexedText("9", "lake")])
    assert [hit.id for hit in search(index, "a", "lake", 5)] == ["9"]
    index.clear()
    assert index.namespaces() == []


def test_what_stood_in_a_dropped_namespace_is_nobodys_neighbour():
    """Rows of a namespace that is gone have numbers that others are given; what stood beside them there does not count."""
    index = TextIndex(":memory:")
    index.upsert("old", [IndexedText(f"o{n}", "word", "t", n) for n in range(8)])
    assert neighbours(index, "old", ["o3"], 1) == [("o3", "o2", -1), ("o3", "o4", 1)]
    index.delete_namespace("old")
    index.upsert("new", [IndexedText(f"n{n}", "word", "t", n) for n in range(3)])
    assert neighbours(index, "new", ["n2"], 1) == [("n2", "n1", -1)]
    index.upsert("new", [IndexedText("alone", "word", "u", 0.0)])
    index.upsert("private", [IndexedText("secret", "word", "t", 0.0)])
    for id in ("n2", "alone"):
        assert {near for _, near, _ in neighbours(index, "new", [id], 2)} <= {"n0", "n1", "n2"} - {id}


def test_a_failed_write_leaves_nothing_behind():
    """When a row of a write is wrong, none of its rows and not even its namespace is there."""
    index = TextIndex(":memory:")

    def rows():
        yield IndexedText("1", "lake")
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        index.upsert("n", rows(), watermark="1")
    assert index.namespaces() == []
    index.upsert("n", [IndexedText("1", "lake")])
    assert index.count("n") == 1


def test_what_was_written_is_there_after_reopening(tmp_path):
    """Rows, threads and watermarks survive closing; closing twice is harmless."""
    index = TextIndex.open_or_recreate(tmp_path / "text.sqlite3")
    index.upsert("n", [IndexedText("1", "lake", "t", 1), IndexedText("2", "snow", "t", 2)])
    index.set_watermark("n", "42")
    index.close()
    index.close()
    index = TextIndex.open_or_recreate(tmp_path / "text.sqlite3")
    assert index.watermark("n") == "42"
    assert [hit.id for hit in search(index, "n", "lake", 5)] == ["1", "2"]
    index.close()


def test_what_is_deleted_is_overwritten_in_the_file(tmp_path):
    """Beside what stays, a text and its vector that were deleted or replaced are in no byte of the file, without erasing."""
    path, vectors = tmp_path / "text.sqlite3", np.random.default_rng(1).random((4, 16), dtype=np.float32)
    index = TextIndex(path)
    rows = [IndexedText(str(n), f"The code of door {n} is 77{n}77.", vector=vectors[n]) for n in range(4)]
    index.upsert("n", rows)
    index.delete("n", ["1"])
    index.upsert("n", [IndexedText("2", "Nothing of note.", vector=vectors[3])])
    index.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    held = [number for number in range(4) if rows[number].text.encode() in content]
    assert held == [number for number in range(4) if vectors[number].tobytes() in content] == [0, 3]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "format"])
def test_a_damaged_file_is_replaced_by_an_empty_index(tmp_path, damage):
    """A file that is no index, torn, or of another format gives way to an empty one, which shows in the count."""
    path = tmp_path / "text.sqlite3"
    index = TextIndex(path)
    index.upsert("n", [IndexedText(str(number), f"lake {number}") for number in range(500)])
    index.close()
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"not a database" * 100)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
        (tmp_path / "text.sqlite3-wal").write_bytes(b"")
    else:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 999")
        connection.close()
    index = TextIndex.open_or_recreate(path)
    assert index.count("n") == 0
    index.upsert("n", [IndexedText("1", "snow")])
    assert [hit.id for hit in search(index, "n", "snow", 5)] == ["1"]
    index.close()


def test_recreate_begins_anew(tmp_path):
    """After ``recreate`` the index is empty and works."""
    index = TextIndex(tmp_path / "text.sqlite3")
    index.upsert("n", [IndexedText("1", "lake")], watermark="1")
    index.recreate()
    assert (index.count("n"), index.watermark("n")) == (0, None)
    index.upsert("n", [IndexedText("2", "lake")])
    assert [hit.id for hit in search(index, "n", "lake", 5)] == ["2"]
    index.close()


def test_a_locked_file_is_not_deleted(tmp_path):
    """While one connection owns the file another is refused, and what is in it stays."""
    index = TextIndex(tmp_path / "text.sqlite3")
    index.upsert("n", [IndexedText("1", "lake")])
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        TextIndex.open_or_recreate(tmp_path / "text.sqlite3")
    assert index.count("n") == 1
    index.close()


def test_a_killed_process_leaves_a_usable_index(tmp_path):
    """What was committed before a kill without warning is there at the next open."""
    path = tmp_path / "text.sqlite3"
    program = (
        "import os, signal, sys\n"
        "from aiochroma.text.index import IndexedText, TextIndex\n"
        "index = TextIndex(sys.argv[1])\n"
        "for number in range(50):\n"
        "    index.upsert('n', [IndexedText(str(number), f'lake {number}')], watermark=str(number))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert python("-c", program, path).returncode == -signal.SIGKILL
    index = TextIndex.open_or_recreate(path)
    assert (index.count("n"), index.watermark("n")) == (50, "49")
    assert len(search(index, "n", "lake", 100)) == 50
    index.close()


def test_another_thread_is_refused():
    """The index belongs to the thread that made it."""
    index = TextIndex(":memory:")
    errors = []

    def use() -> None:
        try:
            index.count("n")
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 1
