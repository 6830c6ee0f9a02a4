"""A restore that is interrupted at any moment loses nothing, and what killed processes leave behind is removed."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial as partial_
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import until

import aiochroma.sync
from aiochroma import _files, _partial
from aiochroma._partial import PARTIAL_MARKER, PartialDirectory, abandoned, remove_abandoned
from aiochroma._waiting import drive
from aiochroma.disk.child import copy
from aiochroma.disk.layout import MANIFEST, SQLITE_FILE

backups, maintenance = import_module("aiochroma.disk.backup"), import_module("aiochroma.client.maintenance")
restore = import_module("aiochroma.ops.restore")

_TRACED = {
    restore.__file__: 0,
    # What makes directories; a file that an interrupt leaves open is closed when it is collected.
    _partial.__file__: inspect.getsourcelines(PartialDirectory)[1],
    _files.__file__: inspect.getsourcelines(_files.locked)[1],
    backups.__file__: inspect.getsourcelines(backups.begin_backup)[1],
    maintenance.__file__: inspect.getsourcelines(maintenance.backup)[1],
}


@pytest.fixture
def without_children(monkeypatch):
    """Copy in this process, and take the copy for good: a restore of microseconds, which is repeated for each line of it."""
    for module in (restore, maintenance):
        monkeypatch.setattr(module, "copy_database", partial_(copy, patterns=[PARTIAL_MARKER]))
    for module in (restore, backups):
        monkeypatch.setattr(module, "verify_copy", lambda target, how: {})


def backup_and_database(folder):
    """Two directories with the files that a restore looks at."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in (("backup", "from the backup"), ("db", "precious")):
        (folder / name).mkdir(parents=True)
        (folder / name / SQLITE_FILE).write_text(text)
        (folder / name / "index").mkdir()
        (folder / name / "index" / "data").write_text(text)
    (folder / "backup" / MANIFEST).write_text(json.dumps({"source": "x", "created": "y"}))
    return folder / "backup", folder / "db"


