"""Streamlit without a browser: one memory for all runs of all scripts, and messages instead of tracebacks."""

from __future__ import annotations

import sys
import threading

import pytest
from programs import error_without

import aiochroma
from aiochroma import sync

pytest.importorskip("streamlit", reason="streamlit is not installed (dependency group `frameworks`)")

import streamlit as st
from streamlit.testing.v1 import AppTest

from aiochroma.streamlit import as_markdown, cached_memory, guarded

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:streamlit.*", "ignore:.*:DeprecationWarning:pandas.*"
)


@pytest.fixture(autouse=True)
def same_main(monkeypatch):
    """Streamlit puts a script in the place of the main module, where new processes would look for it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(autouse=True)
def nothing_cached():
    """Close what the test has left in Streamlit's cache, as the end of the process would."""
    opened = []
    yield opened
    for memory in opened:
        memory.close()
    st.cache_resource.clear()


@pytest.fixture
def memory_of(nothing_cached):
    """Open a memory as a script does, to be closed at the end."""

    def open_it(*arguments, **options):
        memory = cached_memory(*arguments, **options)
        nothing_cached.append(memory)
        return memory

    return open_it


def page(path):
    """A script that counts its runs, and fails when it is asked to."""
    import streamlit as st

    from aiochroma.streamlit import cached_memory, guarded, store_status

    memory = guarded(lambda: cached_memory(path), attempts=2)
    if memory is None:
        st.stop()
    store_status(memory)
    if text := st.text_input("text"):
        guarded(lambda: memory.remember(text))
    st.write(f"memory {id(memory)} holds {memory.count()}")
    if st.button("fail"):
        raise LookupError("the script's own")


def run_page(path):
    app = AppTest.from_function(page, args=(str(path),), default_timeout=60).run()
    assert not app.exception
    return app


def last_line(app):
    return app.markdown[-1].value


def test_the_extra_is_named_where_streamlit_is_absent():
    """Without the package the error names it, and the extra that brings it."""
    shown = error_without("streamlit", "aiochroma.streamlit")
    assert "aiochroma-memory[streamlit]" in shown


