"""Files of ours: closed to others, in place as a whole, never in the place of something else."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from programs import is_alive, printed_by, until

import aiochroma
from aiochroma._files import Replacement, flush, make_directory, touch_private, write_atomically
from aiochroma._logging import private_log_file
from aiochroma._partial import PartialDirectory
from aiochroma.disk import copying
from aiochroma.disk.child import copy
from aiochroma.host.reaching import start_detached

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and pipes of POSIX")


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_we_make_is_closed_to_others(tmp_path):
    """Directories are 0700, those above them as well, and files 0600; what is there keeps its mode."""
    make_directory(tmp_path / "a" / "b")
    touch_private(tmp_path / "a" / "file")
    write_atomically(tmp_path / "a" / "text", "x")
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)
    assert (mode(tmp_path / "a" / "file"), mode(tmp_path / "a" / "text")) == (0o600, 0o600)
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open" / "text").write_text("before")
    make_directory(tmp_path / "open")
    touch_private(tmp_path / "open" / "text")
    write_atomically(tmp_path / "open" / "text", "after")
    assert (mode(tmp_path / "open"), mode(tmp_path / "open" / "text")) == (0o755, 0o644)
    assert (tmp_path / "open" / "text").read_text() == "after"


def test_a_directory_is_not_made_below_a_file(tmp_path):
    """A file in the way is an error of the system, and stays."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        make_directory(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "x"


async def test_a_memory_that_is_made_is_closed_to_others(tmp_path):
    """Whatever the umask: the directory is 0700, and of the files that lie in it ours are 0600."""
    async with aiochroma.Memory(tmp_path / "deep" / "memory", history=True) as memory:
        await memory.remember("private")
        await memory.recall("private")
        files = {
            file.name: oct(mode(file)) for file in (tmp_path / "deep" / "memory").iterdir() if file.is_file()
        }
        assert {name: bits for name, bits in files.items() if bits != oct(0o600)} == {}
    assert mode(tmp_path / "deep") == mode(tmp_path / "deep" / "memory") == 0o700


_MADE_BY_EVERYBODY = """
import asyncio, os, shutil, sys
from pathlib import Path
import aiochroma

os.umask(0)
path = Path(sys.argv[1])

async def main():
    path.mkdir()  # Open to everybody, and theirs to decide.
    async with aiochroma.Memory(path / "db", history=True) as memory:
        await memory.remember("private", namespace="one")
        await memory.remember("private", namespace="two")
        await memory.recall("private")
        seen(path / "db")
        await memory.client.backup(path / "backup")
    for index in (path / "db").glob("*/header.bin"):
        index.write_bytes(b"")
    async with aiochroma.Memory(path / "db") as memory:
        assert await memory.count() == 2
        seen(path / "db")
        await memory.compact("one")
    await aiochroma.restore(path / "backup", path / "restored")
    await aiochroma.migrate(path / "db", path / "migrated")
    await aiochroma.doctor(path / "db", repair=True, vacuum=True, backup_to=path / "copy")
    shutil.copytree(path / "db", path / "users", copy_function=shutil.copyfile)
    (path / "users").chmod(0o777)
    async with aiochroma.Memory(path / "users") as memory:
        await memory.remember("private", namespace="three")
        new = {entry for entry in (path / "users").iterdir()} - {path / "users" / entry.name for entry in (path / "db").iterdir()}
        print(*{oct(entry.stat().st_mode & 0o777) for entry in new if entry.is_dir()})
    shutil.rmtree(path / "users")
    seen(path)

def seen(folder):
    for entry in sorted(folder.rglob("*")):
        mode = entry.stat().st_mode & 0o777
        # What Chroma makes within a directory that is closed nobody reaches.
        assert mode == 0o700 if entry.is_dir() else mode == 0o600 or entry.suffix in (".bin", ".pickle"), (entry, oct(mode))

asyncio.run(main())
"""


def test_whatever_the_umask_indexes_are_closed_to_others(tmp_path):
    """Those that Chroma makes when something is written, restored, rebuilt, compacted, migrated or copied."""
    assert printed_by("-c", _MADE_BY_EVERYBODY, str(tmp_path / "made")).split() == ["0o700"]