def interrupted_at(line, work):
    """Run something and raise `KeyboardInterrupt` when so many lines of the traced modules have begun; returns whether it did."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_firstlineno < _TRACED.get(frame.f_code.co_filename, sys.maxsize):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def content(directory):
    """Return what a directory of ours holds, or None where it is not whole."""
    try:
        texts = {(directory / SQLITE_FILE).read_text(), (directory / "index" / "data").read_text()}
    except OSError:
        return None
    return texts.pop() if len(texts) == 1 else None


@pytest.mark.skipif(sys.platform == "win32", reason="a directory that is open cannot be renamed there")
@pytest.mark.parametrize("in_one_step", [True, False])
def test_an_interrupt_at_any_line_of_a_restore_loses_nothing(
    tmp_path, monkeypatch, without_children, in_one_step
):
    """The database is what it was or what the backup was, whole; what was there before exists; and the next restore works."""
    if not in_one_step:
        monkeypatch.setattr(restore.sys, "platform", "other", raising=True)
    line = 0
    while True:
        line += 1
        folder = tmp_path / "work"
        backup, database = backup_and_database(folder)
        if not interrupted_at(line, partial_(aiochroma.sync.restore, backup, database)):
            break
        now = content(database)
        assert now in {"precious", "from the backup"}, f"line {line}: {sorted(folder.iterdir())}"
        kept = [content(entry) for entry in folder.iterdir() if entry != backup]
        assert "precious" in kept, f"line {line}: {sorted(folder.iterdir())}"
        assert content(backup) == "from the backup"
        assert abandoned(folder) == [] or now == "precious"
        aiochroma.sync.restore(backup, database)
        assert content(database) == "from the backup"
        assert abandoned(folder) == []
        assert "precious" in [content(entry) for entry in folder.iterdir()]
    assert line > 40, "the restore was hardly traced"


class Copying:
    """Stands for an open database: what its thread does for a backup is to copy what was changed meanwhile."""

    def __init__(self, directory):
        self._directory = directory

    def describe(self):
        return SimpleNamespace(
            capabilities=SimpleNamespace(files=True), path=str(self._directory), name=str(self._directory)
        )

    async def submit(self, operation, *, target):
        assert operation == "copy_files"
        copy(self._directory, Path(target), [PARTIAL_MARKER])
        return 0.0


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Of coroutines that were about to be awaited.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="a directory that is open cannot be renamed there")
def test_an_interrupt_at_any_line_of_a_backup_leaves_a_whole_one(tmp_path, without_children):
    """With rotation: at every moment the folder has a whole backup, half ones never look whole, and the next one tidies up."""

    def back_up():
        session = Copying(database)
        return drive(maintenance.backup(session, folder, keep=1, verify="quick", progress=None))

    line = 0
    while True:
        line += 1
        _, database = backup_and_database(tmp_path / "work")
        folder = tmp_path / "work" / "backups"
        shutil.copytree(database, folder / "backup-1")
        manifest = {"source": str(database), "created": "y"}
        (folder / "backup-1" / MANIFEST).write_text(json.dumps(manifest))
        was_interrupted = interrupted_at(line, back_up)
        whole = [entry for entry in folder.iterdir() if ".partial-" not in entry.name]
        assert [content(entry) for entry in whole] in (["precious"], ["precious"] * 2), (
            f"line {line}: {whole}"
        )
        assert content(database) == "precious"
        back_up()
        left = [entry for entry in folder.iterdir() if content(entry) != "precious"]
        # Of a directory that was made in that very moment this process, had it ended, would have left no more than its mark.
        assert [file.name for entry in left for file in entry.iterdir()] in ([], [PARTIAL_MARKER]), (
            f"line {line}"
        )
        assert len(left) <= 1
        assert len(list(folder.iterdir())) - len(left) == 1
        if not was_interrupted:
            break
    assert line > 60, "the backup was hardly traced"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    """A directory in the making whose process is gone goes, one in which it had written nothing yet after a while; one that is
    being filled, one that is complete, and what is somebody else's, stay."""
    process = os.fork()
    if process == 0:
        try:
            PartialDirectory(tmp_path / "killed")
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    (tmp_path / "somebodys.partial-notes").mkdir()
    for name, age in (("early.partial-0a_bcdef", 3600), ("beginning.partial-0a_bcdef", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    full = tmp_path / "full.partial-0a_bcdef"
    full.mkdir()
    (full / "notes").touch()
    os.utime(full, (0, 0))
    filling, complete = PartialDirectory(tmp_path / "filling"), PartialDirectory(tmp_path / "complete")
    complete.finish()
    removed = remove_abandoned(tmp_path)
    assert [Path(name).name.split(".")[0] for name in removed] == ["early", "killed"]
    left = sorted(entry.name for entry in tmp_path.iterdir())
    others = ["beginning.partial-0a_bcdef", "complete", full.name, "somebodys.partial-notes"]
    assert left == sorted([*others, filling.path.name])
    filling.discard()
    assert not filling.path.exists()


_COPIES = """
import sys, types
from pathlib import Path
from aiochroma._partial import PartialDirectory
from aiochroma.disk import copying

folder = Path(sys.argv[1])
copying.child = types.SimpleNamespace(__file__=str(folder / "child.py"), __name__="child")
copying.copy_database(folder / "db", PartialDirectory(folder / "final").path)
"""
_CHILD = """
import pathlib, sys, time
folder, target = pathlib.Path(sys.argv[2]).parent, pathlib.Path(sys.argv[3])
(target / "begun").touch()
while not (folder / "go on").exists():
    time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_copy_is_not_removed_while_a_child_still_writes_it(tmp_path):
    """A child outlives a process that is killed, and would make files again in what is being removed."""
    (tmp_path / "db").mkdir()
    (tmp_path / "child.py").write_text(_CHILD)
    with subprocess.Popen([sys.executable, "-c", _COPIES, str(tmp_path)]) as process:
        until(lambda: list(tmp_path.glob("final.partial-*/begun")), "the child begins")
        process.kill()
    assert abandoned(tmp_path) == []
    (tmp_path / "go on").touch()
    (removed,) = until(lambda: remove_abandoned(tmp_path), "the child ends")
    assert not Path(removed).exists()


def test_a_directory_in_the_making_is_empty_or_has_its_mark(tmp_path):
    """At every moment, so that one whose process is killed is always known for what it is."""
    seen = []

    def note(frame, event, _):
        seen.extend(tuple(file.name for file in made.iterdir()) for made in tmp_path.iterdir())
        return note

    former = sys.gettrace()
    sys.settrace(note)
    try:
        made = PartialDirectory(tmp_path / "final")
    finally:
        sys.settrace(former)
    made.discard()
    assert set(seen) == {(), (PARTIAL_MARKER,)}


def test_a_directory_that_becomes_complete_is_nobodys_at_no_moment(tmp_path):
    """It has its mark or its final name: one that is left by a kill is found, or is what it was to be."""
    made, seen = PartialDirectory(tmp_path / "final"), set()
    (made.path / "data").write_text("whole")

    def note(frame, event, _):
        seen.update(
            (entry.name == "final", (entry / PARTIAL_MARKER).exists()) for entry in tmp_path.iterdir()
        )
        return note

    former = sys.gettrace()
    sys.settrace(note)
    try:
        made.finish()
    finally:
        sys.settrace(former)
    assert (False, False) not in seen
    assert [file.name for file in (tmp_path / "final").iterdir()] == ["data"]


def test_nothing_is_finished_over_something_else(tmp_path):
    """What came to be at the final place meanwhile stays."""
    begun = PartialDirectory(tmp_path / "final")
    (tmp_path / "final").mkdir()
    with pytest.raises(FileExistsError):
        begun.finish()
    begun.discard()
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]
