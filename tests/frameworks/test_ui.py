"""`aiochroma ui` for real: the command in a child process, and a headless Chromium that uses its page."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from datetime import timedelta

import httpx
import pytest
from programs import PATIENCE, Program, until

from aiochroma import sync

pytest.importorskip("streamlit", reason="streamlit is not installed (dependency group `frameworks`)")
pytest.importorskip("selenium", reason="selenium is not installed (dependency group `frameworks`)")

from browser import CHROMIUM, DRIVER, chromium
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium (Debian: apt-get install --no-install-recommends chromium chromium-driver)",
)


@pytest.fixture
def runtime(tmp_path_factory, monkeypatch):
    """A folder of sockets of the test's own."""
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv("AIOCHROMA_RUNTIME_DIR", str(folder))


@pytest.fixture
def browser(tmp_path):
    browser = chromium(tmp_path / "chromium")
    yield browser
    browser.driver.quit()


class Page(Program):
    """The command, and where it serves the page."""

    def __init__(self, path, log, *options):
        super().__init__([sys.executable, "-m", "aiochroma", "ui", "--path", path, *options], log)

    def url(self):
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", self.output()), "an address")[
            0
        ]
        self.when_up(found.split("?")[0])
        return found


def test_who_ends_the_command_ends_the_page(runtime, tmp_path):
    """A service manager sends SIGTERM; nothing of the page is left."""
    with sync.Memory(tmp_path / "memory") as memory:
        memory.remember("Ada's cat is called Kestrel.")
    with Page(tmp_path / "memory", tmp_path / "ui.log") as page:
        url = page.url()
        page.process.terminate()
        page.process.wait(60)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_a_port_that_is_in_use(tmp_path):
    """It is refused by its number, before an address is printed."""
    with sync.Memory(tmp_path / "memory") as memory:
        memory.remember("Ada's cat is called Kestrel.")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "aiochroma", "ui", tmp_path / "memory", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, port in done.stderr) == (2, "", True)


WITHOUT_SOCKETS = """
import contextlib, os, socket, sys
from streamlit.testing.v1 import AppTest
with contextlib.suppress(ImportError):
    import psutil  # On Linux it takes such sockets for granted while it is imported.
pair, family = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda: pair(family)  # What a loop wakes itself with is another kind of socket where there is no such family.
del socket.AF_UNIX
from aiochroma import DatabaseInUseError, sync, ui
os.environ.update({ui.PATH: sys.argv[1], ui.TOKEN: "secret", ui.WRITE: ""})
app = AppTest.from_file(os.path.join(os.path.dirname(ui.__file__), "page.py"), default_timeout=100)
app.query_params["token"] = "secret"
app.run()
print(app.metric[0].value, len(app.exception), [error.value for error in app.error])
try:
    sync.Memory(sys.argv[1], process="this").open()
except DatabaseInUseError:
    print("in use")
else:
    print("open in this process")
"""


def test_the_page_without_unix_sockets(runtime, tmp_path):
    """Where Python has none there is no host: the page has the directory open itself, in its own process."""
    with sync.Memory(tmp_path / "memory") as memory:
        memory.remember("Ada's cat is called Kestrel.")
    command = [sys.executable, "-c", WITHOUT_SOCKETS, tmp_path / "memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout.splitlines() == ["1 0 []", "open in this process"], done.stderr


def choose(browser, view):
    """Choose a view at the side."""
    browser.wait_for("Overview")
    browser.driver.find_element(By.XPATH, f"//label[.//*[text()={view!r}]]").click()


@pytest.mark.timeout(
    5 * PATIENCE
)  # Forty looks at a page, of which a busy machine may need a few seconds each.
def test_looking_and_forgetting(runtime, tmp_path, browser):
    """Numbers, growth, a backup, a recall, what has expired, a memory with its nearest; forgetting asks first."""
    with sync.Memory(tmp_path / "memory", process="shared", host_idle=1, history=True) as memory:
        memory.remember_many([f"note {number} about tea" for number in range(30)])
        cat = memory.remember("Ada's cat is called Kestrel.", metadata={"kind": "pet"}, thread="pets")
        memory.remember("It sleeps on the sill.", thread="pets")
        memory.remember("The parcel is at the neighbour's.", ttl=timedelta(seconds=1))
        with Page(tmp_path / "memory", tmp_path / "ui.log", "--write") as page:
            browser.open(page.url())
            browser.wait_for(r"Memories\s+3[23]")
            assert float(browser.wait_for(r"On disk, MB\s+([\d.]+)")[1]) > 0
            browser.wait_for(r"Health\s+ok")
            browser.wait_for("Remembered per day")
            browser.type("Back up to the folder", str(tmp_path / "backup"))
            browser.click("Back up")
            browser.wait_for("Backed up to")
            assert (tmp_path / "backup" / "chroma.sqlite3").exists()

            choose(browser, "Browse")
            browser.wait_for("Page 1")
            browser.click("Older")
            browser.wait_for("Page 2")
            browser.click("Newer")
            browser.wait_for("Page 1")

            choose(browser, "Recall")
            browser.type("Question", "the name of the cat")
            browser.wait_for(r"total [\d.]+ ms")
            browser.wait_for("Ada's cat is called Kestrel.")
            browser.type("Question", "how tall is the Eiffel Tower?")
            browser.wait_for("Nothing was found")  # The lowest score is `auto`, as it stands.
            browser.type("Lowest score", "0")
            browser.wait_for("note 1 about tea|Ada's cat")
            browser.type("Largest distance", "far")
            browser.wait_for("max_distance. must be a distance")

            choose(browser, "Near-duplicates")
            browser.wait_for(r"\d+ pairs")
            choose(browser, "Map")
            browser.wait_for("32 memories")

            choose(browser, "Expired")
            browser.wait_for("1 expired memories")
            browser.click("Sweep")
            browser.wait_for("gone for good")
            assert "were deleted" not in browser.text()
            browser.click("Yes, sweep them")
            browser.wait_for("1 memories were deleted")

            choose(browser, "Memory")
            browser.type("Id", cat)
            browser.wait_for("Before and after it")
            browser.wait_for("Nearest")
            browser.wait_for("History")
            browser.click("Forget")
            browser.wait_for("gone for good")
            assert memory.get(cat)
            browser.click("Yes, forget it")
            browser.wait_for("There is no such memory")
            assert memory.get(cat) is None


def test_the_door(runtime, tmp_path, browser):
    """Without the token there is nothing to see, and without `--write` nothing to forget; only this machine is served."""
    with sync.Memory(tmp_path / "memory", process="shared", host_idle=1) as memory:
        secret = memory.remember("The door code is 4711.")
        with Page(tmp_path / "memory", tmp_path / "ui.log") as page:
            url = page.url()
            browser.open(url.split("?")[0])
            browser.wait_for("lacks the token")
            assert "View" not in browser.text()
            browser.open(url[:-1])
            browser.wait_for("lacks the token")
            browser.open(url)
            choose(browser, "Memory")
            browser.type("Id", secret)
            browser.wait_for("Nearest")
            assert "4711" in browser.text()
            assert browser.driver.find_elements(By.XPATH, "//button[.//*[text()='Forget']]") == []
            port = httpx.URL(url).port
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.2:{port}/", trust_env=False)
