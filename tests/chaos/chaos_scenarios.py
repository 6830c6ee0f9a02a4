"""The faults, each injected so many times, and what became of the data; every function returns a row of the table."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos_nursery import Ledger, Nursery
from damage import INDEX_DAMAGES, SQLITE_DAMAGES, cut, flip
from programs import until

import aiochroma.sync
from aiochroma.disk.ownership import read_owner

_AT_ONCE_SECONDS = 10.0
"""What is refused at once is refused within this, however busy the machine: who waits for the owner waits 30 s."""

_WRITERS = 2
"""How many writers of records a client of an owner process has; two more write memories."""
_FRESH_AFTER = 25
"""A database is thrown away after so many kills, so that checking it does not take ever longer."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        fault: What was done.
        injected: How often.
        survived: How often the database opened again and everything was as it has to be.
        lost: Acknowledged records that were not there, or not with their own vector, plus records that were half there or
            that nobody wrote.
        notes: What else is worth knowing.
        failures: What went wrong.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    notes: str = ""
    failures: list[str] = field(default_factory=list)
    records: int = 0
    unreachable: int = 0

    def watch(self, child):
        """Note what ended a part of a child's load that no error of ours may end."""
        self.failures += [entry["error"] for entry in child.entries if entry["kind"] == "crashed"]

    def judge(self, found, *, context=""):
        """Count one injection by what a check found; None stands for a child that failed."""
        self.injected += 1
        if found is None:
            self.failures.append(context)
            return
        wrong = found["lost"] + found["half"] + found["ghosts"]
        self.lost += len(wrong)
        self.records += found["records"]
        self.unreachable += found["unreachable"]
        if wrong:
            self.failures.append(f"{context} {wrong[:5]}")
        else:
            self.survived += 1

    def require(self, condition, context):
        """Note a condition without which the row says nothing: the fault was there and was noticed."""
        if not condition:
            self.failures.append(context)

    def expect(self, condition, context):
        """Count one injection whose outcome is a matter of behaviour and not of data."""
        self.injected += 1
        if condition:
            self.survived += 1
        else:
            self.failures.append(context)

    @property
    def is_good(self):
        return self.injected > 0 and self.survived == self.injected and self.lost == 0 and not self.failures


class Stage:
    """Where the scenarios play: a folder, a nursery, and a source of chance."""

    def __init__(self, folder, seed):
        self.folder = Path(folder)
        self.nursery = Nursery(self.folder / "diaries")
        self.generator = random.Random(seed)
        self._number = 0

    def place(self):
        """Return the path of a database that does not exist yet, and its ledger."""
        self._number += 1
        return self.folder / f"db{self._number}", Ledger(self.folder / f"ledger{self._number}.json")

    def close(self):
        self.nursery.close()


def _read(row, ledger, child):
    """Take what a child has intended and what it was told into the ledger."""
    row.watch(child)
    ledger.read(child.entries)


def _checked(stage, row, directory, ledger, context, **arguments):
    """Let a child open a database and check it; returns the child's entry."""
    child = stage.nursery.start("check", directory=str(directory), state=str(ledger.file), **arguments)
    found = child.wait_for("checked")
    child.wait_patiently()
    row.judge(found, context=f"{context}: {child.what_went_wrong() if found is None else ''}")
    return found


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def kills(stage, count, *, aim, durable=True):
    """Kill a child in the middle of a mixed load; the next one checks everything, and is killed in its turn."""
    what = "kill -9 at a random moment" if aim == "anywhere" else "kill -9 while an index is rewritten"
    row = Row(what if durable else f"{what}, log not kept")
    rebuilt = embedded = reported = number = 0
    child = None
    while number < count or (aim == "persist" and not rebuilt + embedded and number < 5 * count):
        number += 1
        if child is None:
            directory, ledger = stage.place()
            child, _ = _next_load(stage, number, directory, ledger, durable)
        _wait_for_moment(stage, directory, aim, number)
        child.kill()
        _read(row, ledger, child)
        # The next child checks what this one left. It is a load itself, unless it is the last of its database.
        last = number >= count or number % _FRESH_AFTER == 0
        work = "check" if last else "load"
        child, found = _next_load(stage, number, directory, ledger, durable, work)
        row.judge(
            found, context=f"kill {number} in {directory}: {child.what_went_wrong() if found is None else ''}"
        )
        reported += child.find("reported") is not None
        if found is not None:
            rebuilt += found["rebuilt"]
            embedded += found["embedded"]
            ledger.settle(found)
        if last or found is None:
            child.wait_patiently()
            child = None
        if last and found is not None:
            shutil.rmtree(directory)
    row.notes = f"{rebuilt} broken indexes rebuilt"
    if aim == "persist":
        # Where the log is not kept, the doctor rebuilds it and embeds again, before the load opens it.
        row.require(rebuilt + embedded > 0, "no kill has hit the rewriting of an index")
    if not durable:
        row.notes += f"; {reported} times lost vectors were named, and {embedded} documents embedded again"
    return row


