"""The command line: what it prints, where, and the exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from programs import PATIENCE, command, printed_by, python, until

from aiochroma.sync import Memory

pytest.importorskip("typer")
pytest.importorskip("rich")


def printed_json(*arguments):
    """Return the JSON that a command printed."""
    return json.loads("\n".join(output(command(*arguments, "--json"))))


def output(finished):
    """Return the lines on standard output of a command that must have succeeded."""
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def complaint(finished):
    """Return the one line on standard error."""
    lines = finished.stderr.splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("aiochroma: ")
    return lines[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A memory with two namespaces, written by the command line; not to be changed."""
    path = tmp_path_factory.mktemp("cli") / "memory"
    lines = b"The spare key is with the neighbour.\n\n  \nMy locker is number 62.\r\n"
    output(command("remember", "--path", path, "-n", "personal", "-", typed=lines))
    output(
        command(
            "remember",
            "--path",
            path,
            "-n",
            "style",
            "--id",
            "short",
            "-m",
            "words=120",
            "-m",
            'for=["Ann", "Ben"]',
            "-m",
            "kind=rule",
            "Keep answers [short].",
        )
    )
    return path


def test_as_a_shell_starts_it(tmp_path):
    """In a process of its own it reads from a pipe, prints nothing that was not asked for, and leaves nothing open."""
    shell = ["-W", "error::ResourceWarning", "-m", "aiochroma"]
    written = python(*shell, "remember", "--path", tmp_path, typed="The garage code is 5113.\n")
    assert (written.returncode, written.stderr) == (0, "")
    found = python(*shell, "recall", "--path", tmp_path, "garage")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.endswith(f"default  The garage code is 5113.  {written.stdout}")
    missing = python(*shell, "get", "--path", tmp_path, "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "'nobody'" in complaint(missing)


def test_remember_reads_one_text_per_line_and_skips_blank_lines(store):
    """Standard input gives one memory per line that is not blank, without its line end."""
    found = printed_json("recall", "--path", store, "-n", "personal", "key")
    assert {hit["text"] for hit in found["hits"]} == {
        "The spare key is with the neighbour.",
        "My locker is number 62.",
    }


def test_remember_prints_ids_that_follow_from_the_texts(tmp_path):
    """Remembering the same text again prints the same id and keeps one memory."""
    first = output(command("remember", "--path", tmp_path, "one text", "another text"))
    second = output(command("remember", "--path", tmp_path, typed=b"one text\n"))
    assert len(first) == 2
    assert second == first[:1]
    assert printed_json("stats", "--path", tmp_path)["namespaces"] == {"default": 2}


def test_recall_prints_one_line_per_hit_best_first(store):
    """Without --json a hit is one line with its score, namespace, text and id, whatever the width of the screen."""
    lines = output(
        command("recall", "--path", store, "-n", "personal=1", "-n", "style=1", "who has a spare key?")
    )
    assert len(lines) == 2
    assert "personal  The spare key is with the neighbour." in lines[0]
    assert lines[1].endswith("style  Keep answers [short].  short")


def test_recall_gives_each_namespace_its_own_number(store):
    """NAME=K asks for the K best of that namespace and -k is for those that say nothing."""
    found = printed_json("recall", "--path", store, "-k", "1", "-n", "personal=2", "-n", "style", "number")
    assert sorted(hit["namespace"] for hit in found["hits"]) == ["personal", "personal", "style"]
    assert found["errors"] == {}
    assert found["timings"]["total"] > 0


def test_recalling_nothing_ends_with_1(store):
    """A recall without a hit prints nothing, and says so on standard error and with its exit code, as grep does."""
    finished = command("recall", "--path", store, "-n", "no such namespace", "anything")
    assert finished == (1, "", "aiochroma: no hits\n")


def test_get_prints_text_and_metadata(store):
    """A memory comes back with its namespace and with metadata of the types they were written with."""
    found = printed_json("get", "--path", store, "-n", "style", "short")
    assert found["text"] == "Keep answers [short]."
    assert found["metadata"] == {"words": 120, "kind": "rule", "for": ["Ann", "Ben"]}
    assert found["created_at"].endswith("+00:00")
    assert "Keep answers [short]." in output(command("get", "--path", store, "-n", "style", "short"))[0]


def test_get_of_an_unknown_id_ends_with_1(store):
    """What is not there is one line on standard error and exit code 1."""
    finished = command("get", "--path", store, "nobody")
    assert finished.returncode == 1
    assert "'nobody'" in complaint(finished)


def test_forget_forgets_and_ends_with_1_where_there_was_nothing(tmp_path):
    """The first forget says how many there were, the second one finds nothing."""
    [known] = output(command("remember", "--path", tmp_path, "to be forgotten"))
    assert output(command("forget", "--path", tmp_path, known)) == ["1 memory forgotten"]
    finished = command("forget", "--path", tmp_path, known)
    assert finished.returncode == 1
    assert known in complaint(finished)


def test_namespaces_prints_one_name_per_line(store):
    """Names come sorted, one per line, ready for a loop of a shell."""
    assert output(command("namespaces", "--path", store)) == ["personal", "style"]


def test_stats_prints_counts_and_the_embedder(store):
    """The counts of the namespaces, their sum and the embedder are printed, as text and as JSON."""
    found = printed_json("stats", "--path", store)
    assert found["namespaces"] == {"personal": 2, "style": 1}
    assert found["thread"]["failed"] == 0
    lines = output(command("stats", "--path", store))
    assert f"embedder: {found['embedder']}" in lines
    assert [line.split() for line in lines if line.startswith("together")] == [["together", "3"]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "named"),
    [
        (["remember", "  "], b"", "The text is blank"),
        (["remember", "one", ""], b"", "Text 2 is blank"),
        (["remember", "text", "-m", "no sign"], b"", "KEY=VALUE"),
        (["remember", "text", "-m", "=value"], b"", "The `--metadata` of the text has the key ''"),
        (["remember", "one", "two", "--id", "same"], b"", "--id"),
        (["remember", "text", "--id", ""], b"", "The `--id` of the text"),
        (["remember", "text", "--thread", ""], b"", "The `--thread` of the text"),
        (["remember", "text", "--scope", "a//b"], b"", "`--scope` must be 1 to 8 labels"),
        (["remember", "text", "--ttl", "0s"], b"", "`--ttl` must be a time"),
        (["remember", "text", "--ttl", "9999999w"], b"", "`--ttl` is too long"),
        (["remember", "text", "-n", " "], b"", "`--namespace` must be"),
        (["remember", "--thread", ""], b"\n\none\n", "The `--thread` of line 3 of standard input"),
        (["remember"], b"a\0b\n", "Line 1 of standard input has a NUL character"),
        (["remember", "-"], b"\xff\xfe\ngood\n", "Line 1 of standard input is not UTF-8"),
    ],
)
def test_bad_input_ends_with_2_and_names_the_argument(tmp_path, arguments, stdin, named):
    """A wrong argument is one line that names it as it was given, and no store is made."""
    finished = command(*arguments, "--path", tmp_path / "memory", typed=stdin)
    assert finished.returncode == 2
    assert named in complaint(finished)
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recall", " "], "`QUERY`"),
        (["recall", "key", "-k", "0"], "`-k` must be an integer from 1"),
        (["recall", "key", "-n", "personal=0"], "`--namespace personal=0`"),
        (["recall", "key", "-n", ""], "`--namespace` must be"),
        (["recall", "key", "--window", "99"], "`--window` must be an integer from 0"),
        (["recall", "key", "--max-distance", "-1"], "`--max-distance` must be a number of at least 0"),
        (["recall", "key", "--thread", ""], "`--thread` must be"),
        (["list", "--where", '{"a": 1, "b": 2}'], "`--where` must be"),
        (["list", "--scope", ""], "`--scope` must be"),
        (["get", ""], "`ID` must be"),
        (["update", "short", " "], "`TEXT` is blank"),
        (["update", "short", "-m", "$x=1"], "`--metadata`"),
        (["forget", ""], "`ID` must be"),
        (["forget", "--thread", "t", "-n", " "], "`--namespace` must be"),
        (["import", "pyproject.toml"], "`FILE` 'pyproject.toml' must be a folder"),
        (["import", "-", "--split-chars", "-1"], "`--split-chars` must be"),
        (["export", "/", "-n", " "], "There is no namespace ' '"),
        (["export", "/"], "`FILE` '/'"),
        (["reembed", "--embedder", "word2vec"], "`--embedder` must be"),
        (["reembed", "-n", "nope"], "There is no namespace 'nope'"),
        (["compact", "-n", "nope"], "There is no namespace 'nope'"),
        (["export", "-", "-n", "nope"], "There is no namespace 'nope'"),
        (["import", "-", "--split-chars", "1"], "at least 32, got 1"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_command_line(store, arguments, named):
    """The library's own names of arguments are those of options and arguments, as they are typed."""
    finished = command(*arguments, "--path", store)
    assert finished.returncode == 2
    assert named in complaint(finished)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "-n", "style"], ["list", "-n", "style", "--json"], ["export", "-"]]
)
def test_a_reader_that_has_left_ends_a_command_quietly(store, arguments):
    """As in `aiochroma list | head`: not a word, and the exit code of a program that such a pipe has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "aiochroma", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "CHROMA_DB_PATH": str(store)},
        timeout=2 * PATIENCE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unknown_option_ends_with_2():
    """The command line's own complaints have the same exit code as ours."""
    assert command("recall", "--no-such-option", "question").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["recall", "question"],
        ["get", "id"],
        ["forget", "id"],
        ["namespaces"],
        ["stats"],
        ["mcp", "--read-only"],
        ["ui"],
    ],
)
def test_reading_where_no_memory_is_ends_with_3_and_makes_none(tmp_path, arguments):
    """A misspelled path is an error and leaves nothing behind."""
    finished = command(*arguments, "--path", tmp_path / "misspelled")
    assert finished.returncode == 3
    assert "misspelled" in complaint(finished)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file_ends_with_3(tmp_path):
    """A store that cannot be opened is one line without a traceback."""
    (tmp_path / "file").write_text("not a directory")
    finished = command("remember", "--path", tmp_path / "file", "text")
    assert finished.returncode == 3
    assert "is a file" in complaint(finished)


