"""One owner per directory: between processes, spellings, forks and crashes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import printed_by, state_of, until

from aiochroma import DatabaseInUseError, DatabasePathError
from aiochroma._files import canonical_path
from aiochroma.disk.layout import check_directory
from aiochroma.disk.ownership import (
    OWNER_FILE,
    _filesystem_type,
    acquire,
    foreign_users,
    is_alive,
    lock_warning,
    read_owner,
    refuse_foreign_users,
)

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
NOBODY = 65534


@pytest.fixture
def foreign_owner(child, tmp_path):
    """Another process that owns `tmp_path / "db"`."""
    process = child.start("own", tmp_path / "db")
    assert int(process.stdout.readline()) == process.pid
    yield process
    child.finish(process)


def test_a_second_process_is_told_who_owns_the_directory(foreign_owner, tmp_path):
    """The error names pid, host and start time, and says what to do."""
    with pytest.raises(DatabaseInUseError, match='process="shared"') as raised:
        acquire(tmp_path / "db")
    assert raised.value.pid == foreign_owner.pid
    assert raised.value.host == os.uname().nodename
    assert raised.value.since.endswith("+00:00")
    assert str(foreign_owner.pid) in str(raised.value)


def test_every_spelling_of_a_directory_is_one_directory(foreign_owner, tmp_path, monkeypatch):
    """Relative paths, links and detours meet the same lock."""
    (tmp_path / "link").symlink_to(tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    for spelling in ("db", "./x/../db", "link", str(tmp_path / "db") + "/", tmp_path / "link" / "."):
        assert canonical_path(spelling) == str((tmp_path / "db").resolve())
        with pytest.raises(DatabaseInUseError):
            acquire(spelling)


def test_the_lock_dies_with_its_process(foreign_owner, tmp_path):
    """After kill -9 the directory is free at once, and the dead owner's record is not believed."""
    foreign_owner.kill()
    foreign_owner.wait()
    assert read_owner(tmp_path / "db").pid == foreign_owner.pid
    ownership = acquire(tmp_path / "db")
    assert ownership.is_held
    assert read_owner(tmp_path / "db").pid == os.getpid()
    ownership.release()


def test_waiting_for_an_owner_that_lets_go_succeeds(foreign_owner, tmp_path):
    """A wait ends as soon as the owner has released, well before its time is up."""
    foreign_owner.stdin.close()
    ownership = acquire(tmp_path / "db", wait_seconds=60)
    assert ownership.is_held
    ownership.release()


def test_a_hundred_rapid_restarts_find_the_directory_free(tmp_path):
    """Releasing leaves nothing behind that the next owner would stumble over."""
    for _ in range(100):
        ownership = acquire(tmp_path)
        ownership.release()
        assert not ownership.is_held
        ownership.release()
    assert read_owner(tmp_path) is None


def test_a_second_owner_in_the_same_process_is_refused(tmp_path):
    """The error says that it is this same process."""
    ownership = acquire(tmp_path)
    with pytest.raises(DatabaseInUseError, match="this same process"):
        acquire(tmp_path)
    assert ownership.is_held
    ownership.release()


def test_an_owner_that_is_just_letting_go_refuses_nobody(tmp_path, monkeypatch):
    """Its record goes before its lock; whoever asks in between finds the lock held, and then nobody."""
    holder = acquire(tmp_path)
    (tmp_path / OWNER_FILE).unlink()
    monkeypatch.setattr(time, "sleep", lambda _: holder.release())
    acquire(tmp_path).release()


def test_a_stale_or_broken_record_means_nothing(tmp_path):
    """Only the lock says who owns a directory; a record, whatever it says, does not."""
    for content in (
        "",
        "{}",
        "[1]",
        json.dumps({"pid": 1, "host": "h", "since": "s", "version": "v", "command": "c"}),
    ):
        (tmp_path / ".aiochroma.owner.json").write_text(content)
        ownership = acquire(tmp_path)
        assert ownership.is_held
        ownership.release()


def test_a_directory_replaced_under_its_owner_is_noticed(tmp_path):
    """The lock of a deleted directory protects nothing: it is reported as not held, and can be taken anew."""
    directory = tmp_path / "db"
    ownership = acquire(directory)
    shutil.rmtree(directory)
    assert not ownership.is_held
    other = acquire(directory)
    assert other.is_held
    ownership.release()
    assert read_owner(directory) == other.owner
    other.release()