def _next_load(stage, number, directory, ledger, durable, work="load"):
    ledger.save()
    child = stage.nursery.start(
        work, directory=str(directory), state=str(ledger.file), seed=number, durable=durable
    )
    return child, child.wait_for("checked")


def _wait_for_moment(stage, directory, aim, number):
    if aim == "anywhere":
        time.sleep(stage.generator.uniform(0.0, 0.25))
        return
    # Let there be an index first; then watch its files, the only way to hit the few milliseconds of a rewrite.
    end = time.monotonic() + 20
    while not (headers := list(directory.glob("*-*-*-*-*/header.bin"))) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(stage.generator.uniform(0.0, 0.1))
    if number % 2 == 0:
        before = _newest(headers)
        while _newest(headers) == before and time.monotonic() < end:
            pass
        end = time.perf_counter() + stage.generator.uniform(0, 0.0015)
        while time.perf_counter() < end:
            pass
        return
    maps = [header.with_name("index_metadata.pickle") for header in headers]
    sizes = dict.fromkeys(maps, 0)
    while time.monotonic() < end:
        for file in maps:
            size = _size(file)
            if size < sizes[file]:
                return
            sizes[file] = size


def _newest(files):
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


def _size(file):
    try:
        return file.stat().st_size
    except OSError:
        return 0


# -- other processes ---------------------------------------------------------------------------------------------------


def second_writers(stage, count):
    """Open a database again and again that another process is writing to."""
    row = Row("second process opens the same directory")
    directory, ledger = stage.place()
    owner = stage.nursery.start("load", directory=str(directory), state=str(ledger.file), seed=1)
    owner.wait_for("checked")
    slowest = 0.0
    link = stage.folder / "another-name"
    link.symlink_to(directory)
    for number in range(count):
        path = link if number % 2 else directory
        other = stage.nursery.start("attempt", directory=str(path))
        refused = other.wait_for("refused")
        other.wait_patiently()
        row.expect(
            refused is not None
            and refused["pid"] == owner.pid
            and refused["seconds"] < _AT_ONCE_SECONDS
            and owner.find("closed") is None,
            f"attempt {number}: {other.entries}",
        )
        slowest = max(slowest, refused["seconds"] if refused else 0.0)
    owner.kill()
    _read(row, ledger, owner)
    _checked(stage, row, directory, ledger, "the owner's records")
    link.unlink()
    row.notes = f"refused with the owner's pid, at most {slowest * 1000:.0f} ms"
    return row


def restarts(stage, count):
    """Start, write, end and start again without a pause: closed, not closed, or killed."""
    row = Row("rapid restart")
    directory, ledger = stage.place()
    begun = time.monotonic()
    for number in range(count):
        ending = ("close", "exit", "kill")[number % 3]
        child = stage.nursery.start(
            "restart", directory=str(directory), state=str(ledger.file), number=number, ending=ending
        )
        code = child.wait_patiently()
        _read(row, ledger, child)
        ended = code == (-signal.SIGKILL if ending == "kill" else 0)
        row.expect(
            ended and child.find("done") is not None,
            f"restart {number} ({ending}) ended with {code}: {child.what_went_wrong()}",
        )
    seconds = time.monotonic() - begun
    _checked(stage, row, directory, ledger, "all records")
    row.notes = f"{seconds / count * 1000:.0f} ms each; closed, left open, killed in turn"
    return row