def test_a_copy_has_the_modes_of_what_it_copies(tmp_path):
    """Files and directories, the top one as well."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "index").mkdir(parents=True)
    (source / "index" / "closed").write_text("x")
    (source / "shared").write_text("x")
    for path, bits in (
        (source / "index" / "closed", 0o600),
        (source / "shared", 0o640),
        (source / "index", 0o700),
        (source, 0o750),
    ):
        path.chmod(bits)
    target.mkdir()
    copy(source, target)
    for path in [source, *source.rglob("*")]:
        assert mode(target / path.relative_to(source)) == mode(path), path


@pytest.mark.timeout(60)
def test_a_copy_leaves_out_what_is_no_file(tmp_path):
    """A named pipe is not waited for, a link to the directory itself is not followed, one that leads nowhere is left out."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "text").write_text("x")
    os.mkfifo(source / "pipe")
    (source / "inner" / "loop").symlink_to(source)
    (source / "nowhere").symlink_to(tmp_path / "gone")
    (source / "link").symlink_to(source / "inner" / "text")
    target.mkdir()
    copy(source, target, ["ski*"])
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "inner",
        "inner/text",
        "link",
    ]
    assert (target / "link").read_text() == "x"
    assert not (target / "link").is_symlink()


def test_a_copy_goes_on_without_what_vanishes(tmp_path, monkeypatch):
    """A log that gets another name while a backup is made is no reason to make none."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("kept", "moved", "seen and moved"):
        (source / name).write_text("x")
    looked = Path.stat

    def looks(path, **how):
        if path == source / "moved":
            path.unlink()
        found = looked(path, **how)
        if path == source / "seen and moved":
            path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", looks)
    copy(source, target)
    monkeypatch.undo()
    assert [path.name for path in target.iterdir()] == ["kept"]


def write(path, text):
    output = Replacement(path)
    output.file.write(text)
    output.commit()


def test_a_copy_is_brought_up_to_date(tmp_path):
    """What has not changed since stays as it is, what has is copied again, and what is gone goes; the mark of the copy stays."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "index").mkdir(parents=True)
    target.mkdir()
    (target / ".mark").touch()
    for name in ("same", "grown", "rewritten", "gone", "new", "index/same", "index/gone"):
        (source / name).write_text("before")
        os.utime(source / name, (1e9, 1e9))
    (source / "new").write_text(
        "before"
    )  # At this moment: it may be written once more without looking otherwise.
    copy(source, target, [".mark"])
    inodes = {
        name: (target / name).stat().st_ino for name in ("same", "grown", "rewritten", "new", "index/same")
    }
    assert (target / "same").stat().st_mtime == 1e9
    (source / "grown").write_text("before and after")
    (source / "rewritten").write_text("behind")
    (source / "gone").unlink()
    (source / "index" / "gone").unlink()
    copy(source, target, [".mark"])
    now = {
        file.relative_to(target).as_posix(): file.read_text() for file in target.rglob("*") if file.is_file()
    }
    assert now == {
        ".mark": "",
        "same": "before",
        "grown": "before and after",
        "rewritten": "behind",
        "new": "before",
        "index/same": "before",
    }
    kept = {name for name, inode in inodes.items() if (target / name).stat().st_ino == inode}
    assert {"same", "index/same"} <= kept
    (source / "index" / "same").unlink()
    (source / "index").rmdir()
    copy(source, target, [".mark"])
    assert not (target / "index").exists()