def test_what_is_exported_can_be_imported_elsewhere(store, tmp_path):
    """Everything comes back, each memory in its namespace; a second import duplicates nothing."""
    file, copy = tmp_path / "all.jsonl", tmp_path / "copy"
    assert output(command("export", "--path", store, file)) == ["3 memories exported"]
    assert len(file.read_text("utf-8").splitlines()) == 3
    for _ in range(2):
        assert output(command("import", "--path", copy, file)) == ["3 memories imported"]
    one, other = (printed_json("get", "--path", path, "-n", "style", "short") for path in (store, copy))
    assert one == other
    assert sum(printed_json("stats", "--path", copy)["namespaces"].values()) == 3


def test_what_another_embedder_wrote_is_counted_and_exported(tmp_path):
    """The command line knows nothing of an embedder of one's own, and needs it for neither."""
    path, file = tmp_path / "memory", tmp_path / "all.jsonl"
    with Memory(path, embedder=lambda texts: [[float(len(text)), 1.0] for text in texts]) as memory:
        memory.remember("The spare key is with the neighbour.")
    assert output(command("export", "--path", path, "-n", "default", file)) == ["1 memory exported"]
    assert json.loads(file.read_text("utf-8"))["text"] == "The spare key is with the neighbour."
    assert printed_json("stats", "--path", path)["namespaces"] == {"default": 1}