def foreign_locks(stage, count, *, seconds):
    """Hold SQLite's lock in another process while a child writes; the child measures its event loop."""
    row = Row(f"SQLite locked by another process for {seconds:g} s")
    stalls = {True: [], False: []}
    ordinary = []
    for number in range(count):
        directory, ledger = stage.place()
        patient = number % 2 == 0
        deadline = seconds + 20 if patient else seconds / 4
        writer = stage.nursery.start("locked", directory=str(directory), deadline=deadline)
        writer.wait_for("ready")
        statement = ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")[number // 2 % 2]
        holder = stage.nursery.start("hold", directory=str(directory), seconds=seconds, statement=statement)
        holder.wait_for("holding")
        Path(f"{directory}.held").touch()
        measured = writer.wait_for("measured")
        writer.wait_patiently()
        holder.wait_patiently()
        _read(row, ledger, writer)
        refused = writer.find("refused")
        if measured is None:
            row.judge(None, context=writer.what_went_wrong())
            continue
        stalls[patient].append(measured["stall_ms"])
        ordinary.append(measured["ordinary_ms"])
        behaved = (
            (refused is None)
            if patient
            else (refused is not None and "DatabaseLockedError" in refused["error"])
        )
        if not behaved:
            row.failures.append(f"{number}: {writer.entries}")
        # Had the loop waited for the lock it would have stood still for nearly all of the time.
        row.require(
            measured["stall_ms"] < seconds * 700,
            f"{number}: the loop stood still for {measured['stall_ms']:.0f} ms",
        )
        row.require(
            measured["first"] > deadline * 0.8 if not patient else measured["first"] > seconds * 0.5,
            f"{number}: nothing waited for the lock, the write took {measured['first']:.2f} s",
        )
        # A write that was refused must not turn up later; all others must be there.
        _checked(stage, row, directory, ledger, f"lock {number}")
    row.notes = (
        f"waited, or DatabaseLockedError at the deadline; longest loop stall {max(stalls[False], default=0):.0f} ms while "
        f"waiting, {max(stalls[True], default=0):.0f} ms with the write after (other writes: {max(ordinary, default=0):.0f} ms)"
    )
    return row


# -- the owner process -------------------------------------------------------------------------------------------------


def deaths_around_a_host(stage, count):
    """Two clients work through an owner process; it, or one of them, is killed or stopped. The others go on."""
    row = Row("through the owner process: it or a client killed, a client stopped")
    faults = ("host killed", "client killed", "client stopped")
    for number in range(count):
        directory, ledger = stage.place()
        fault = faults[number % len(faults)]
        clients = []
        for names in ("wt", "xu"):
            client = stage.nursery.start(
                "load",
                directory=str(directory),
                state=str(ledger.file),
                seed=number,
                names=names,
                process="shared",
                writers=_WRITERS,
            )
            if client.wait_for("checked") is None:
                row.failures.append(f"{number}: {client.what_went_wrong()}")
            clients.append(client)
        victim, other = clients
        _go_on(victim, other)
        host = _host_of(directory)
        if fault == "host killed":
            os.kill(host, signal.SIGKILL)
            _go_on(victim, other)
            row.require(_host_of(directory) not in {None, host}, f"{number}: there is no other host")
        elif fault == "client killed":
            victim.kill()
            _go_on(other)
        else:
            victim.send(signal.SIGSTOP)
            _go_on(other)
            victim.send(signal.SIGCONT)
            _go_on(victim)
        for client in clients:
            client.kill()
        # The two know nothing of each other's records: their names tell them apart.
        for client in clients:
            _read(row, ledger, client)
        host = _host_of(directory)
        if host is not None:
            os.kill(host, signal.SIGKILL)
        _checked(stage, row, directory, ledger, f"{number}, {fault}")
        shutil.rmtree(directory)
    row.notes = "the others went on; what may not run twice did not"
    return row


def _go_on(*clients):
    """Wait until every writer of each client was told of five more writes, also one that waits without a deadline."""
    before = [(client, _done_by_writer(client)) for client in clients]

    def went_on(client, former):
        now = _done_by_writer(client)
        return len(now) >= 2 * _WRITERS and all(count >= former[writer] + 5 for writer, count in now.items())

    until(
        lambda: all(went_on(client, former) for client, former in before),
        f"they do not go on: {[client.what_went_wrong() for client in clients]}",
    )


def _done_by_writer(client):
    return Counter(entry["writer"] for entry in client.entries if entry["kind"] == "done")


def _host_of(directory):
    """Return the process that serves a directory, or None."""
    owner = read_owner(directory)
    return None if owner is None or owner.role != "host" else owner.pid


# -- the disk ----------------------------------------------------------------------------------------------------------


def can_mount():
    """Whether this user may mount file systems."""
    return sys.platform.startswith("linux") and os.geteuid() == 0


