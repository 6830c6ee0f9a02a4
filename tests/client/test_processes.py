"""Processes: how they end, and what a fork does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiochroma import sync

PROGRAM = Path(__file__).with_name("program.py")


def ended_well(done, code=0):
    assert (done.returncode, done.stderr) == (code, "")
    assert "acknowledged" in done.stdout


def acknowledged_records(path):
    with sync.PersistentClient(path) as client:
        return client.get_collection("things", embedding_function=None).count()


def test_exit_without_close(program, tmp_path):
    """A client that nobody closed neither hangs nor crashes the interpreter, and loses nothing."""
    ended_well(program("exit_without_close", tmp_path / "store"))
    assert acknowledged_records(tmp_path / "store") == 1


@pytest.mark.parametrize("attempt", range(5))
def test_exit_during_calls(program, tmp_path, attempt):
    """The interpreter may end while the thread is inside Chroma."""
    ended_well(program("exit_during_calls", tmp_path / "store"))


def test_exit_during_a_long_write(program, tmp_path):
    """A write of many pieces does not hold up the end of the process; it stops between two pieces."""
    done = program("exit_during_long_write", tmp_path / "store")
    assert done.returncode == 0
    assert acknowledged_records(tmp_path / "store") >= 1


@pytest.mark.parametrize("attempt", range(3))
def test_exit_during_open(program, tmp_path, attempt):
    """The interpreter may end while the database is still being opened; an opening that fails of that says so."""
    done = program("exit_during_open", tmp_path / "store")
    assert (done.returncode, done.stdout) == (0, "acknowledged\n")
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr
    assert all("cannot be used" in line for line in done.stderr.splitlines())


def test_exit_after_exception(program, tmp_path):
    """A program that ends with an error ends with its own exit code."""
    ended_well(program("exit_after_exception", tmp_path / "store"), code=7)


def test_use_after_fork_raises(program, tmp_path):
    """In a forked child everything is refused at once, old and fresh, the child ends, and the parent goes on."""
    done = program("use_after_fork", tmp_path / "store")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "count refused",
        "write refused",
        "embed refused",
        "catalog refused",
        "fresh refused",
        "other refused",
        "ephemeral refused",
        "child done",
        "child 0",
        "parent fine",
    ]
    assert done.returncode == 0


def test_fork_before_open(program, tmp_path):
    """A process that was forked before anything was opened works."""
    done = program("fork_before_open", tmp_path / "store")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1", "")


def test_sigterm(tmp_path):
    """The default action of SIGTERM ends the process, and what was acknowledged is there."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "wait_for_signal", str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().strip() == "ready"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()
    assert acknowledged_records(tmp_path / "store") >= 6


def test_sigint(tmp_path):
    """Ctrl-C ends the program with KeyboardInterrupt, without a hang or a crash."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "wait_for_signal", str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().strip() == "ready"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT
    assert acknowledged_records(tmp_path / "store") >= 6