def test_what_another_embedder_wrote_is_embedded_again(tmp_path):
    """`reembed` says what it did; a name that is none of an embedder is bad input."""
    path = tmp_path / "memory"
    with Memory(path, embedder="hashed") as memory:
        memory.remember("the kettle is blue")
    assert command("reembed", "--path", path, "--embedder", "word2vec").returncode == 2
    assert output(command("reembed", "--path", path)) == ["default: 1 memory embedded again"]
    assert output(command("reembed", "--path", path)) == ["default: has vectors of this embedder already"]
    assert output(command("compact", "--path", path, "-n", "default")) == [
        "default: index made again, 1 memory copied"
    ]
    assert "in no index is more dead than alive" in command("compact", "--path", path).stderr
    assert "blue" in command("recall", "--path", path, "kettle").stdout


def test_one_namespace_is_exported_and_a_folder_of_texts_imported(store, tmp_path):
    """Only what was asked for is written; a folder's files become memories of the namespace that was named."""
    file, folder, copy = tmp_path / "some.jsonl", tmp_path / "notes", tmp_path / "copy"
    assert output(command("export", "--path", store, "-n", "style", file)) == ["1 memory exported"]
    folder.mkdir()
    (folder / "keys.md").write_text("The garage code is 5113.", "utf-8")
    assert output(command("import", "--path", copy, "-n", "home", folder)) == ["1 memory imported"]
    assert "5113" in output(command("recall", "--path", copy, "-n", "home", "garage code"))[0]