@contextlib.contextmanager
def _small_disk(stage, megabytes):
    point = stage.folder / "disk"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def full_disks(stage, count):
    """Fill the disk in the middle of a load, to the last byte, and free it again; the program goes on."""
    row = Row("disk full in the middle of writing")
    refused = 0
    with _small_disk(stage, 96) as disk:
        for number in range(count):
            directory = disk / f"db{number}"
            ledger = stage.place()[1]
            child = stage.nursery.start("load", directory=str(directory), state=str(ledger.file), seed=number)
            found = child.wait_for("checked")
            if found is None:
                row.judge(None, context=child.what_went_wrong())
                continue
            time.sleep(stage.generator.uniform(0.1, 0.4))
            _fill(disk / "ballast")
            _wait_for_errors(child, 3)
            (disk / "ballast").unlink()
            before = _answers(child, "done")
            end = time.monotonic() + 60
            while _answers(child, "done") < before + 5 and time.monotonic() < end:
                time.sleep(0.01)
            if _answers(child, "done") < before + 5:
                row.failures.append(
                    f"disk {number}: writing did not go on: {child.entries[-3:]} {child.what_went_wrong()}"
                )
            row.require(
                any(_answers(child, kind) for kind in ("refused", "unknown")),
                f"disk {number}: no write failed, was the disk full?",
            )
            refused += _answers(child, "refused") + _answers(child, "unknown")
            child.kill()
            _read(row, ledger, child)
            _checked(stage, row, directory, ledger, f"disk {number}")
            shutil.rmtree(directory)
    row.notes = f"{refused} writes got a clear error; writing went on when there was room, without a restart"
    return row


def _fill(file):
    """Take all that is free."""
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 16))
    with file.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(512))


def _answers(child, kind):
    return sum(entry["kind"] == kind for entry in child.entries)


def _wait_for_errors(child, count, kinds=("refused", "unknown")):
    end = time.monotonic() + 60
    while sum(_answers(child, kind) for kind in kinds) < count and time.monotonic() < end:
        time.sleep(0.01)


@contextlib.contextmanager
def _journalled_disk(stage):
    """An ext4 file system in a file: it can become read-only while files on it are open, as a failing disk does."""
    image, point = stage.folder / "disk.img", stage.folder / "journalled"
    point.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)
        image.unlink()


def read_only_disks(stage, count):
    """Let the file system become read-only in the middle of a load, then repair and mount it again."""
    row = Row("disk read-only in the middle of writing")
    refused = 0
    for number in range(count):
        ledger = stage.place()[1]
        image = stage.folder / "disk.img"
        with _journalled_disk(stage) as disk:
            directory = disk / "db"
            child = stage.nursery.start("load", directory=str(directory), state=str(ledger.file), seed=number)
            if child.wait_for("checked") is None:
                row.judge(None, context=child.what_went_wrong())
                continue
            time.sleep(stage.generator.uniform(0.1, 0.4))
            subprocess.run(["mount", "-o", "remount,abort", disk], check=False, capture_output=True)
            _wait_for_errors(child, 3)
            # Of those under way nobody may know what became of them; what comes after is refused.
            _wait_for_errors(child, 1, kinds=("refused",))
            refused += _answers(child, "refused") + _answers(child, "unknown")
            if not _answers(child, "refused"):
                row.failures.append(f"disk {number}: {child.entries[-3:]}")
            child.kill()
            _read(row, ledger, child)
            subprocess.run(["umount", disk], check=True)
            subprocess.run(["e2fsck", "-p", "-f", image], check=False, capture_output=True)
            subprocess.run(["mount", "-o", "loop", image, disk], check=True)
            _checked(stage, row, directory, ledger, f"disk {number}")
    row.notes = f"{refused} writes got a clear error; complete when it could be written again"
    return row


# -- damage ------------------------------------------------------------------------------------------------------------


def _seed(stage, durable):
    """Make a database with an index on disk, closed, and a backup of it."""
    directory, ledger = stage.place()
    backups = stage.folder / f"backups-{directory.name}"
    child = stage.nursery.start(
        "load",
        directory=str(directory),
        state=str(ledger.file),
        seed=7,
        seconds=0.4,
        least=25,
        durable=durable,
    )
    if child.wait_for("closed") is None or child.find("crashed"):
        raise RuntimeError(f"{child.what_went_wrong()} {child.find('crashed')}")
    ledger.read(child.entries)
    saver = stage.nursery.start("save", directory=str(directory), target=str(backups / "0"))
    if saver.wait_patiently() != 0:
        raise RuntimeError(saver.what_went_wrong())
    return directory, ledger, backups / "0"


