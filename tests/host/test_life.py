"""The life of a host: started on demand, exactly one, ended in order, found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from programs import command, is_alive, python, until

import aiochroma
from aiochroma import sync
from aiochroma.disk.layout import SQLITE_FILE
from aiochroma.disk.ownership import OWNER_FILE, acquire, read_owner
from aiochroma.host.reaching import acquire_after_host, start_detached
from aiochroma.host.sockets import check_peer, connect_to, socket_address
from aiochroma.host.wire import FrameKind, json_frame

VECTOR = [0.1, 0.2, 0.3, 0.4]
PROGRAM = Path(__file__).with_name("program.py")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def starting():
    """Hosts start as they do for everybody."""
    return subprocess


# -- which process -----------------------------------------------------------------------------------------------------


async def test_none_is_this_process_unless_a_host_serves(hosts, path):
    """Where there is no host nothing changes; where there is one, it is used."""
    async with aiochroma.AsyncPersistentClient(path) as client:
        assert client.session.connection.describe().mode == "persistent"
    async with aiochroma.AsyncPersistentClient(path, process="shared"):
        pass
    async with aiochroma.AsyncPersistentClient(path) as client:
        assert client.session.connection.describe().mode == "shared"
        assert hosts.pid(path) == client.session.connection.describe().host["pid"]


async def test_this_asks_an_idle_host_to_leave(hosts, path):
    """One with clients stays, and the error names their number."""
    async with aiochroma.AsyncPersistentClient(path, process="shared"):
        pid = hosts.pid(path)
        code = "import aiochroma.sync, sys; aiochroma.sync.PersistentClient(sys.argv[1], process='this')"
        _, _, errors = await asyncio.to_thread(python, "-c", code, path)
        assert f"the host process {pid} with 1 clients" in errors
    async with aiochroma.AsyncPersistentClient(path, process="this") as client:
        assert client.session.connection.describe().mode == "persistent"
        await asyncio.to_thread(hosts.ended, pid)


async def test_what_needs_a_closed_database_asks_an_idle_host_to_leave(hosts, path, tmp_path):
    """Doctor, erasing, migrating and restoring: refused with the number of clients, done when there are none."""
    whole = {
        "erase": lambda: aiochroma.erase(path),
        "migrate": lambda: aiochroma.migrate(path, tmp_path / "moved"),
        "restore": lambda: aiochroma.restore(tmp_path / "backup", path),
    }
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        await client.backup(tmp_path / "backup")
        for work in whole.values():
            with pytest.raises(aiochroma.DatabaseInUseError, match="1 clients"):
                await work()
        report = await aiochroma.doctor(path)
        assert report.owner is not None
        assert "1 clients" in report.problems[0]
    whole["doctor"] = lambda: aiochroma.doctor(path)
    for work in whole.values():
        async with aiochroma.AsyncPersistentClient(path, process="shared"):
            pid = hosts.pid(path)
        await work()
        await asyncio.to_thread(hosts.ended, pid)


async def test_one_process_has_a_directory_one_way(hosts, path):
    """The second opener that insists on the other way is refused by name."""
    async with aiochroma.AsyncPersistentClient(path, process="this"):
        with pytest.raises(aiochroma.SettingsConflictError, match="process"):
            await aiochroma.AsyncPersistentClient(path, process="shared")
        async with aiochroma.AsyncPersistentClient(path):
            pass


async def test_a_program_that_has_the_directory_is_named(hosts, path):
    """And how to share it."""
    path.mkdir()
    holder = acquire(path)
    try:
        with pytest.raises(aiochroma.DatabaseInUseError, match='process="shared" in every program') as raised:
            await aiochroma.AsyncPersistentClient(path, process="shared")
        assert raised.value.pid == os.getpid()
    finally:
        holder.release()


async def test_a_host_waits_for_the_directory_as_long_as_its_client(hosts, path, monkeypatch):
    """`lock_timeout` holds whatever a host may usually take to start."""
    monkeypatch.setattr("aiochroma.host.reaching._REACH_SECONDS", 0.0)
    path.mkdir()
    holder = acquire(path)
    try:
        opening = asyncio.ensure_future(_count(path))
        await asyncio.sleep(0)
    finally:
        holder.release()
    assert await opening == 0


async def _count(path):
    async with aiochroma.AsyncPersistentClient(path, process="shared", lock_timeout=60) as client:
        return await client.count_collections()


async def _open_and_count(path, process):
    async with aiochroma.AsyncPersistentClient(path, process=process) as client:
        return await client.count_collections()


async def _examine(path):
    assert (await aiochroma.doctor(path)).problems == ()


@pytest.mark.parametrize(
    "work",
    [
        lambda path: _open_and_count(path, None),
        lambda path: _open_and_count(path, "this"),
        _examine,
        aiochroma.erase,
    ],
    ids=["none", "this", "doctor", "erase"],
)
async def test_a_host_that_is_going_is_waited_for(hosts, path, monkeypatch, work):
    """It stops listening first and lets go of the directory last; whoever comes in between is not refused."""
    async with aiochroma.AsyncPersistentClient(path):
        pass
    holder = acquire(path, role="host")
    # Whoever waits, waits for this.
    monkeypatch.setattr(time, "sleep", lambda _: holder.release())
    try:
        await work(path)
    finally:
        holder.release()


def test_an_owner_that_lets_go_while_it_is_looked_for_refuses_nobody(path, monkeypatch):
    """The lock was held a moment ago, and by now there is no record of who had it."""
    path.mkdir()
    holder = acquire(path, role="host")

    def look(directory):
        holder.release()
        return read_owner(directory)

    monkeypatch.setattr("aiochroma.host.reaching.read_owner", look)
    acquire_after_host(path).release()


async def test_closing_does_not_wait_for_a_host_that_never_says_a_word(hosts, path, monkeypatch, tmp_path):
    """Whoever opens is released at once, and its thread ends, too."""
    pids = tmp_path / "pids"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nsleep 1000 &\necho $! >> "{pids}"\n')
    script.chmod(0o700)
    monkeypatch.setenv("AIOCHROMA_HOST_PYTHON", str(script))
    opening = asyncio.ensure_future(_count(path))
    await asyncio.to_thread(until, pids.exists, "it is started")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    links = [thread for thread in threading.enumerate() if thread.name.startswith("aiochroma-link")]
    await asyncio.to_thread(until, lambda: not any(map(threading.Thread.is_alive, links)), "its end")
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGKILL)


async def test_a_process_that_is_not_known_is_refused(path):
    """Before anything happens."""
    with pytest.raises(aiochroma.InvalidInputError, match="process"):
        aiochroma.AsyncPersistentClient(path, process="other")
    with pytest.raises(aiochroma.InvalidInputError, match="host_idle"):
        aiochroma.AsyncPersistentClient(path, host_idle=-1)


async def test_the_environment_says_so(hosts, path, monkeypatch):
    """`CHROMA_PROCESS`."""
    monkeypatch.setenv("CHROMA_DB_PATH", str(path))
    monkeypatch.setenv("CHROMA_PROCESS", "Shared")
    async with aiochroma.connect() as client:
        assert client.session.connection.describe().mode == "shared"
    monkeypatch.setenv("CHROMA_PROCESS", "other")
    with pytest.raises(aiochroma.InvalidInputError, match="CHROMA_PROCESS"):
        await aiochroma.connect()


# -- one host ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_what_kept_a_host_from_opening_is_not_said_again_when_it_is_gone(hosts, path):
    """A host that could not open stays a moment, for whoever has waited for it; the next attempt is one of its own."""
    async with aiochroma.AsyncPersistentClient(path, process="this"):
        pass
    file, whole = path / SQLITE_FILE, (path / SQLITE_FILE).read_bytes()
    for _ in range(2):
        file.write_bytes(b"no database at all" * 1000)
        attempts = [aiochroma.AsyncPersistentClient(path, process="shared").open() for _ in range(3)]
        errors = await asyncio.gather(*attempts, return_exceptions=True)
        assert [type(error) for error in errors] == [aiochroma.DatabaseCorruptError] * 3
        with pytest.raises(aiochroma.DatabaseCorruptError):
            await aiochroma.AsyncPersistentClient(path, process="shared")
        file.write_bytes(whole)
        async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
            assert await client.list_collections() == []
            pid = hosts.pid(path)
        async with aiochroma.AsyncPersistentClient(path, process="this"):
            await asyncio.to_thread(hosts.ended, pid)


def test_ten_processes_that_start_at_once_have_one_host(hosts, path):
    """No error, no lost record."""
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), "write", str(path), f"p{n}", "20"], **PIPES)
        for n in range(10)
    ]
    outcomes = [process.communicate() for process in processes]
    assert outcomes == [("done\n", "")] * 10
    assert hosts.log(path).count('"event": "database.opened"') == 1
    with sync.PersistentClient(path) as client:
        assert client.get_collection("things", embedding_function=None).count() == 200


def test_a_starter_that_is_killed_leaves_the_start_to_others(hosts, path):
    """In the moment in which it has the lock of those who start a host."""
    starter = subprocess.Popen([sys.executable, str(PROGRAM), "stay", str(path)], **PIPES)
    until(lambda: list(Path(hosts.folder).glob("*.starting")), "it starts a host")
    starter.kill()
    starter.communicate()
    with sync.PersistentClient(path, process="shared", host_idle=0) as client:
        assert client.count_collections() == 0
    assert hosts.log(path).count('"event": "database.opened"') == 1


def test_the_folder_and_the_socket_are_the_users_alone(hosts, path):
    """0700 and 0600; a folder that is open to others is refused."""
    with sync.PersistentClient(path, process="shared"):
        assert stat.S_IMODE(Path(hosts.folder).stat().st_mode) == 0o700
        (found,) = [each for each in Path(hosts.folder).iterdir() if each.suffix == ".sock"]
        assert stat.S_IMODE(found.stat().st_mode) == 0o600
        assert stat.S_IMODE((path / "aiochroma-host.log").stat().st_mode) == 0o600
    other = path.parent / "other"
    Path(hosts.folder).chmod(0o755)
    with pytest.raises(aiochroma.StoreUnavailableError, match="0700"):
        sync.PersistentClient(other, process="shared")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(hosts, path):
    """Whoever owns it could listen in our place; the message names the owner."""
    os.chown(hosts.folder, 65534, 65534)
    with pytest.raises(aiochroma.StoreUnavailableError, match=r"of this user's.*owner 65534"):
        sync.PersistentClient(path, process="shared")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
@pytest.mark.skipif(
    not hasattr(socket, "SO_PEERCRED"), reason="the kernel does not tell who is at the other end"
)
def test_a_process_of_another_user_is_refused():
    """Whatever the permissions of the folder: the kernel tells who it is, and the connection is closed."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address = Path(folder, "socket")
        listening.bind(str(address))
        listening.listen()
        Path(folder).chmod(0o755)
        address.chmod(0o666)
        for user in (0, 65534):
            with socket.socket(socket.AF_UNIX) as other:
                os.seteuid(user)
                try:
                    other.connect(str(address))
                finally:
                    os.seteuid(0)
                connected, _ = listening.accept()
                if not user:
                    check_peer(connected, "A client")
                else:
                    with pytest.raises(aiochroma.DatabaseInUseError, match="A client belongs to user 65534"):
                        check_peer(connected, "A client")
                assert (connected.fileno() == -1) is bool(user)
                connected.close()