def test_importing_what_is_not_there_or_exporting_from_nowhere_says_so(tmp_path):
    """A file that is missing is bad input, a memory that is missing is no store; neither makes one."""
    missing = command("import", "--path", tmp_path / "memory", tmp_path / "missing.jsonl")
    assert (missing.returncode, "missing.jsonl" in complaint(missing)) == (2, True)
    nowhere = command("export", "--path", tmp_path / "memory", tmp_path / "all.jsonl")
    assert (nowhere.returncode, "There is no memory" in complaint(nowhere)) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_help_imports_neither_chromadb_nor_numpy():
    """Asking for help is quick: what is slow to import is not imported."""
    program = (
        "import sys\n"
        "sys.argv = ['aiochroma', '--help']\n"
        "from aiochroma.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'chromadb', 'chromadb_rust_bindings', 'numpy', 'wordllama', 'tokenizers'} & set(sys.modules)\n"
        # Nor what other commands need: a session of `mcp` is to start at once.
        "heavy |= {'aiochroma.memory.memory', 'aiochroma.sync', 'aiochroma.ops', 'pydantic_settings'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert "Exit codes" in printed_by("-c", program)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_names_the_extra(missing):
    """Where typer or rich is not installed, one line names the extra, and the exit code is 2."""
    program = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None  # As if it were not installed.\n"
        "from aiochroma.__main__ import main\n"
        "main()\n"
    )
    finished = python("-c", program)
    assert finished.returncode == 2
    assert "aiochroma-memory[cli]" in complaint(finished)


def test_people_and_conversations_from_a_shell(tmp_path):
    """Scopes and threads are options of the commands: listed in order, recalled, changed, pinned, and forgotten together."""
    for scope in ("acme/ann", "acme/ben"):
        said = b"We meet at the lake.\nBring the canoe.\n"
        output(command("remember", "--path", tmp_path, "--scope", scope, "--thread", "trip", typed=said))
    in_order = printed_json("list", "--path", tmp_path, "--scope", "acme/ann", "--thread", "trip")
    assert [hit["text"] for hit in in_order] == ["We meet at the lake.", "Bring the canoe."]
    everybody = printed_json("recall", "--path", tmp_path, "--scope", "acme", "canoe")
    assert [hit["text"] for hit in everybody["hits"]].count("Bring the canoe.") == 2
    id = in_order[1]["id"]
    changed = output(command("update", "--path", tmp_path, id, "Bring both canoes.", "-m", "sure=true"))
    assert "Bring both canoes." in changed[0]
    output(command("pin", "--path", tmp_path, id))
    output(command("update", "--path", tmp_path, id, "--remove", "sure"))
    found = printed_json("get", "--path", tmp_path, id)
    assert (found["text"], found["metadata"], found["pinned"]) == ("Bring both canoes.", {}, True)
    assert output(command("forget", "--path", tmp_path, "--scope", "acme/ann")) == ["2 memories forgotten"]
    assert len(printed_json("list", "--path", tmp_path, "--newest-first", "--limit", "5")) == 2