def _damage(row, name, index):
    """Damage an index, and see that it is another one than before."""
    before = (
        {file.name: file.read_bytes() for file in index.iterdir() if file.is_file()}
        if index.is_dir()
        else None
    )
    INDEX_DAMAGES[name](index)
    after = (
        {file.name: file.read_bytes() for file in index.iterdir() if file.is_file()}
        if index.is_dir()
        else None
    )
    row.require(before != after, f"{name}: nothing was damaged")


def _copied(directory):
    """Copy a database that nobody has open any more; returns where the copy is.

    A child of a killed process may look at the SQLite file a moment longer, and its journal goes when the last one closes it.
    """
    until(lambda: not _is_open(directory), "that every process has closed the database")
    return shutil.copytree(directory, directory.with_name(f"{directory.name}-copy"))


def _is_open(directory):
    """Whether a process has a file of a directory open."""
    return any(Path(file).is_relative_to(directory) for file in _open_files())


def _open_files():
    """Yield what the processes of this user have open; what ends or is closed meanwhile is left out."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(descriptor.readlink())


def damaged_indexes(stage, names, *, durable):
    """Damage the files of an index that nobody has open, and open it as any program would."""
    row = Row(f"index files damaged, log {'kept' if durable else 'not kept'}")
    directory, ledger, _ = _seed(stage, durable)
    # The log of the pattern is whole: the backup, of which it could be shortened, is not known to the copies.
    (directory / ".aiochroma.backup.json").unlink()
    rebuilt = embedded = 0
    for name in names:
        copy = _copied(directory)
        index = max(copy.glob("*-*-*-*-*"), key=lambda entry: (entry / "data_level0.bin").stat().st_size)
        _damage(row, name, index)
        found = _checked(stage, row, copy, ledger, name, durable=durable)
        if found is not None:
            row.require(found["rebuilt"] + found["embedded"] > 0, f"{name}: the damage was not noticed")
            rebuilt += found["rebuilt"]
            embedded += found["embedded"]
        shutil.rmtree(copy)
    row.notes = f"{rebuilt} rebuilt at open"
    if not durable:
        row.notes += f"; {embedded} vectors were named as lost and their documents embedded again"
        row.require(embedded > 0, "no damage has cost a vector, so that none was named")
    return row


def damaged_indexes_after_a_backup(stage, names):
    """The same after a backup, for which the log was cut: what it lacks comes from the backup."""
    row = Row("index files damaged, log cut after a backup")
    directory, ledger, _ = _seed(stage, True)
    # The next opening cuts the log.
    child = stage.nursery.start("check", directory=str(directory), state=str(ledger.file))
    child.wait_patiently()
    for name in names:
        copy = _copied(directory)
        index = max(copy.glob("*-*-*-*-*"), key=lambda entry: (entry / "data_level0.bin").stat().st_size)
        _damage(row, name, index)
        found = _checked(stage, row, copy, ledger, name)
        if found is not None:
            row.require(found["rebuilt"] > 0, f"{name}: the damage was not noticed")
        shutil.rmtree(copy)
    row.notes = "rebuilt at open from the log, the broken files and the backup"
    return row


def _cut_journal(file):
    """Cut the journal of a file that a process had open when it was killed."""
    journal = file.with_name(f"{file.name}-wal")
    cut(journal, 0.5)


def _replaced(file, make):
    file.unlink()
    make(file)


def _flip_pages(file):
    """Flip a piece of every fourth page, the first left out."""
    for page in range(4, file.stat().st_size // 4096, 4):
        flip(file, page * 4096 + 1024, 512)


OWN_INDEX = "aiochroma-text.sqlite3"
OWN_INDEX_DAMAGES = {
    "cut": lambda file: cut(file, 0.5),
    "empty": lambda file: cut(file, 0),
    "header flipped": lambda file: flip(file, 0),
    "schema flipped": lambda file: flip(file, 100, 400),
    "pages flipped": _flip_pages,
    "something else": lambda file: file.write_bytes(b"This is no database. " * 1000),
    "deleted": lambda file: file.unlink(),
    "journal cut": _cut_journal,
    "journal flipped": lambda file: flip(file.with_name(f"{file.name}-wal"), 40, 4096),
}
IN_PLACE_OF_THE_INDEX = {
    "a pipe": lambda file: _replaced(file, os.mkfifo),
    "a directory": lambda file: _replaced(file, lambda path: path.mkdir()),
    "a link to nowhere": lambda file: _replaced(file, lambda path: path.symlink_to("nowhere/at-all")),
}
"""What cannot be written: words are not found then, which every answer says; what is near in meaning is."""


def damaged_own_indexes(stage, names, unusable):
    """Damage the file that is kept beside Chroma's, after a process was killed that had it open."""
    row = Row("our index file damaged")
    directory, ledger = stage.place()
    child = stage.nursery.start("load", directory=str(directory), state=str(ledger.file), seed=11)
    child.wait_for("checked")
    until(lambda: _answers(child, "done") > 80, f"a load {child.what_went_wrong()}")
    child.kill()
    _read(row, ledger, child)
    row.require(ledger.acknowledged.get("notes"), "nothing was remembered")
    for name in [*names, *unusable]:
        copy = _copied(directory)
        file = copy / OWN_INDEX
        {**OWN_INDEX_DAMAGES, **IN_PLACE_OF_THE_INDEX}[name](file)
        found = _checked(stage, row, copy, ledger, name)
        if found is not None:
            row.require(
                (found["explained"] > 0) == (name in unusable),
                f"{name}: {found['explained']} answers said that the index cannot be used",
            )
        if name not in unusable:
            # It is whole again.
            found = _checked(stage, row, copy, ledger, f"{name}, opened again")
            row.require(file.read_bytes()[:15] == b"SQLite format 3", f"{name}: no index again")
        shutil.rmtree(copy)
    row.notes = f"made again from Chroma; {', '.join(unusable)} in its place: said with every answer, found by meaning"
    return row


