"""Programs that replace what Python has: a frozen clock, greenlets for threads, another SQLite, nested event loops.

What is replaced stays replaced, so each is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_USE = """
    import asyncio, os, sys, tempfile, threading, time
    import aiochroma, aiochroma.sync

    def use(path=None, **options):
        with aiochroma.sync.Memory(path or tempfile.mkdtemp(), history=True, **options) as memory:
            kettle = memory.remember("The kettle is in the left cupboard.", scope="ada")
            memory.remember_many(["Penicillin gives me hives.", "My cat is called Miso."], scope="ada")
            assert "kettle" in memory.recall("where is the kettle?", scope="ada", half_life=3600)[0].text
            memory.update(kettle, text="The kettle is in the right cupboard.")
            short = memory.remember("soon gone", ttl=60)
            memory.sweep()
            assert memory.get(short) and memory.forget(short)
            memory.backup(tempfile.mkdtemp() + "/backup")
            with aiochroma.deadline(30):
                assert memory.recall("cat")
            return memory.count()

    async def use_on_a_loop(**options):
        async with aiochroma.Memory(tempfile.mkdtemp(), **options) as memory:
            said = [{"role": "user", "content": f"message {number}"} for number in range(6)]
            await memory.remember_messages(said, namespace="chat", thread="t")
            hits = await memory.list("chat", thread="t", limit=10)
            assert [hit.text for hit in hits] == [message["content"] for message in said]
            found = await asyncio.gather(*(memory.recall(f"message {number}") for number in range(20)))
            assert all(found)
            with aiochroma.deadline(30):
                return len(await memory.recall("message", namespaces="chat", limit=4))
"""


def run(program, *, first=""):
    """Run a program that has `use` and `use_on_a_loop`, and return what it printed.

    Args:
        program: What it does.
        first: What it does before it imports aiochroma.
    """
    source = textwrap.dedent(first) + textwrap.dedent(_USE) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# -- a frozen clock ----------------------------------------------------------------------------------------------------

_MOMENTS = ["1970-01-01", "2020-02-29", "2200-01-01"]


@pytest.mark.timeout(150)
def test_under_a_frozen_clock_everything_works():
    """Long before and long after the system's own clocks; `freezegun` stops those of time limits, too."""
    pytest.importorskip("freezegun")
    printed = run(f"""
        from freezegun import freeze_time
        for moment in {_MOMENTS!r}:
            with freeze_time(moment):
                print(use(), asyncio.run(use_on_a_loop()))
    """)
    assert printed == ["3", "4"] * 3


@pytest.mark.timeout(150)
def test_limits_hold_under_a_frozen_clock():
    """A deadline, the wait for another owner and for a foreign lock, and that of a child process end when they should."""
    pytest.importorskip("freezegun")
    printed = run(f"""
        import subprocess, types, aiochroma.disk.copying as copying
        from freezegun import freeze_time

        def holding(*lines):
            source = "\\n".join(["import sys", *lines, "print(1, flush=True)", "sys.stdin.read()"])
            started = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert started.stdout.readline()
            return started

        def refused(work):
            try:
                work()
            except (aiochroma.AiochromaError, copying.ChildError) as error:
                print(type(error).__name__)

        def slow(texts):
            time.sleep(1)
            return [[1.0, 2.0] for _ in texts]

        def open_owned():
            aiochroma.sync.PersistentClient(owned, lock_timeout=0.2)

        owned, locked, endless = tempfile.mkdtemp(), tempfile.mkdtemp(), tempfile.mkdtemp() + "/endless.py"
        with open(endless, "w") as file:
            file.write("import time; time.sleep(600)")
        child = types.SimpleNamespace(__name__="endless", __file__=endless)
        owner = holding("import aiochroma.sync", f"c = aiochroma.sync.PersistentClient({{owned!r}})")
        for moment in {_MOMENTS!r}:
            with freeze_time(moment):
                refused(open_owned)
                with aiochroma.sync.Memory(tempfile.mkdtemp(), embedder=slow) as memory, aiochroma.deadline(0.3):
                    refused(lambda: memory.remember("x"))
                with aiochroma.sync.Memory(locked) as memory:
                    memory.remember("before")
                    file = locked + "/chroma.sqlite3"
                    holder = holding("import sqlite3", f"c = sqlite3.connect({{file!r}})", "c.execute('begin immediate')")
                    with aiochroma.deadline(2.5):
                        refused(lambda: memory.remember("meanwhile"))
                    holder.communicate()
                refused(lambda: copying.run_script(child, [], seconds=0.2))
        owner.communicate()
    """)
    each = ["DatabaseInUseError", "DeadlineExceededError", "DatabaseLockedError", "ChildError"]
    assert printed == each * 3