def test_an_output_goes_through_a_link(tmp_path):
    """What a link points to is replaced and keeps its mode, and the link stays; so does one to a file that is not there yet."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "today").write_text("old")
    (tmp_path / "archive" / "today").chmod(0o640)
    (tmp_path / "latest").symlink_to(tmp_path / "archive" / "today")
    (tmp_path / "next").symlink_to(tmp_path / "archive" / "tomorrow")
    write(tmp_path / "latest", "new")
    write(tmp_path / "next", "new")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "next").is_symlink()
    assert (
        (tmp_path / "archive" / "today").read_text()
        == (tmp_path / "archive" / "tomorrow").read_text()
        == "new"
    )
    assert mode(tmp_path / "archive" / "today") == 0o640
    assert mode(tmp_path / "archive" / "tomorrow") == 0o600


def test_an_output_goes_into_a_pipe(tmp_path):
    """A pipe that somebody reads gets it and stays a pipe."""
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    while True:
        try:
            output = Replacement(tmp_path / "pipe")
            break
        except OSError:  # The reader is not there yet.
            assert reader.is_alive()
    output.file.write("x" * 200_000)
    output.commit()
    reader.join()
    assert read == ["x" * 200_000]
    assert (tmp_path / "pipe").is_fifo()


def test_an_output_that_fails_leaves_what_was_there(tmp_path):
    """Neither half a file nor a temporary one is left; a pipe that nobody reads and a directory are refused at once."""
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    output = Replacement(tmp_path / "file")
    output.file.write("half")
    output.discard()
    for name in ("pipe", "."):
        with pytest.raises(OSError):
            Replacement(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "pipe").is_fifo()


def test_two_outputs_to_one_name_do_not_meet(tmp_path):
    """Each is whole; the one that is finished last stays."""
    first, second = Replacement(tmp_path / "file"), Replacement(tmp_path / "file")
    first.file.write("first" * 1000)
    second.file.write("second" * 1000)
    second.commit()
    first.commit()
    assert (tmp_path / "file").read_text() == "first" * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_output_left_is_removed_by_the_next(tmp_path):
    """Once its process has ended, and nothing else: neither what another still writes nor a file that is called alike."""
    program = (
        "import os, pathlib, sys; from aiochroma._files import Replacement\n"
        "output = Replacement(pathlib.Path(sys.argv[1])); output.file.write('private'); output.file.flush(); os._exit(1)"
    )
    place = str(Path(aiochroma.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": place},
        check=False,
    )
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 1
    (tmp_path / ".file.old").write_text("mine")
    (tmp_path / ".file.partial-notes.txt").write_text("mine")
    writing = Replacement(tmp_path / "file")
    writing.file.write("whole")
    writing.file.flush()
    assert not left & {path.name for path in tmp_path.iterdir()}
    Replacement(tmp_path / "file").discard()
    writing.commit()
    assert (tmp_path / "file").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {".file.old", ".file.partial-notes.txt", "file"}


def test_a_child_imports_nothing_from_the_working_directory(tmp_path, monkeypatch):
    """Modules, variables and files there that Python or Chroma would heed are without effect."""
    for name in ("json", "runpy", "chromadb", "numpy", "tenacity", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ImportError('planted')\n"
        )
    (tmp_path / ".env").write_text("allow_reset=perhaps\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ALLOW_RESET", "perhaps")
    program = (
        "import sys; from aiochroma.disk.copying import run_child;"
        "print(run_child('aiochroma.backend.verify_child', [sys.argv[1], 'full'], seconds=99))"
    )
    place = str(Path(aiochroma.__file__).parents[1])
    start = f"import sys; sys.path.append({place!r}); {program}"
    (tmp_path / "empty").mkdir()
    assert "there is no database in it" in printed_by("-I", "-c", start, tmp_path / "empty", cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that refuses")
def test_what_gets_its_name_is_on_the_disk_before(tmp_path, monkeypatch):
    """Every file and folder is written through before the final name, and the folder that holds the name after it."""
    flushed = []

    def noting(descriptor, fsync=os.fsync):
        flushed.append(
            (os.fstat(descriptor).st_ino, (tmp_path / "final").exists(), (tmp_path / "note").exists())
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    partial = PartialDirectory(tmp_path / "final")
    (partial.path / "folder").mkdir()
    (partial.path / "folder" / "data").write_bytes(b"data")
    made = [partial.path, partial.path / "folder", partial.path / "folder" / "data"]
    numbers = {path.stat().st_ino for path in made}
    flushed.clear()
    partial.finish()
    assert numbers <= {number for number, is_final, _ in flushed if not is_final}
    assert (tmp_path.stat().st_ino, True, False) in flushed
    flushed.clear()
    write_atomically(tmp_path / "note", "text")
    assert ((tmp_path / "note").stat().st_ino, True, False) in flushed
    assert (tmp_path.stat().st_ino, True, True) in flushed


def test_a_directory_that_cannot_be_flushed_is_no_error(tmp_path):
    """Some file systems do not let a directory be written through; what is missing is an error still."""
    flush(Path("/proc"))
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "nothing")


def test_a_log_is_closed_to_others(tmp_path):
    """Also after a new one was begun; where a named pipe lies in its place no program waits for a reader."""
    log = tmp_path / "log"
    handler = private_log_file(log)
    try:
        for _ in range(3):
            handler.emit(logging.LogRecord("aiochroma", logging.INFO, "", 0, "x" * 2**20, (), None))
    finally:
        handler.close()
    assert [mode(file) for file in sorted(tmp_path.iterdir())] == [0o600, 0o600]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        private_log_file(tmp_path / "pipe")


def script(file):
    """Stand for a module of ours."""
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    return module


def test_a_child_that_hangs_is_ended(tmp_path):
    """Its time is limited, and the error says so."""
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(1000)\n")
    with pytest.raises(copying.ChildError, match="within 1 s") as error:
        copying.run_script(script(tmp_path / "sleeps.py"), [], seconds=1)
    assert error.value.code is None


_WAITS = """import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("copying.run_child('waits', [sys.argv[2]], seconds=1000)", ""),
        (
            (
                "waits = types.ModuleType('waits'); waits.__file__ = sys.argv[1] + '/waits.py'\n"
                "copying.run_script(waits, [sys.argv[2]], seconds=1000)"
            ),
            (
                f"import sys; sys.path.insert(0, {str(Path(copying.__file__).parent)!r})\n"
                "import child; child.end_with_parent()\n"
            ),
        ),
    ],
    ids=["module", "script"],
)
def test_a_child_ends_with_the_process_that_started_it(tmp_path, start, first):
    """Nobody waits for it any more, and what it writes into may be removed, or begun again, by whoever comes next."""
    (tmp_path / "waits.py").write_text(first + _WAITS)
    said = tmp_path / "pid"
    program = f"import sys, types; from aiochroma.disk import copying\nsys.path.append(sys.argv[1])\n{start}"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(said)]) as process:
        number = int(until(lambda: said.exists() and said.read_text(), "the child begins"))
        process.kill()
    until(lambda: not is_alive(number), "the child ends")