def kills_between_the_writes(stage, count):
    """Kill a child when Chroma has written and our index has not; then each side, or both, are lost as well."""
    row = Row("kill -9 between Chroma's write and ours")
    rebuilt = embedded = 0
    losses = {
        "Chroma's indexes deleted": _delete_indexes,
        "both deleted": lambda directory: (_delete_own_index(directory), _delete_indexes(directory)),
        "our index deleted": _delete_own_index,
        "nothing else": lambda directory: None,
    }
    for number in range(count):
        directory, ledger = stage.place()
        child = stage.nursery.start(
            "load",
            directory=str(directory),
            state=str(ledger.file),
            seed=number,
            dies_after=stage.generator.randint(20, 120),
        )
        code = child.wait_patiently()
        row.require(
            code == -signal.SIGKILL and child.find("dying") is not None,
            f"{number}: {child.what_went_wrong()}",
        )
        _read(row, ledger, child)
        name = list(losses)[number % len(losses)]
        losses[name](directory)
        found = _checked(stage, row, directory, ledger, f"{number}, {name}")
        if found is not None:
            rebuilt += found["rebuilt"]
            embedded += found["embedded"]
        shutil.rmtree(directory)
    row.require(rebuilt > 0, "no index was rebuilt")
    row.notes = (
        f"{rebuilt} indexes rebuilt; {embedded} vectors were named as lost and their texts embedded again"
    )
    return row


def _delete_own_index(directory):
    for file in directory.glob(f"{OWN_INDEX}*"):
        file.unlink()


def _delete_indexes(directory):
    for index in directory.glob("*-*-*-*-*"):
        shutil.rmtree(index)


def damaged_sqlite(stage, names):
    """Damage the SQLite file: nothing can be repaired, so it is refused and left alone, and the backup is restored."""
    row = Row("SQLite file damaged")
    directory, ledger, backup = _seed(stage, True)
    for name in names:
        copy = _copied(directory)
        file = copy / "chroma.sqlite3"
        SQLITE_DAMAGES[name](file)
        before = file.read_bytes() if file.exists() else None
        child = stage.nursery.start("check", directory=str(copy), state=str(ledger.file))
        child.wait_patiently()
        failed = child.find("failed")
        refused = failed is not None and failed["error"].startswith("DatabaseCorruptError")
        untouched = (file.read_bytes() if file.exists() else None) == before
        if not refused or not untouched:
            row.failures.append(f"{name}: refused {refused}, untouched {untouched}: {child.entries[-1:]}")
        # A directory without its SQLite file is no database any more, so it is not moved aside without being asked.
        if before is None:
            shutil.rmtree(copy)
        aiochroma.sync.restore(backup, copy)
        _checked(stage, row, copy, ledger, name)
        shutil.rmtree(copy)
        for kept in directory.parent.glob(f"{copy.name}.before-restore-*"):
            shutil.rmtree(kept)
    row.notes = (
        "cannot be survived in place: DatabaseCorruptError, file untouched; the restored backup is complete"
    )
    return row