@pytest.mark.timeout(150)
def test_memories_follow_the_clock_of_the_program():
    """Their age and their end are the frozen clock's; a conversation keeps its order when that goes back."""
    pytest.importorskip("freezegun")
    printed = run("""
        from freezegun import freeze_time
        with freeze_time("2025-01-01") as clock, aiochroma.sync.Memory(tempfile.mkdtemp()) as memory:
            for number, moment in enumerate(["2025-01-01", "2025-01-02", "2024-01-01", "2025-06-01"]):
                clock.move_to(moment)
                memory.remember(f"word{number}", namespace="chat", thread="t")
            print(*(hit.text for hit in memory.list("chat", thread="t", limit=9)))
            short = memory.remember("soon gone", ttl=60)
            clock.tick(59)
            print(memory.get(short) is not None)
            clock.tick(2)
            print(memory.get(short) is not None, memory.sweep())
    """)
    assert printed == ["word0", "word1", "word2", "word3", "True", "False", "1"]


# -- greenlets ---------------------------------------------------------------------------------------------------------

_FIRST = "from gevent import monkey; monkey.patch_all()"


@pytest.mark.timeout(150)
def test_under_gevent_everything_works():
    """Where it comes first, as it should: many greenlets, some of which are killed or run out of time, and an event loop."""
    pytest.importorskip("gevent")
    printed = run(
        """
        import gevent
        print(use(), use(process="shared"), asyncio.run(use_on_a_loop()))

        def slow(texts):
            time.sleep(0.2)
            return [[1.0, float(len(text))] for text in texts]

        with aiochroma.sync.Memory(tempfile.mkdtemp(), embedder=slow) as memory:
            memory.remember("one")
            asking = [gevent.spawn(memory.recall, f"question {number}") for number in range(20)]
            gevent.killall(asking[::2], block=False)
            try:
                with gevent.Timeout(0.05):
                    memory.recall("another one")
            except gevent.Timeout:
                print("late")
            gevent.joinall(asking)
            print(sum(not isinstance(one.value, gevent.GreenletExit) for one in asking), len(memory.recall("one")))
        """,
        first=_FIRST,
    )
    assert printed == ["3", "3", "4", "late", "10", "1"]


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("first", "program", "says"),
    [
        ("", "from gevent import monkey; monkey.patch_all(); use()", "before any other import"),
        ("from gevent import monkey; monkey.patch_all(thread=False, queue=False)", "use()", "Popen"),
        ("from gevent import monkey; monkey.patch_all(thread=False)", "use()", "(thread=False)"),
        (_FIRST, "import gevent; gevent.get_hub().threadpool.apply(use)", "on the main thread"),
        (_FIRST, "import uvloop; uvloop.run(use_on_a_loop())", "asyncio's own event loop"),
    ],
)
def test_what_would_stand_still_under_gevent_is_refused(first, program, says):
    """Replaced too late, by halves, used from a pool of real threads, or beside a loop that never lets greenlets run."""
    pytest.importorskip("gevent")
    printed = run(
        f"""
        try:
            {program}
        except aiochroma.BlockingCallError as error:
            print({says!r} in str(error))
        """,
        first=first,
    )
    assert printed == ["True"]


@pytest.mark.timeout(150)
def test_a_memory_of_greenlets_refuses_real_threads():
    """Those of gevent's pool would never be woken."""
    pytest.importorskip("gevent")
    printed = run(
        """
        import gevent
        with aiochroma.sync.Memory(tempfile.mkdtemp()) as memory:
            try:
                gevent.get_hub().threadpool.apply(memory.count)
            except aiochroma.BlockingCallError as error:
                print("greenlet" in str(error), memory.count())
        """,
        first=_FIRST,
    )
    assert printed == ["True", "0"]


# -- others ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(150)
def test_with_another_sqlite_everything_works():
    """As people do whose system's is too old for Chroma; a shared one has an owner process with its own."""
    pytest.importorskip("pysqlite3")
    printed = run(
        """
        path = tempfile.mkdtemp()
        print(use(path), use(path, process="shared"), asyncio.run(use_on_a_loop()))
        aiochroma.sync.doctor(path)
        """,
        first="__import__('pysqlite3'); import sys; sys.modules['sqlite3'] = sys.modules.pop('pysqlite3')",
    )
    assert printed == ["3", "4", "4"]


@pytest.mark.timeout(150)
def test_nested_event_loops_work_and_the_blocking_classes_say_why_not():
    """A notebook's cells run on its loop, where `nest_asyncio` lets them call `run_until_complete` once more."""
    pytest.importorskip("nest_asyncio")
    printed = run("""
        import nest_asyncio
        nest_asyncio.apply()

        async def cell():
            run = asyncio.get_running_loop().run_until_complete
            memory = aiochroma.Memory(tempfile.mkdtemp())
            run(memory.open())
            run(memory.remember("The kettle is in the cupboard."))

            async def inner():
                return run(memory.recall("kettle"))

            print(sum(len(hits) for hits in await asyncio.gather(*(inner() for _ in range(10)))))
            print(asyncio.run(memory.count()))
            run(memory.close())
            try:
                aiochroma.sync.Memory(tempfile.mkdtemp()).open()
            except aiochroma.BlockingCallError:
                print("refused")

        asyncio.run(cell())
        print(asyncio.run(use_on_a_loop()))
    """)
    assert printed == ["10", "1", "refused", "4"]