@contextlib.contextmanager
def another_user():
    """Be another user for the kernel."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
def test_a_host_and_its_client_ask_who_the_other_is(hosts, path, tmp_path):
    """Even where folder and socket are open to all: a host serves no other user, and a client trusts no other user's host."""
    with sync.PersistentClient(path, process="shared") as client:
        (address,) = Path(hosts.folder).glob("*.sock")
        Path(hosts.folder).chmod(0o711)
        address.chmod(0o666)
        for known in (False, True):
            with socket.socket(socket.AF_UNIX) as connecting:
                connecting.settimeout(60.0)
                with contextlib.nullcontext() if known else another_user():
                    connecting.connect(str(address))
                    try:
                        connecting.sendall(json_frame(FrameKind.STATUS, None))
                        answer = connecting.recv(4096)
                    except ConnectionError:
                        answer = b""
                assert bool(answer) is known
        assert client.heartbeat()
        assert "user 65534" in hosts.log(path)
        Path(hosts.folder).chmod(0o700)
    other = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_address(other)))
        with another_user():
            listening.listen()
        with pytest.raises(aiochroma.DatabaseInUseError, match="belongs to user 65534"):
            sync.PersistentClient(other, process="shared")


def test_options_other_than_those_of_another_process_are_refused(hosts, path):
    """The host says which; whoever asks for nothing shares what is open."""
    process = subprocess.Popen([sys.executable, str(PROGRAM), "stay", str(path)], **PIPES)
    try:
        assert process.stdout.readline() == "here\n"
        with pytest.raises(
            aiochroma.SettingsConflictError, match=rf"{hosts.pid(path)} with different `max_write_slice_ms`"
        ):
            sync.PersistentClient(path, process="shared", max_write_slice_ms=20)
        with sync.PersistentClient(path, process="shared") as client:
            assert client.heartbeat()
    finally:
        process.communicate()


