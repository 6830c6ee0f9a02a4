"""Streamlit for real: `streamlit run` in a child process, and a headless Chromium that uses the page."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from programs import PATIENCE, Program, free_port

import aiochroma
from aiochroma import sync

pytest.importorskip("streamlit", reason="streamlit is not installed (dependency group `frameworks`)")
pytest.importorskip("selenium", reason="selenium is not installed (dependency group `frameworks`)")

from browser import CHROMIUM, DRIVER, chromium

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium (Debian: apt-get install --no-install-recommends chromium chromium-driver)",
)

PAGE = Path(__file__).with_name("streamlit_page.py")


@pytest.fixture
def browser(tmp_path):
    """A fresh Chromium without a window."""
    browser = chromium(tmp_path / "chromium")
    yield browser
    browser.driver.quit()


@pytest.fixture
def streamlit(tmp_path):
    """Start a script as its user would; the store is in the test's directory."""

    def make(script, **environment):
        port = free_port()
        options = {
            "server.port": port,
            "server.address": "127.0.0.1",
            "server.headless": "true",
            "server.runOnSave": "true",
            "browser.gatherUsageStats": "false",
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        program = Program(
            [sys.executable, "-m", "streamlit", "run", script, *flags],
            tmp_path / f"streamlit-{port}.log",
            directory=tmp_path,
            CHROMA_DB_PATH=tmp_path / "store",
            HOME=tmp_path,
            **environment,
        )
        program.url = f"http://127.0.0.1:{port}"
        return program

    return make


@pytest.fixture
def page(tmp_path):
    """A copy of the page that may be edited."""
    return Path(shutil.copy(PAGE, tmp_path / "page.py"))


TEXTS = [
    ":material/home: :material_home: :smile: :streamlit: :red[red] :small[s] :help[x] :green-badge[b]",
    ':color[a]{foreground="red"}',
    "- one\n- two",
    "* one\n+ two",
    "1. one\n2) two",
    "- [x] done\n- [ ] open",
    "---",
    "heading\n===",
    "heading\n---",
    "# head",
    "> quote",
    "    code",
    "```\ncode\n```",
    "|a|b|\n|-|-|\n|c|d|",
    "[^1]: foot",
    "[a]: http://b.example",
    "a &amp; &lt;b&gt; &#x41;",
    "http://a.example/u_v?w=x&y=z, www.example.com and (https://b.example) <http://c.example/>",
    "-> a -> b <- c <-> d -- e >= f <= g ~= h",
    "**bold** _it_ ~~no~~ `c` $x$ $$y$$ \\(z\\)",
    "![i](http://a.example/q.png) <b>x</b><img src=x>",
    "line one\nline two\\\nline three",
    "C:\\new\\*",
    "12:30:45 is a:b:c, 5 * 3 - 1",
]

MARKDOWN_PAGE = f"""
import streamlit as st
from aiochroma.streamlit import as_markdown

for number, text in enumerate({TEXTS!r}):
    with st.container(key=f"text{{number}}"):
        st.markdown(as_markdown(text))
    with st.container(key=f"label{{number}}"):
        st.checkbox(as_markdown(text), key=number)
st.write("all shown")
"""

ELEMENTS = """
return [...document.querySelectorAll(`.st-key-${arguments[0]} [data-testid=stMarkdownContainer]`)].map(
    (shown) => [shown.innerText, [...new Set([...shown.querySelectorAll("*")].map((each) => each.tagName))].sort()])
"""


@pytest.mark.timeout(600)
def test_as_markdown_shows_each_text_as_it_is(tmp_path, streamlit, browser):
    """In the page and in labels: the same characters, in paragraphs and lines and no other elements."""
    (tmp_path / "markdown.py").write_text(MARKDOWN_PAGE)
    with streamlit(tmp_path / "markdown.py") as program:
        program.when_up(f"{program.url}/_stcore/health")
        browser.open(program.url)
        browser.wait_for("all shown")
        for place in ("text", "label"):
            for number, text in enumerate(TEXTS):
                [[shown, elements]] = browser.driver.execute_script(ELEMENTS, f"{place}{number}")
                shown = shown.replace("\N{WORD JOINER}", "").replace("\N{NO-BREAK SPACE}", " ")
                assert (shown.rstrip("\n"), set(elements) - {"P", "BR"}) == (text, set()), (place, text)


def shown(browser):
    """Return run, memory and number of memories that the page shows."""
    return tuple(map(int, browser.wait_for(r"run (\d+), memory (\d+), holds (\d+)").groups()))


def test_the_assistant(browser, streamlit, examples, tmp_path):
    """Save, ask with a max_distance, look up by id, format for a prompt, with wrong input, in two tabs."""
    with streamlit(examples / "streamlit_assistant" / "app.py") as server:
        server.when_up(f"{server.url}/_stcore/health")
        browser.open(server.url)
        browser.wait_for("Memory available: 0 memories")
        id = "nothing"
        for text in ("My cat is called Kestrel.", "I was born in Ghent.", "I play the cello on Thursdays."):
            browser.type("Something to remember", text)
            id = browser.wait_for(rf"Saved as (?!{id})(\w{{32}})")[1]
        browser.type("Question", "what is my cat called?")
        browser.wait_for(r"(?s)Context for the language model.*\[\d{4}-\d\d-\d\d\] My cat is called Kestrel")
        browser.type("Memory by its id", id)
        browser.wait_for(r'"I play the cello on Thursdays\."')
        browser.wait_for("Memory available: 3 memories")
        picture = tmp_path / "screenshot.png"
        assert browser.driver.save_screenshot(str(picture))
        if target := os.environ.get("AIOCHROMA_SCREENSHOT"):
            shutil.copy(picture, target)

        browser.open_tab(server.url)
        browser.type("Memory by its id", id)
        browser.wait_for(r'"I play the cello on Thursdays\."')
        browser.type("Something to remember", "   ")
        browser.wait_for("is blank")
        browser.type("Memory by its id", "nothing")
        browser.wait_for("There is no memory of that id")
        assert "Traceback" not in browser.text()
        server.stop()
        assert "Traceback" not in server.output()


def test_a_hundred_reruns_in_several_tabs(browser, streamlit, page):
    """A hundred runs from four tabs, and a script that fails in between, keep the one memory; each run has written."""
    with streamlit(page) as server:
        server.when_up(f"{server.url}/_stcore/health")
        tabs, memories = [], set()
        for _ in range(4):
            tabs.append(browser.open_tab(server.url))
            shown(browser)
        for number in range(100):
            browser.driver.switch_to.window(tabs[number % len(tabs)])
            if number == 50:
                browser.click("fail")
                browser.wait_for("LookupError")
            before = browser.wait_for(r"run (\d+)")[1] if number != 50 else "0"
            browser.click("again")
            browser.wait_for(rf"run (?!{before}\b)\d+,")
            run, memory, holds = shown(browser)
            memories.add(memory)
            assert holds == run
        assert len(memories) == 1
        assert run >= 104
        server.stop()
        assert server.output().count("Traceback") <= 1  # That of the button which fails.


def test_hot_reload(browser, streamlit, page):
    """A script that is edited while it is shown runs anew by itself, with the same memory."""
    with streamlit(page) as server:
        server.when_up(f"{server.url}/_stcore/health")
        browser.open(server.url)
        browser.wait_for("VERSION ONE")
        _, memory, _ = shown(browser)
        page.write_text(page.read_text().replace("VERSION ONE", "VERSION TWO"))
        browser.wait_for("VERSION TWO")
        assert shown(browser)[1] == memory
        server.stop()
        assert "Traceback" not in server.output()


async def test_a_locked_store(browser, streamlit, page, tmp_path):
    """While another process owns the directory the page says so, and works by itself when the other has let go."""
    async with aiochroma.Memory(tmp_path / "store") as memory:
        with streamlit(page) as server:
            await asyncio.to_thread(server.when_up, f"{server.url}/_stcore/health")
            browser.open(server.url)
            await asyncio.to_thread(
                browser.wait_for, f"The memory is not available.*in use by process {os.getpid()}"
            )
            assert "Traceback" not in browser.text()
            await memory.aclose()
            await asyncio.to_thread(browser.wait_for, r"run 1, memory \d+, holds 1")


def test_two_servers_share_a_directory(browser, streamlit, page):
    """With `process="shared"` each has what the other remembers, and neither gets an error."""
    with tempfile.TemporaryDirectory(prefix="aio-") as folder:
        shared = {"CHROMA_PROCESS": "shared", "AIOCHROMA_RUNTIME_DIR": folder}
        with streamlit(page, **shared) as one, streamlit(page, **shared) as other:
            seen = []
            for server in (one, other, one):
                server.when_up(f"{server.url}/_stcore/health")
                browser.open(server.url)
                run, _, holds = shown(browser)
                seen.append((run, holds))
            assert seen == [(1, 1), (1, 2), (2, 3)]
            assert "Traceback" not in one.output() + other.output()
        # Their host has no clients any more, so it lets go.
        with sync.Memory(page.parent / "store", process="this") as memory:
            assert memory.count() == 3


def test_a_restart_of_the_server(browser, streamlit, page):
    """A server that is stopped has closed its store: the next one has it at once, with what was written."""
    for started in (1, 2):
        with streamlit(page) as server:
            server.when_up(f"{server.url}/_stcore/health")
            browser.open(server.url)
            assert shown(browser)[0] == 1
            begun = time.monotonic()
            server.stop()
            assert time.monotonic() - begun < PATIENCE
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url, trust_env=False)
            assert server.output().count("Traceback") == 0, started