def test_lines_go_through_pipes(tmp_path):
    """`export -` writes what `import -` reads, and says on standard error how many there were."""
    output(command("remember", "--path", tmp_path / "a", "--ttl", "7d", "one", "two"))
    exported = command("export", "--path", tmp_path / "a", "-")
    assert complaint(exported) == "aiochroma: 2 memories exported"
    imported = command("import", "--path", tmp_path / "b", "-", typed=exported.stdout.encode())
    assert output(imported) == ["2 memories imported"]
    assert [hit["text"] for hit in printed_json("list", "--path", tmp_path / "b")] == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recall", "--path", "localhost:8000", "x"], "localhost:8000"),
        (["list", "https://localhost"], "'https://localhost'"),
        (["doctor", "one", "--path", "two"], "--path 'two'"),
        (["backup", "one", "two", "three"], "3 directories"),
        (["recall", "--since", "yesterdayish", "x"], "--since"),
        (["recall", "--mode", "fuzzy", "x"], "--mode"),
        (["recall", "--where", "[1]", "x"], "--where"),
        (["recall", "--where", "[" * 100_000, "x"], "--where"),
        (["recall", "--min-score", "high", "x"], "--min-score"),
        (["remember", "--ttl", "soon", "x"], "--ttl"),
        (["forget"], "ids"),
        (["update", "some-id"], "Nothing to change"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_opened(tmp_path, arguments, named):
    """One line names the option and what it may be; no directory is made."""
    finished = command(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert named in complaint(finished)
    assert [*tmp_path.iterdir()] == []


def test_the_version_names_everything_that_matters():
    """One line has the distribution, Chroma, Python and the system: what a report of a fault needs."""
    [line] = output(command("--version"))
    for what in ("aiochroma-memory ", "chromadb ", "CPython "):
        assert what in line


def test_the_environment_names_the_directory(tmp_path, monkeypatch):
    """Without --path the commands use what CHROMA_DB_PATH names; with it they do not."""
    monkeypatch.setenv("CHROMA_DB_PATH", str(tmp_path / "named"))
    output(command("remember", "from the environment", cwd=tmp_path))
    assert (tmp_path / "named" / "chroma.sqlite3").exists()
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize("option", [[], ["--path"]])
def test_a_directory_is_an_argument_or_an_option(store, tmp_path, option):
    """What needs nothing else takes PATH and --path alike; a backup has its target behind it."""
    assert output(command("namespaces", *option, store)) == ["personal", "style"]
    assert output(command("doctor", *option, store))[-1].startswith("Healthy: 3 records")
    copy = tmp_path / "copy"
    assert output(command("backup", "--quick", *option, store, copy))[0] == str(copy)
    assert command("host", "--status", *option, store).returncode == 1


def test_a_directory_is_named_by_the_environment(store, tmp_path, monkeypatch):
    """Without PATH every command takes what CHROMA_DB_PATH names; a misspelled one makes no store, and a server is none."""
    monkeypatch.setenv("CHROMA_DB_PATH", str(store))
    assert output(command("namespaces")) == ["personal", "style"]
    assert output(command("doctor"))[-1].startswith("Healthy: 3 records")
    monkeypatch.setenv("CHROMA_DB_PATH", str(tmp_path / "misspelled"))
    assert command("recall", "kettle").returncode == 3
    assert not (tmp_path / "misspelled").exists()
    monkeypatch.setenv("CHROMA_MODE", "http")
    refused = command("doctor")
    assert (refused.returncode, "CHROMA_MODE" in complaint(refused)) == (2, True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_that_cannot_show_a_character(tmp_path, encoding):
    """Where the output's encoding lacks a character, its number is shown, and the command succeeds."""
    output(command("remember", "--path", tmp_path, "The cat is called \u9cf6 \U0001f408."))
    for name, *more in (["recall", "cat"], ["list"], ["list", "--json"]):
        shown = output(command(name, "--path", tmp_path, *more, encoding=encoding))
        assert any("\\u9cf6" in line for line in shown)
    assert json.loads("\n".join(shown))[0]["text"] == "The cat is called \u9cf6 \U0001f408."


LONG = "x" * 300
"""No file system has a name for it, and asking is an error of its own."""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("remember", "a text", "--path", LONG), 3),
        (("recall", "a question", "--path", LONG), 3),
        (("list", LONG), 3),
        (("export", "file.jsonl", "--path", LONG), 3),
        (("import", LONG), 2),
        (("doctor", LONG), 3),
        (("backup", LONG, "copy"), 3),
        (("restore", LONG, "copy"), 3),
        (("erase", LONG), 3),
        (("migrate", LONG, "copy"), 3),
        (("ui", LONG), 3),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path, arguments, code):
    """Whatever the file system says of a path, there is no traceback, and nothing is made."""
    finished = command(*arguments, cwd=tmp_path)
    assert finished.returncode == code
    assert "too long" in complaint(finished) or "no readable" in complaint(finished)
    assert list(tmp_path.iterdir()) == []


FORBIDDEN = """
import asyncio, os, sys
from pathlib import Path
import aiochroma
from aiochroma.cli.common import check_exists
from aiochroma.ops.migrate import endpoint_of

path = Path(sys.argv[1])
os.setuid(65534)
for look in (
    check_exists,
    aiochroma.sync.doctor,
    aiochroma.sync.erase,
    lambda path: endpoint_of(path, "src", None, None, None).look(must_exist=True),
):
    try:
        look(path)
    except aiochroma.DatabasePathError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user to run as")
def test_what_belongs_to_another_user_is_one_line():
    """Whatever only reads says that it may not look, and does not call it a memory that does not exist."""
    closed = Path("/var/lib") / f"aiochroma-test-{os.getpid()}"
    closed.mkdir(mode=0o700)
    try:
        shown = printed_by("-c", f"import aiochroma.sync{FORBIDDEN}", closed / "memory")
    finally:
        closed.rmdir()
    assert shown.count("Permission denied") == 4


def test_stored_text_is_shown_and_not_obeyed(tmp_path):
    """Ids, namespaces and metadata may come from others as well; control characters are written out."""
    evil, path = "\x1b]0;owned\x07\x9b1m\x7f\u202e", tmp_path / "memory"
    with Memory(path) as memory:
        memory.remember(
            f"text {evil}", id=f"id{evil}", namespace=f"name{evil}", metadata={f"key{evil}": evil}
        )
    name = f"name{evil}"
    for arguments in (
        ("list", path, "-n", name),
        ("get", f"id{evil}", "--path", path, "-n", name),
        ("recall", "text", "--path", path),
        ("recall", "text", "--path", path, "--context"),
        ("namespaces", path),
        ("stats", path),
        ("pin", f"id{evil}", "--path", path, "-n", name),
        ("stats", "--json", "--path", path),
        ("list", "--json", "--path", path, "-n", name),
        ("get", f"id{evil}", "--json", "--path", path, "-n", name),
    ):
        finished = command(*arguments)
        shown = finished.stdout + finished.stderr
        assert finished.returncode == 0, shown
        assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"}.intersection(shown), arguments
    assert json.loads(finished.stdout)["text"] == f"text {evil}"


def test_a_standard_input_that_is_closed_is_one_line(tmp_path):
    """Where a shell has closed it there is nothing to read, which is bad input."""
    done = subprocess.run(
        f"{sys.executable} -m aiochroma remember --path {tmp_path / 'memory'} - <&-",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, "closed" in complaint(done)) == (2, True)


def test_json_is_json_whatever_the_output_can_show(tmp_path):
    """A path with letters that the output's encoding lacks is escaped as JSON has it."""
    path = tmp_path / "mémoire 🧠"
    output(command("remember", "a text", "--path", path))
    shown = output(command("doctor", path, "--json", encoding="ascii"))
    assert json.loads("\n".join(shown))["path"] == str(path)


def test_what_erase_did_not_look_for_is_said(tmp_path):
    """A text that is too short to be told from chance is named instead of passed over."""
    output(command("remember", "a text", "--path", tmp_path / "memory"))
    lines = output(command("erase", tmp_path / "memory", "--text", "1234"))
    assert any("so short" in line for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_who_ends_a_command_leaves_no_private_file_behind(tmp_path, name):
    """What was read of standard input is in a temporary file, which goes with the command."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "aiochroma", "import", "-", "--path", tmp_path / "memory"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        process.stdin.write(b'"something private"\n')
        process.stdin.flush()
        until(lambda: list(temporary.glob("aiochroma-*")), "the input is being read")
        process.send_signal(getattr(signal, name))
        assert process.wait(100) == 128 + getattr(signal, name)
        process.stdin.close()
    assert list(temporary.iterdir()) == []


INTERRUPTED = """
import contextlib, os, signal, sys
from aiochroma.cli import transfer

def show(*progress):
    if sum(part for part in progress if isinstance(part, int)) >= 300:
        os.kill(os.getpid(), signal.SIGINT)

@contextlib.contextmanager
def bars(*_, **__):
    yield show

transfer.progress_bar = transfer.progress_bars = bars
from aiochroma.cli.app import run
run()
"""


def interrupted(*arguments):
    """Run a command that gets Ctrl-C when it has done some of its work."""
    done = python("-c", INTERRUPTED, *arguments)
    assert done.returncode == 130, done.stderr
    return complaint(done)


def test_what_was_interrupted_says_how_things_stand_and_goes_on(tmp_path):
    """Import, export and migrate: what is there is whole, and running it again completes it without duplicates."""
    path, file, copy = tmp_path / "memory", tmp_path / "many.jsonl", tmp_path / "copy"
    file.write_text(
        "".join(f'{{"text": "note number {number}", "id": "{number}"}}\n' for number in range(700))
    )
    assert re.search(
        r"interrupted after \d+ memories.*run it again", interrupted("import", file, "--path", path)
    )
    with Memory(path) as memory:
        assert 0 < memory.count() < 700
    assert output(command("import", file, "--path", path)) == ["700 memories imported"]
    with Memory(path) as memory:
        assert memory.count() == 700

    before = file.read_text()
    assert f"{file} is as it was" in interrupted("export", file, "--path", path)
    assert file.read_text() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["many.jsonl", "memory"]

    assert "nothing is written twice" in interrupted("migrate", path, copy)
    assert json.loads(command("migrate", path, copy, "--json").stdout)["is_verified"]
    with Memory(copy) as memory:
        assert memory.count() == 700


def test_nothing_rather_than_something_irrelevant(store):
    """As in a program: with `auto` a question about something else has no hits."""
    auto = ("recall", "--path", store, "--min-score", "auto")
    assert command(*auto, "the height of the Eiffel tower").returncode == 1
    assert "spare key" in output(command(*auto, "where is the spare key?"))[0]
    refused = command("recall", "--path", store, "--max-distance", "far", "key")
    assert (refused.returncode, "`--max-distance`" in complaint(refused)) == (2, True)


def test_an_import_from_a_pipe_is_whole(tmp_path):
    """What a named pipe gives is kept in a file first: its lines are counted, and read."""
    pipe = tmp_path / "lines.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"text": "a"}\n{"text": "b"}\n',), daemon=True)
    writer.start()
    assert "2" in command("import", "--path", tmp_path / "memory", pipe).stdout
    writer.join(PATIENCE)
    with Memory(tmp_path / "memory") as memory:
        assert memory.count() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("remember", "--path", "", "a text"),
        ("list", ""),
        ("import", ""),
        ("backup", "", "copy"),
        ("restore", "copy", ""),
        ("doctor", "memory", "--backup-to", ""),
    ],
)
def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch, arguments):
    """It is a variable of the shell that is not set: nothing is made, read or copied here."""
    monkeypatch.chdir(tmp_path)
    finished = command(*arguments)
    assert finished.returncode == 2
    assert "it is empty" in " ".join(finished.stderr.split())
    assert not any(tmp_path.iterdir())