def test_a_folder_that_is_a_link_is_refused(hosts, path, monkeypatch, tmp_path):
    """Whoever made the link would choose where we listen."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(aiochroma.StoreUnavailableError, match="0700"):
        sync.PersistentClient(path, process="shared")


def test_a_folder_with_too_long_a_path_is_named(hosts, path, monkeypatch, tmp_path):
    """A socket's address has a hundred bytes; the message names the variable."""
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(aiochroma.StoreUnavailableError, match="AIOCHROMA_RUNTIME_DIR"):
        sync.PersistentClient(path, process="shared")


def test_what_a_dead_host_left_is_of_no_consequence(hosts, path):
    """Its socket and its record are there, nobody listens: the next one takes over."""
    with sync.PersistentClient(path, process="shared") as client:
        client.create_collection("things", embedding_function=None)
    pid = hosts.kill(path)
    hosts.ended(pid)
    assert read_owner(path).pid == pid
    assert [each for each in Path(hosts.folder).iterdir() if each.suffix == ".sock"]
    with sync.PersistentClient(path, process="shared") as client:
        assert client.count_collections() == 1
    # A program that shares it with nobody may have it, too.
    hosts.ended(hosts.kill(path))
    with sync.PersistentClient(path) as client:
        assert client.count_collections() == 1