FORKED = """
import os, sys, time
from aiochroma.disk.ownership import acquire
ownership = acquire(sys.argv[1])
child = os.fork()
if child == 0:
    held = ownership.is_held
    ownership.release()
    os.write(1, f"child {os.getpid()} {held}\\n".encode())
    time.sleep(60)
    os._exit(0)
os.write(1, f"parent {ownership.is_held}\\n".encode())
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_holds_nor_releases_the_lock(tmp_path):
    """The child's copy is dead; the parent keeps the lock while it lives, and the child does not keep it after."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    pid = None
    try:
        said = dict(process.stdout.readline().split(maxsplit=1) for _ in range(2))
        assert said["parent"].split() == ["True"]
        pid, held = said["child"].split()
        assert held == "False"
        with pytest.raises(DatabaseInUseError):
            acquire(tmp_path)
        process.kill()
        process.wait()
        acquire(tmp_path).release()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if pid is not None:
            os.kill(int(pid), signal.SIGKILL)


def test_a_file_is_not_a_directory(tmp_path):
    """A path that is a file, or below one, is refused by name and nothing is created."""
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(DatabasePathError, match="is a file"):
            acquire(path)
    (tmp_path / "chroma.sqlite3").mkdir()
    with pytest.raises(DatabasePathError, match="not a regular file"):
        acquire(tmp_path)
    with pytest.raises(DatabasePathError, match="does not exist"):
        check_directory(tmp_path / "missing", create=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chroma.sqlite3", "file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user to run as")
def test_missing_permission_is_said_before_anything_is_created():
    """Without the right to write, the error says so, and the directory stays as it was."""
    program = f"""
import os, sys, pathlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from aiochroma import DatabasePathError
from aiochroma.disk.ownership import acquire
os.setuid({NOBODY})
for path in sys.argv[1:]:
    try:
        acquire(path)
    except DatabasePathError as error:
        print(error)
"""
    root = Path("/var/lib") / f"aiochroma-test-{os.getpid()}"
    root.mkdir(mode=0o755)
    try:
        paths = [str(root), str(root / "below" / "it")]
        first, second = printed_by("-c", program, *paths).splitlines()
        assert "may not be written by this process (uid 65534)" in first
        assert "cannot be created" in second
        assert list(root.iterdir()) == []
    finally:
        root.rmdir()


MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:30 / /mnt/share rw shared:1 - nfs4 server:/export rw
31 27 0:31 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
32 27 0:32 / /mnt/ntfs rw - fuseblk /dev/sda1 rw
33 27 0:33 / /mnt/over rw - ext4 /dev/sdb rw
34 27 0:34 / /mnt/over rw - cifs //server/share rw
"""


@LINUX
def test_network_file_systems_are_recognised(tmp_path, monkeypatch):
    """The mount that holds the directory decides: the deepest one, and the last of several."""
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    kinds = {
        "/srv/db": "ext4",
        "/mnt/share/deep/db": "nfs4",
        "/mnt/sharing": "ext4",
        "/mnt/with space/db": "fuse.sshfs",
        "/mnt/over": "cifs",
    }
    assert {path: _filesystem_type(Path(path), str(table)) for path in kinds} == kinds
    monkeypatch.setattr(
        "aiochroma.disk.ownership._filesystem_type", lambda path: kinds.get(str(path), "fuseblk")
    )
    assert lock_warning(Path("/srv/db")) is None
    assert lock_warning(Path("/mnt/ntfs/db")) is None
    for path in ("/mnt/share/deep/db", "/mnt/with space/db", "/mnt/over"):
        assert kinds[path] in lock_warning(Path(path))


@LINUX
def test_a_plain_chromadb_client_in_another_process_is_noticed(seeds, child, tmp_path):
    """A process that has the file open without having asked for the directory is named."""
    directory = seeds.copy(tmp_path / "db", collections={})
    refuse_foreign_users(directory)
    process = child.start("hold", directory, "SELECT * FROM collections")
    process.stdout.readline()
    try:
        assert foreign_users(directory) == (process.pid,)
        with pytest.raises(DatabaseInUseError, match="did not ask") as raised:
            refuse_foreign_users(directory)
        assert raised.value.pid == process.pid
    finally:
        child.finish(process)
    refuse_foreign_users(directory)


@LINUX
def test_a_zombie_is_not_alive():
    """In a container whose first process waits for nobody, an ended host stays one for ever."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        until(lambda: state_of(process.pid) == "Z", "it has ended, and nobody has waited for it")
        assert not is_alive(process.pid)
    finally:
        process.wait()
    assert not is_alive(process.pid)
    assert is_alive(os.getpid())
    assert is_alive(1)