# -- backups -----------------------------------------------------------------------------------------------------------


def backups(stage, count):
    """Back up in the middle of a load, restore each, and check it for all that was acknowledged before it began."""
    row = Row("backup under load, restored")
    directory, ledger = stage.place()
    folder = stage.folder / f"backups-{directory.name}"
    child = stage.nursery.start(
        "load",
        directory=str(directory),
        state=str(ledger.file),
        seed=3,
        backups={"folder": str(folder), "count": count},
    )
    child.wait_for("closed")
    child.wait_patiently()
    entries = child.entries
    pauses = [entry["paused"] for entry in entries if entry["kind"] == "backed up"]
    for number in range(count):
        begin, end = (_position(entries, kind, number) for kind in ("backing up", "backed up"))
        if end is None:
            row.judge(None, context=f"backup {number}: {child.what_went_wrong()}")
            continue
        # What was answered before the backup began has to be in it; what came until its end may be.
        then = Ledger(stage.folder / f"ledger-backup-{number}.json")
        then.read(entries[:begin])
        for entry in entries[:end]:
            if entry["kind"] == "intended":
                for record, version in entry["versions"].items():
                    then.allowed.setdefault(entry["collection"], {}).setdefault(record, []).append(version)
        _only_later(then, entries[:begin], entries[begin:end])
        then.save()
        target = stage.folder / "restored"
        aiochroma.sync.restore(entries[end]["path"], target)
        _checked(stage, row, target, then, f"backup {number}")
        shutil.rmtree(target)
    ledger.read(entries)
    _checked(stage, row, directory, ledger, "the database itself")
    row.require(max(pauses, default=0) < 20_000, f"writing stood still for {max(pauses, default=0):.0f} ms")
    row.notes = f"requests waited {_median(pauses):.0f} ms (median), {max(pauses, default=0):.0f} ms at most"
    return row


def _only_later(ledger, before, during):
    """Allow only versions that were under way when the backup began, or came after."""
    answered = {entry["number"] for entry in before if entry["kind"] in {"done", "refused"}}
    open_then = [entry for entry in before if entry["kind"] == "intended" and entry["number"] not in answered]
    ledger.allowed = {}
    for entry in [*open_then, *(entry for entry in during if entry["kind"] == "intended")]:
        for record, version in entry["versions"].items():
            ledger.allowed.setdefault(entry["collection"], {}).setdefault(record, []).append(version)


def _position(entries, kind, number):
    return next(
        (
            place
            for place, entry in enumerate(entries)
            if entry["kind"] == kind and entry.get("number") == number
        ),
        None,
    )


def _median(values):
    return sorted(values)[len(values) // 2] if values else 0.0


# -- ending ------------------------------------------------------------------------------------------------------------


def terminations(stage, count):
    """Send SIGTERM in the middle of a load: with a handler that cancels the tasks, and with none."""
    row = Row("SIGTERM in the middle of writing")
    directory, ledger = stage.place()
    slowest = 0.0
    for number in range(count):
        handled = number % 2 == 0
        ledger.save()
        child = stage.nursery.start(
            "load",
            directory=str(directory),
            state=str(ledger.file),
            seed=number,
            sigterm=True if handled else None,
        )
        found = child.wait_for("checked")
        if found is None:
            row.judge(None, context=child.what_went_wrong())
            continue
        ledger.settle(found)
        time.sleep(stage.generator.uniform(0.05, 0.3))
        begun = time.monotonic()
        child.send(signal.SIGTERM)
        code = child.wait_patiently()
        slowest = max(slowest, time.monotonic() - begun)
        if code != (0 if handled else -signal.SIGTERM) or (handled and child.find("closed") is None):
            row.failures.append(f"{number}: ended with {code}: {child.what_went_wrong()}")
        _read(row, ledger, child)
        _checked(stage, row, directory, ledger, f"SIGTERM {number}")
    row.require(slowest < 30, f"it took {slowest:.0f} s to end")
    row.notes = f"ended after {slowest * 1000:.0f} ms at most"
    return row