def test_clients_find_a_host_whose_folder_is_another(hosts, path, monkeypatch, tmp_path):
    """A cron job has another environment: the owner's record says where the host listens."""
    with sync.PersistentClient(path, process="shared"):
        pid = hosts.pid(path)
        code = (
            "import aiochroma.sync, sys; client = aiochroma.sync.PersistentClient(sys.argv[1]); "
            "print(client.session.connection.describe().host['pid']); client.close()"
        )
        _, out, errors = python("-c", code, path, AIOCHROMA_RUNTIME_DIR=str(tmp_path / "elsewhere"))
        assert out == f"{pid}\n", errors


async def test_a_copy_of_a_served_directory_is_a_database_of_its_own(hosts, path, tmp_path):
    """The owner's record, which names the original's host, was copied with it; no client may be led there by it."""
    copy = tmp_path / "copy"
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        await client.create_collection("original", embedding_function=None)
        shutil.copytree(path, copy)
        code, _, errors = await asyncio.to_thread(command, "host", copy, "--stop", "--force")
        assert code == 1, errors
        for process in (None, "shared"):
            hosts.directories.add(os.path.realpath(copy))
            async with aiochroma.AsyncPersistentClient(copy, process=process, host_idle=0) as other:
                await other.create_collection(f"copy-{process}", embedding_function=None)
        assert [each.name for each in await client.list_collections()] == ["original"]


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_host_does_not_search_for_garbage_in_what_it_has_imported(path):
    """Each such search would keep everybody waiting for some 60 ms."""
    code = (
        "import gc, sys; from aiochroma.core.config import EngineOptions, Location; from aiochroma.disk.ownership import acquire;"
        "from aiochroma.host.__main__ import open_for_long;"
        "backend = open_for_long(Location('persistent', sys.argv[1]), EngineOptions(), take_lock=acquire);"
        "print(len(gc.get_objects()) < gc.get_freeze_count() / 4); backend.close()"
    )
    assert python("-c", code, path)[:2] == (0, "True\n")