def test_a_child_that_crashes_says_how(tmp_path):
    """A signal is a negative code; an error is told by its last line."""
    (tmp_path / "dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    (tmp_path / "raises.py").write_text("raise ValueError('no such thing')\n")
    with pytest.raises(copying.ChildError) as killed:
        copying.run_script(script(tmp_path / "dies.py"), [], seconds=60)
    with pytest.raises(copying.ChildError, match="no such thing"):
        copying.run_script(script(tmp_path / "raises.py"), [], seconds=60)
    assert killed.value.code == -9


def test_a_frozen_program_is_not_its_own_interpreter(tmp_path, monkeypatch):
    """What it calls its executable is the program, which must not be started once more; an interpreter can be named."""
    (tmp_path / "prints.py").write_text("print('done')\n")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(copying.ChildError, match="AIOCHROMA_PYTHON") as error:
        copying.run_script(script(tmp_path / "prints.py"), [], seconds=60)
    assert not error.value.started
    with pytest.raises(aiochroma.StoreUnavailableError, match="AIOCHROMA_PYTHON"):
        start_detached("aiochroma.host", str(tmp_path), {}, log="log")
    monkeypatch.setenv("AIOCHROMA_PYTHON", sys.executable)
    assert copying.run_script(script(tmp_path / "prints.py"), [], seconds=60) == "done\n"
    # Its modules are in no file.
    module = ModuleType("aiochroma.disk.child")
    module.__file__ = str(tmp_path / "archive" / "child.py")
    with pytest.raises(copying.ChildError, match="no such table"):
        copying.run_script(module, ["positions", tmp_path / "empty.sqlite3"], seconds=60)


async def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    """Half a character, which no file system takes; the bytes of a name that is not UTF-8 are one."""
    async with aiochroma.Memory(tmp_path / "memory") as memory:
        await memory.remember("x")
        for use in (memory.export, memory.import_, memory.backup):
            with pytest.raises(aiochroma.InvalidInputError, match="not a usable path"):
                await use(tmp_path / "\ud800")
        assert await memory.export(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")) is not None


_FORKS = """
import os, pathlib, sys, threading, time
from aiochroma.disk import copying
sys.path.append(sys.argv[1])
threading.Thread(target=copying.run_child, args=('waits', [sys.argv[2]]), kwargs={'seconds': 1000}, daemon=True).start()
while not (pathlib.Path(sys.argv[2]).exists() and pathlib.Path(sys.argv[2]).read_text()):
    time.sleep(0.01)
os.write(1, b"%d\\n" % os.fork())
time.sleep(1000)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_of_the_process_keeps_no_child_alive(tmp_path):
    """A pool of `multiprocessing`, say, outlives the process that is killed; what copies for that one ends nevertheless."""
    (tmp_path / "waits.py").write_text(_WAITS)
    said = tmp_path / "pid"
    command = [sys.executable, "-c", _FORKS, str(tmp_path), str(said)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        fork = next(number for number in map(int, process.stdout) if number)
        process.kill()
        try:
            number = int(said.read_text())
            until(lambda: not is_alive(number), "the child ends")
        finally:
            os.kill(fork, signal.SIGKILL)
