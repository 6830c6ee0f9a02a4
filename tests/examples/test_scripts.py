"""The examples that are one file each: the pipelines, the bot, the store manager."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial

import pytest
from programs import PATIENCE, Program, until

import aiochroma


@pytest.fixture
def talk(run):
    """Have the bot answer what is typed. However slow the machine is, an answer has what the memory knows."""
    return partial(run, "four_namespace_bot.py", "--timeout", PATIENCE)


def test_pipelines_with_a_monitor_and_rapid_restarts(run, tmp_path):
    """Supervisor and monitor share one store through 30 restarts, twice over; every run is noted, and none twice."""
    for _ in range(2):
        shown = run("pipelines.py", "--path", tmp_path / "store", "--rounds", 30)
        assert "30 restarts, 120 runs noted, 120 notes" in shown
        assert "growing: True" in shown
        assert "monitor:" not in shown
        assert shown.count("- Run ") == 8


def test_the_bot_remembers_and_answers(talk, tmp_path):
    """What was remembered is in the prompt of a later question, also after a restart; nonsense gets an answer, too."""
    typed = (
        "!remember personal My cat is called Kestrel.\n"
        "!remember style Answer in one sentence.\n"
        "!remember nowhere Nothing.\n"
        "!remember personal    \n"
        "what is my cat called?\n"
    )
    shown = talk("--path", tmp_path / "store", typed=typed)
    assert shown.count("Remembered in") == 2
    assert "I know the namespaces personal, academic, projects, style." in shown
    assert "I did not understand that" in shown
    again = talk("--path", tmp_path / "store", typed="what is my cat called?\n")
    for answer in (shown, again):
        assert "personal:\n- My cat is called Kestrel." in answer
        assert "could not be searched" not in answer


def test_the_bot_keeps_people_apart(talk, tmp_path):
    """Two people who say the same have a note each, and neither is shown the other's notes or messages."""
    typed = (
        "ada> !remember personal My cat is called Kestrel.\n"
        "ben> !remember personal My cat is called Kestrel.\n"
        "ben> !remember personal My parrot is called Ada.\n"
        "ada> what is my cat called?\n"
        "ben> !forget\n"
        "ada> and my parrot?\n"
    )
    shown = talk("--path", tmp_path, typed=typed)
    assert "Forgot 2 memories of ben." in shown
    assert shown.count("personal:\n- My cat is called Kestrel.") == 2
    assert "My parrot" not in shown
    again = talk("--path", tmp_path, typed="ada> what did I ask?\nben> and I?\n")
    assert "ada: what is my cat called?\nada: and my parrot?\nada: what did I ask?" in again
    assert "notes.\n\n\n\nben: and I?" in again


def test_the_bot_answers_although_a_namespace_fails(talk, tmp_path):
    """A namespace that another embedder has written cannot be searched; the answer has what the others hold, and says so."""
    talk("--path", tmp_path, typed="!remember personal My cat is called Kestrel.\n")
    shown = talk("--path", tmp_path, "--broken", typed="what is my cat called?\n" * 5)
    assert shown.count("- My cat is called Kestrel.") == 5
    assert shown.count("(academic could not be searched: The namespace 'academic' holds vectors of") == 5


async def test_the_bot_answers_although_the_store_is_unavailable(talk, tmp_path):
    """While another process owns the store every message still gets its answer."""
    async with aiochroma.Memory(tmp_path):
        shown = talk(
            "--path",
            tmp_path,
            typed="!remember personal x\nwhat is my cat called?\n",
        )
    assert "I could not remember that" in shown
    assert "(everything could not be searched" in shown


def test_the_story_of_a_store(run, tmp_path):
    """A store is backed up, reset, damaged, rebuilt from its log and from its own records, and restored, and loses nothing."""
    shown = run("store_manager.py", "story", "--path", tmp_path / "store")
    assert "backup of 1500 records" in shown
    assert "after a reset: 1500" in shown
    assert "recovered 'default': 1500 vectors, 0 missing" in shown
    assert "holds box 1234." in shown
    assert "0 are nowhere" in shown
    assert "holds box 77." in shown
    assert "refused: DatabaseCorruptError" in shown
    assert "the former database is kept: True" in shown
    assert "memories: 1500" in shown
    assert "forgotten, after a backup: 1500" in shown


def test_the_manager_is_alone_and_ends_cleanly(examples, tmp_path):
    """A manager that serves keeps a second one out, with the owner's process id, and closes when it is asked to end."""
    command = [sys.executable, "-u", examples / "store_manager.py", "serve", "--path", tmp_path / "store"]
    with Program(command, tmp_path / "log") as manager:
        until(lambda: "healthy: 0 memories" in manager.output(), "a healthy store")
        begun = time.monotonic()
        with Program(command, tmp_path / "other") as other:
            assert other.process.wait(60) == 1
            assert f"process {manager.process.pid}" in other.output().splitlines()[-1]
            assert "Not started" in other.output()
        assert time.monotonic() - begun < 60
        assert manager.stop(signal.SIGTERM) == 0
        assert manager.output().endswith("closed\n")