def test_a_host_without_clients_ends(hosts, path):
    """After its idle time, at once with 0; neither socket nor record is left."""
    with sync.PersistentClient(path, process="shared", host_idle=0):
        pid = hosts.pid(path)
    hosts.ended(pid)
    assert not (path / OWNER_FILE).exists()
    assert not [each for each in Path(hosts.folder).iterdir() if each.suffix == ".sock"]


def test_a_host_waits_for_the_client_that_has_started_it(hosts, path):
    """Even where it is to end at once without clients: the first one has not come yet."""
    path.mkdir()
    start_detached("aiochroma.host", str(path), {"idle": 0.0}, log="aiochroma-host.log")
    until(lambda: "database.opened" in hosts.log(path), "the database is open")
    assert hosts.status(path)["state"] == "open"


def test_a_log_that_cannot_be_written_does_not_keep_the_host(hosts, path):
    """A pipe in its place would be waited for."""
    path.mkdir()
    os.mkfifo(path / "aiochroma-host.log")
    with sync.PersistentClient(path, process="shared") as client:
        assert client.count_collections() == 0
        os.kill(hosts.pid(path), signal.SIGKILL)


@pytest.mark.timeout(300)
def test_clients_that_come_as_the_host_goes_have_one_all_the_same(hosts, path):
    """Connecting at the very end of the idle time: no error, whichever way it goes."""
    with sync.PersistentClient(path, process="shared", host_idle=0) as client:
        client.create_collection("things", embedding_function=None)
    for _ in range(8):
        with sync.PersistentClient(path, process="shared", host_idle=0) as client:
            assert client.count_collections() == 1


def test_the_command_shows_and_ends_a_host(hosts, path):
    """Exit codes: 1 none, 3 refused, 0 done."""
    path.mkdir()
    assert command("host", path, "--status")[0] == 1
    assert command("host", path, "--status", "--json") == (1, "null\n", "")
    assert command("host", path, "--stop")[0] == 1
    with sync.PersistentClient(path, process="shared") as client:
        pid = hosts.pid(path)
        code, out, _ = command("host", path, "--status", "--json")
        status = json.loads(out)
        assert (code, status["pid"], status["state"], [each["pid"] for each in status["clients"]]) == (
            0,
            pid,
            "open",
            [os.getpid()],
        )
        code, out, _ = command("host", path, "--status")
        assert code == 0
        assert str(pid) in out
        code, _, errors = command("host", path, "--stop")
        assert code == 3
        assert "1 clients" in errors
        assert is_alive(pid)
        assert command("host", path, "--stop", "--force")[0] == 0
        assert not is_alive(pid)
        # A client whose host was ended has a new one at its next call.
        assert client.count_collections() == 0
        assert hosts.pid(path) != pid
    code, _, errors = command("host", path, "--stop")
    assert code == 0, errors