def test_one_memory_however_the_path_is_spelled(tmp_path, memory_of):
    """All threads get one and the same memory of a directory, and other directories other ones."""
    first = memory_of(tmp_path / "store")
    found = []
    spellings = [str(tmp_path / "store"), f"{tmp_path}/./store", tmp_path / "x" / ".." / "store"]
    threads = [
        threading.Thread(target=lambda path=path: found.append(cached_memory(path))) for path in spellings
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [memory is first for memory in found] == [True] * 3
    assert memory_of(tmp_path / "other") is not first


def test_embedders_are_told_apart(tmp_path, memory_of):
    """An embedder of the same name is the same, made anew at every run or not; another one has its own memory."""

    def shout(texts):
        return [[float(len(text)), 1.0] for text in texts]

    def whisper(texts):
        return [[1.0, float(len(text))] for text in texts]

    assert memory_of(tmp_path, embedder=shout) is cached_memory(tmp_path, embedder=shout)
    assert memory_of(tmp_path, embedder=whisper) is not cached_memory(tmp_path, embedder=shout)

    class Service:
        """One class for every model, as those of services are."""

        def __init__(self, model):
            self.model = model

        @staticmethod
        def name():
            return "service"

        def get_config(self):
            return {"model_name": self.model}

        def __call__(self, input):
            return [[float(len(text)), float(len(self.model))] for text in input]

    small = memory_of(tmp_path / "models", embedder=Service("small"))
    assert cached_memory(tmp_path / "models", embedder=Service("small")) is small
    assert memory_of(tmp_path / "models", embedder=Service("enormous")) is not small


def test_a_text_is_shown_as_it_is():
    """Stored text cannot make the page fetch an image, nor look like a part of it."""

    def page():
        import streamlit

        from aiochroma.streamlit import as_markdown, guarded

        def wrong():
            raise aiochroma.InvalidInputError(text)

        import aiochroma

        text = "![x](http://evil.example/y) # <b>bold</b> $a$ `code` **loud**"
        guarded(wrong)
        streamlit.write(as_markdown(text))

    app = AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception
    shown = (
        r"\!\[x\]\(JOINERhttp\:\/\/evil\.example\/y\) \# \<b\>bold\<\/b\> \$a\$ \`code\` \*\*loud\*\*"
    ).replace("JOINER", "\N{WORD JOINER}")
    assert [app.warning[0].value, app.markdown[0].value] == [shown, shown]


def test_a_memory_that_was_closed_is_opened_again(tmp_path, memory_of):
    """A script that closes the memory does no harm to the next run."""
    with memory_of(tmp_path) as memory:
        memory.remember("the key is under the mat")
    again = memory_of(tmp_path)
    assert again is not memory
    assert again.count() == 1


def test_reruns_sessions_and_errors_keep_the_memory(tmp_path, memory_of):
    """Runs of a script, other sessions, and a script that fails all find the same memory, with what was written."""
    memory_of(tmp_path)
    one, other = run_page(tmp_path), run_page(tmp_path)
    one.text_input[0].input("the key is under the mat").run()
    assert last_line(one).endswith("holds 1")
    one.button[0].click().run()
    assert one.exception[0].message == "the script's own"
    other.run()
    assert last_line(other) == last_line(one)
    assert "1 memories" in other.success[0].value


def test_wrong_input_is_a_warning(tmp_path, memory_of):
    """What is wrong with the input is shown as a warning."""
    memory_of(tmp_path)
    app = run_page(tmp_path)
    app.text_input[0].input("   ").run()
    assert not app.exception
    assert "blank" in app.warning[0].value


def test_an_unavailable_store_is_a_message(tmp_path, memory_of):
    """While the store cannot be opened the page shows why; when it can, the same page works."""
    path = tmp_path / "store"
    path.write_text("a file where the directory should be")
    app = run_page(path)
    assert "not available" in app.error[0].value
    assert str(path) in app.error[0].value.replace("\\", "")
    path.unlink()
    app.run()
    memory_of(path)
    assert not app.error
    assert last_line(app).endswith("holds 0")


def test_a_store_that_fails_later_is_a_message(tmp_path, memory_of):
    """The status of a memory that is closed is a message as well."""

    def status(path):
        import aiochroma.streamlit

        memory = aiochroma.streamlit.cached_memory(path)
        memory.close()
        aiochroma.streamlit.store_status(memory)

    app = AppTest.from_function(status, args=(str(tmp_path),), default_timeout=60).run()
    memory_of(tmp_path)
    assert not app.exception
    assert "not available" in app.error[0].value


def test_what_may_pass_is_tried_again():
    """Work that fails with something that may pass is repeated; with anything else it is not."""
    outcomes = [
        aiochroma.DatabaseInUseError("in use"),
        aiochroma.QueueFullError("full", limit=1),
        aiochroma.DeadlineExceededError("late", started=False),
        "done",
    ]

    def work():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert guarded(work) == "done"


@pytest.mark.parametrize(
    "error",
    [
        aiochroma.DatabasePathError("no directory"),
        aiochroma.DeadlineExceededError("late", started=True),
        aiochroma.OutcomeUnknownError("who knows"),
        aiochroma.InvalidInputError("wrong"),
    ],
)
def test_what_cannot_pass_is_not(error):
    """What may have happened already, or never will, is not repeated; the caller gets what it asked for instead."""
    calls = []

    def work():
        calls.append(1)
        raise error

    assert guarded(work, otherwise="nothing") == "nothing"
    assert calls == [1]


def test_other_errors_pass():
    """A mistake in the script is not hidden."""
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_it_shares_the_store_with_the_rest_of_the_process(tmp_path, memory_of):
    """Whatever else in the process uses the directory sees what the page has written."""
    memory_of(tmp_path).remember("the key is under the mat")
    with sync.Memory(tmp_path) as other:
        assert other.count() == 1


def test_odd_options_are_refused_in_words(tmp_path):
    """Before Streamlit makes a key of them, or calls them."""
    odd = ["\ud800", object(), [], {"a": object()}, -1]
    for option in ("timeout", "durable", "process", "host_idle"):
        for value in odd:
            with pytest.raises(aiochroma.InvalidInputError, match=option):
                cached_memory(tmp_path, **{option: value})
    with pytest.raises(aiochroma.InvalidInputError, match="embedder"):
        cached_memory(tmp_path, embedder="\ud800")
    for options in ({"work": 7}, {"attempts": 0}, {"attempts": "3"}, {"again_every": "3"}):
        with pytest.raises(aiochroma.InvalidInputError, match=next(iter(options))):
            guarded(**{"work": lambda: 1, **options})
    with pytest.raises(aiochroma.InvalidInputError, match="text"):
        as_markdown(7)
