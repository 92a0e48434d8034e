"""The page in a real browser: a conversation, a fork, a rewind, a download and an upload."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.serve.conftest import Running, Start
from titans_serve.keys import Keys
from titans_serve.settings import Settings

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1100,760",
)  # fmt: skip
_PATIENCE = 60  # seconds for what the page does at once on an idle machine


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Chromium without a window, and an empty profile."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed (Debian's packages chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    (tmp_path / "downloads").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield running
    running.quit()


class Page:
    """What a user sees and presses."""

    def __init__(self, browser: webdriver.Chrome, server: Running) -> None:
        self.browser, self.server = browser, server
        browser.get(server.url)

    def press(self, name: str, typed: str = "") -> None:
        """A button, after typing a name."""
        if typed:
            self.browser.find_element(By.ID, "name").send_keys(typed)
        self.browser.find_element(By.ID, name).click()

    def say(self, text: str) -> None:
        """A message, and wait for the whole answer."""
        answers = len(self.browser.find_elements(By.CSS_SELECTOR, "p.assistant"))
        self.browser.find_element(By.ID, "text").send_keys(text)
        self.press("send")
        self.until(
            lambda: (
                len(self.browser.find_elements(By.CSS_SELECTOR, "p.assistant")) == answers + 1
                and self.browser.find_element(By.ID, "send").is_enabled()
            )
        )

    def until(self, holds: object) -> None:
        """Wait until something holds."""
        WebDriverWait(self.browser, _PATIENCE, 0.05).until(lambda _: holds())  # type: ignore[operator]

    def until_status(self, text: str) -> None:
        """Wait for what the page reports."""
        self.until(lambda: self.browser.find_element(By.ID, "status").text == text)

    def position(self, memory: str) -> int:
        """What the server says of a memory."""
        return int(json.loads(self.server.ask("GET", f"/v1/memories/{memory}")[1])["position"])

    def picture(self, name: str) -> None:
        """A picture for the documents, where somebody wants them made anew."""
        if folder := os.environ.get("TITANS_SCREENSHOTS"):
            self.browser.save_screenshot(str(Path(folder) / name))


@pytest.mark.slow
def test_a_conversation_a_fork_a_rewind_a_download_and_an_upload(
    start: Start, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    page = Page(browser, start(settings=Settings(default_tokens=24), keys=Keys({})))
    page.press("create", "diary")
    page.until_status("diary has read 0 tokens")
    page.say("The colour of Zorblax is crimson.")
    said = browser.find_element(By.CSS_SELECTOR, "p.user")
    assert said.text == "The colour of Zorblax is crimson."
    words = said.find_elements(By.TAG_NAME, "span")
    assert len(words) == len(said.text)  # the toy's tokens are bytes, each with its own surprise
    assert all("surprise" in (word.get_attribute("title") or "") for word in words)
    read = page.position("diary")
    page.until_status(f"diary has read {read} tokens")
    page.press("mark", "before")
    page.until(lambda: browser.find_elements(By.CSS_SELECTOR, "#marks option"))
    page.press("fork", "other")
    page.until_status(f"other has read {read} tokens")
    page.say("And of Quibble?")
    assert page.position("other") > read == page.position("diary")
    page.picture("page-conversation.png")

    browser.find_element(By.CSS_SELECTOR, "#memory option[value=diary]").click()
    page.until_status(f"diary has read {read} tokens")
    page.say("Forget this again.")
    assert page.position("diary") > read
    page.press("rewind")
    page.until_status(f"diary has read {read} tokens")
    assert page.position("diary") == read
    assert "diary is back at before." in browser.find_element(By.ID, "talk").text
    page.picture("page-rewind.png")

    page.press("download")
    saved = tmp_path / "downloads" / "diary.state"
    page.until(saved.exists)
    assert saved.read_bytes() == page.server.ask("GET", "/v1/memories/diary/state")[1]
    browser.find_element(By.ID, "name").send_keys("copy")
    browser.find_element(By.ID, "file").send_keys(str(saved))
    page.until_status(f"copy has read {read} tokens")
    assert page.server.ask("GET", "/v1/memories/copy/state")[1] == saved.read_bytes()
    assert browser.get_log("browser") == []  # no error of a script, nothing refused, nothing asked of a network