def test_force_ends_a_host_that_hangs(hosts, path, monkeypatch):
    """Stopped, it does not answer: it is killed."""
    with sync.PersistentClient(path, process="shared"):
        pass
    pid = hosts.kill(path, signal.SIGSTOP)
    monkeypatch.setattr("aiochroma.host.reaching._ANSWER_SECONDS", 0.5)
    code, _, errors = command("host", path, "--stop")
    assert code == 3
    assert "--force" in errors
    assert command("host", path, "--stop", "--force")[0] == 0
    assert not is_alive(pid)


def test_wrong_options_are_refused(path):
    """Bad input: 2."""
    for options in (["--json"], ["--force"], ["--status", "--stop"], ["--stop", "--idle", "3"]):
        assert command("host", path, *options)[0] == 2


def test_a_host_in_the_foreground(hosts, path):
    """As a service runs it: it says that it listens, stays without clients, and drains at SIGTERM."""
    process = subprocess.Popen([sys.executable, "-m", "aiochroma", "host", str(path)], **PIPES)
    try:
        assert (
            process.stdout.readline()
            == f"The host of {os.path.realpath(path)} listens (process {process.pid}).\n"
        )
        with sync.PersistentClient(path) as client:
            assert client.session.connection.describe().host["pid"] == process.pid
        second = python("-m", "aiochroma", "host", path)
        assert second[0] == 3
        assert str(process.pid) in second[2]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_never_start_leaves_it_to_others(hosts, path, monkeypatch):
    """`AIOCHROMA_HOST_START=never`: a service starts the host, and this program says so where there is none."""
    monkeypatch.setenv("AIOCHROMA_HOST_START", "never")
    with pytest.raises(aiochroma.StoreUnavailableError, match="aiochroma host"):
        sync.PersistentClient(path, process="shared")


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_version(monkeypatch):
    """Let this process be of another version than the host that it meets."""
    from aiochroma.host import messages

    def pretend():
        mine = {**messages.versions(), "aiochroma": "999.0"}
        monkeypatch.setattr(messages, "versions", lambda: mine)

    return pretend


def test_a_client_of_another_version_meets_a_host_with_clients(hosts, path, other_version):
    """Both versions are named, and how to end the host."""
    other = subprocess.Popen([sys.executable, str(PROGRAM), "stay", str(path)], **PIPES)
    try:
        assert other.stdout.readline() == "here\n"
        other_version()
        with pytest.raises(aiochroma.SettingsConflictError, match=r"999\.0 here.*--stop"):
            sync.PersistentClient(path, process="shared")
    finally:
        other.communicate("")


def test_a_client_of_another_version_has_an_idle_host_leave(hosts, path):
    """And starts its own; said to the host by a client that names another version."""
    from aiochroma.host.messages import versions
    from aiochroma.host.sockets import connect
    from aiochroma.host.wire import FrameKind, json_frame

    with sync.PersistentClient(path, process="shared"):
        pid = hosts.pid(path)
    with connect(path) as connected:
        connected.sendall(json_frame(FrameKind.HELLO, {**versions(), "chromadb": "0.1"}))
        assert b'"going": true' in connected.recv(4096)
    hosts.ended(pid)


# -- its surroundings --------------------------------------------------------------------------------------------------


async def test_a_deleted_directory_is_an_error_that_says_so(client, path):
    """As in one process."""
    import shutil

    shutil.rmtree(path)
    with pytest.raises(aiochroma.DatabaseMovedError):
        await client.create_collection("things", embedding_function=None)


async def test_tools_have_an_idle_host_leave(hosts, path):
    """`doctor` needs the directory for itself; a host with clients is named."""
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        await client.create_collection("things", embedding_function=None)
        code, out, errors = await asyncio.to_thread(command, "doctor", path)
        assert code == 3
        assert "with 1 clients" in out.replace("\n", " ") + errors
    assert (await asyncio.to_thread(command, "doctor", path))[0] == 0
    assert hosts.pid(path) is None


