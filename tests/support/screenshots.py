"""Write the pictures that the README shows: `python tests/support/screenshots.py` makes `.github/demo.svg` and `ui-*.png`.

Needs the extra `ui`, selenium, and Chromium with its driver.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

from browser import chromium
from programs import Program, until
from rich.console import Console
from selenium.webdriver.common.by import By

from aiochroma import sync
from aiochroma.demo import read_corpus
from aiochroma.demo.acts import run_demo

ROOT = Path(__file__).resolve().parents[2]


def draw_demo():
    """Run the demonstration, and draw what it prints."""
    console = Console(file=io.StringIO(), record=True, width=96, highlight=False)
    run_demo(console)
    # Without the fonts that Rich would have every reader's browser fetch.
    drawing = console.export_svg(title="aiochroma demo")
    (ROOT / ".github" / "demo.svg").write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL), "utf-8"
    )


def fill(path):
    """Remember the demonstration's sentences, as if it had taken three weeks."""
    start = datetime.now(timezone.utc) - timedelta(days=21)
    with sync.Memory(path) as memory:
        for name, sentences in read_corpus().items():
            for number, sentence in enumerate(sentences):
                made = start + timedelta(hours=(number * 37) % 500)
                memory.remember(sentence.text, namespace=name, metadata=sentence.metadata, created_at=made)


def take(browser, name):
    """Take a picture; the directory is shown as one that a reader could have."""
    browser.driver.execute_script(
        "document.querySelectorAll('[data-testid=stSidebar] [data-testid=stCaptionContainer] p')"
        ".forEach(each => each.textContent = '/srv/memory')"
    )
    browser.driver.save_screenshot(str(ROOT / ".github" / name))


def draw_page():
    """Serve the page of a memory, and take pictures of two views."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        os.environ["AIOCHROMA_RUNTIME_DIR"] = str(here / "run")
        fill(here / "memory")
        command = [sys.executable, "-m", "aiochroma", "ui", "--path", str(here / "memory")]
        browser = chromium(here / "chromium")
        browser.driver.set_window_size(1300, 1000)
        try:
            with Program(command, here / "ui.log") as page:
                url = until(lambda: "token=" in page.output() and page.output().split()[0], "an address")
                page.when_up(url.split("?")[0])
                browser.open(url)
                browser.wait_for("Remembered per day")
                chart = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg"
                until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, chart), "a chart")
                take(browser, "ui-overview.png")
                browser.driver.find_element(By.XPATH, "//label[.//*[text()='Recall']]").click()
                browser.type("Question", "Which seat did I get on the flight home, booking Q7XK2M?")
                browser.wait_for(r"total [\d.]+ ms")
                browser.wait_for("seat 14F")  # As a context for a prompt, which is drawn last.
                take(browser, "ui-recall.png")
        finally:
            browser.driver.quit()


if __name__ == "__main__":
    draw_demo()
    draw_page()
