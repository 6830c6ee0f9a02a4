"""A headless Chromium, and the words that tests of pages need."""

from __future__ import annotations

import re
import shutil

from programs import PATIENCE
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=900,1350",
)


class Browser:
    """A browser and the words it needs here."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url):
        self.driver.get(url)

    def open_tab(self, url):
        self.driver.switch_to.new_window("tab")
        self.driver.get(url)
        return self.driver.current_window_handle

    def text(self):
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait_for(self, pattern):
        """Return the match of a pattern in what the page shows, when it shows it."""
        return WebDriverWait(self.driver, PATIENCE, 0.05, (StaleElementReferenceException,)).until(
            lambda _: re.search(pattern, self.text()), f"{pattern!r} never appeared"
        )

    def type(self, label, text):
        field = WebDriverWait(self.driver, PATIENCE, 0.05).until(
            lambda driver: driver.find_element(By.CSS_SELECTOR, f"input[aria-label={label!r}]")
        )
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)

    def click(self, button):
        """Click a button when it is enabled; the page may be drawing it again at that moment."""
        WebDriverWait(self.driver, PATIENCE, 0.05, (Exception,)).until(
            lambda driver: (
                driver.find_element(By.XPATH, f"//button[not(@disabled)][.//*[text()={button!r}]]").click()
                is None
            )
        )


def chromium(profile):
    """Start a fresh Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return Browser(webdriver.Chrome(options, webdriver.ChromeService(DRIVER)))