async def test_a_backup_is_made_through_the_host(client, path, tmp_path):
    """The host copies, the client verifies."""
    collection = await client.create_collection("things", embedding_function=None)
    await collection.add(ids=["a"], embeddings=[VECTOR])
    report = await client.backup(tmp_path / "copy")
    assert report.records == 1


def test_the_command_line_works_beside_a_bot(hosts, tmp_path):
    """remember, import and recall use the host that the bot uses."""
    path = tmp_path / "memory"
    hosts.directories.add(os.path.realpath(path))
    code, _, errors = python("-m", "aiochroma", "remember", "The bot likes tea.", "--path", path)
    assert code == 0, errors
    with sync.Memory(path, process="shared") as memory:
        assert [hit.text for hit in memory.recall("tea").hits] == ["The bot likes tea."]
        code, _, errors = python("-m", "aiochroma", "remember", "It rains.", "--path", path)
        assert code == 0, errors
        lines = "".join(json.dumps({"text": f"Import number {number}."}) + "\n" for number in range(300))
        code, _, errors = python("-m", "aiochroma", "import", "-", "--path", path, typed=lines)
        assert code == 0, errors
        code, out, errors = python("-m", "aiochroma", "recall", "rains", "--path", path)
        assert code == 0, errors
        assert "It rains." in out
        assert "It rains." in [hit.text for hit in memory.recall("rains").hits]
        assert memory.count() == 302


# -- what is deleted, other namespaces, notebooks ------------------------------------------------------------------------


async def test_a_deleted_socket_is_made_again(monkeypatch, dying_host, hosts, path):
    """Connected clients go on meanwhile; the host binds at its next look, so that others find it again.

    So it does where the whole folder is gone, and something else in its place for a while.
    """
    monkeypatch.setenv("DYING_HOST_LOOK_SECONDS", "0.2")
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        collection = await client.create_collection("things", embedding_function=None)
        pid = hosts.pid(path)
        socket = Path(read_owner(path).socket)
        shutil.rmtree(socket.parent)
        socket.parent.touch()
        await asyncio.to_thread(until, lambda: "cannot be made again" in hosts.log(path), "a look")
        socket.parent.unlink()
        await collection.upsert(ids=["meanwhile"], embeddings=[VECTOR])
        # A host looks when something happens, too; an idle one by itself.
        await asyncio.to_thread(until, socket.exists, "the socket is there again")
        out = await asyncio.to_thread(python, PROGRAM, "write", path, "other", 3)
        assert out[:2] == (0, "done\n")
        assert await collection.count() == 4
        assert hosts.pid(path) == pid


async def test_a_host_of_a_deleted_directory_ends(monkeypatch, dying_host, hosts, path):
    """Without clients it ends at its next look, although it was told to stay; nothing of it is left."""
    monkeypatch.setenv("DYING_HOST_LOOK_SECONDS", "0.2")
    async with aiochroma.AsyncPersistentClient(path, process="shared", host_idle=600) as client:
        await client.create_collection("things", embedding_function=None)
        pid, socket = hosts.pid(path), Path(read_owner(path).socket)
        shutil.rmtree(path)
    await asyncio.to_thread(hosts.ended, pid)
    assert not socket.exists()
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        assert await client.list_collections() == []
        assert hosts.pid(path) != pid


async def test_a_host_whose_thread_has_died_makes_room_for_another(dying_host, hosts, path):
    """It ends although clients are connected; what they ask next is answered by a new one."""
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        await client.create_collection("things", embedding_function=None)
        pid = hosts.pid(path)
        with pytest.raises(aiochroma.AiochromaError):
            await client.create_collection("poison of the thread", embedding_function=None)
        await asyncio.to_thread(hosts.ended, pid)
        assert "things" in [collection.name for collection in await client.list_collections()]
        assert hosts.pid(path) != pid


def test_a_host_ends_while_its_thread_is_still_alive(monkeypatch, dying_host, hosts, path):
    """The thread that closed the database says so before it ends: the host does not sleep until its limit then."""
    monkeypatch.setenv("DYING_HOST_ENDS_LATE", "1")
    with sync.PersistentClient(path, process="shared", host_idle=0):
        pid = hosts.pid(path)
    hosts.ended(pid)
    assert "host.killed" not in hosts.log(path)


async def test_clients_of_other_namespaces_share_the_host(hosts, path):
    """Mount, process and user namespaces of their own, as containers have them, with the folder of sockets in common."""
    prefix = ["unshare", "--user", "--map-current-user", "--mount", "--pid", "--fork"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user may not make namespaces here")
    async with aiochroma.AsyncPersistentClient(path, process="shared") as client:
        collection = await client.create_collection("things", embedding_function=None)
        pid = hosts.pid(path)
        command = [*prefix, sys.executable, str(PROGRAM), "write", str(path), "other", "5"]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        out, errors = await process.communicate()
        assert (process.returncode, out) == (0, b"done\n"), errors.decode()
        assert await collection.count() == 5
        assert hosts.pid(path) == pid


class Notebook:
    """An interactive interpreter that stays open between its cells, with `await` at the top level, as notebooks have it."""

    def __init__(self, log):
        self._log = Path(log)
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "asyncio"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
            )
        self._cells = 0

    def run(self, *lines):
        """Run a cell, and return what its last line has printed."""
        self._cells += 1
        mark = f"end of cell {self._cells}"
        for line in (*lines, f"print('end of', 'cell', {self._cells})"):
            self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        until(lambda: mark in self._log.read_text(), mark)
        output = self._log.read_text().split(mark)[self._cells - 1 if self._cells == 1 else -2]
        assert "Traceback" not in output, output
        return output

    def close(self):
        """Close it without having closed anything in it."""
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def test_a_notebook_that_is_open_twice(hosts, path, tmp_path):
    """Both kernels stay open, and each sees what the other has remembered."""
    opening = (
        "import aiochroma",
        "from aiochroma.embedding.words import HashedEmbedder",
        f"memory = aiochroma.Memory({str(path)!r}, process='shared', embedder=HashedEmbedder())",
        "_ = await memory.open()",
    )
    first, second = Notebook(tmp_path / "first"), Notebook(tmp_path / "second")
    first.run(*opening, "_ = await memory.remember('the first kernel was here')")
    second.run(*opening, "_ = await memory.remember('the second kernel was here')")
    for notebook in (first, second):
        assert "found 2 of 2" in notebook.run(
            "hits = await memory.recall('which kernel was here')",
            "print('found', len(hits), 'of', await memory.count())",
        )
    assert len(hosts.status(path)["clients"]) == 2
    first.run("await memory.aclose()")
    assert "left 2" in second.run("print('left', await memory.count())")
    second.run("await memory.aclose()")
    for notebook in (first, second):
        notebook.close()


def _cpu_seconds(pid):
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
async def test_a_host_without_descriptors_serves_those_who_are_connected(client, hosts, path):
    """Whoever connects waits until there is one; the host waits, too, and does not look again and again."""
    import resource

    pid = hosts.pid(path)
    opened = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened + 2, hard))
    connected = []
    try:
        connected += [connect_to(Path(read_owner(path).socket)) for _ in range(10)]
        await asyncio.to_thread(until, lambda: "host.cannot_accept" in hosts.log(path), "a note in the log")
        assert f"may have {opened + 2} files open" in hosts.log(path)
        before = _cpu_seconds(pid)
        for _ in range(20):
            await client.heartbeat()
            await asyncio.sleep(0.1)
        assert _cpu_seconds(pid) - before < 0.4
    finally:
        for one in connected:
            one.close()
    async with aiochroma.AsyncPersistentClient(path, process="shared") as another:
        assert await another.heartbeat()
