"""titans-runtime in Chromium: wasm, WebGPU on a software device, and a page that remembers its reader."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import titans_runtime
from tests.npm.conftest import answer_of, floats
from titans_core.config import TitansConfig
from titans_core.model import TitansModel
from titans_export.export import export_model
from titans_runtime import Session

CLOSE = 1e-5
_PATIENCE = 120  # seconds for what takes one on an idle machine
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update",
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan", "--use-vulkan=swiftshader",
)  # fmt: skip
_START = """
const done = arguments[arguments.length - 1];
Promise.all([import("titans-runtime"), import("/tests/commands.mjs")]).then(
  ([{ load }, { start }]) => { window.handle = start(load); done("ready"); },
  (error) => done(String(error)),
);
"""
_HAS_GPU = "const [done] = arguments; (navigator.gpu?.requestAdapter() ?? Promise.resolve()).then((it) => done(!!it));"
_HANDLE = "const [command, done] = arguments; window.handle(command).then(done);"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes with every kind of graph, as small as software can be asked to compute."""
    torch.manual_seed(0)
    memory = {"heads": 1, "depth": 1}
    config = {
        "variant": "lmm",
        "dim": 16,
        "heads": 1,
        "layers": 1,
        "chunk": 8,
        "ffn_hidden": 16,
        "persistent_tokens": 0,
    }
    path = tmp_path_factory.mktemp("pages") / "lmm.titans"
    export_model(
        TitansModel(TitansConfig.from_dict({**config, "memory": memory, "vocab_size": 256})), path, verify_tokens=0
    )
    return path


@pytest.fixture(scope="module")
def site(package: Path, bundle: Path) -> Iterator[str]:
    """The demo page's own server, on loopback."""
    command = ["node", str(package / "demo" / "serve.mjs"), str(bundle), "0", str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium without a window, and an empty profile."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed; run scripts/serving_packages.sh")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    running.set_script_timeout(_PATIENCE)
    yield running
    running.quit()


class Page:
    """The package in a page."""

    def __init__(self, browser: webdriver.Chrome, site: str) -> None:
        self.browser = browser
        browser.get(site)
        assert browser.execute_async_script(_START) == "ready"

    def __call__(self, do: str, **arguments: Any) -> Any:
        """What a command gives."""
        return answer_of(self.browser.execute_async_script(_HANDLE, {"do": do, **arguments}))


def started(bundle: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session of Python's portable graphs that has read some of a stream."""
    monkeypatch.setenv("TITANS_KERNELS", "off")
    session = titans_runtime.load(bundle, provider="cpu", threads=1).session()
    session.feed(ids)
    return session


@pytest.mark.slow  # WebGPU compiles its shaders in software
@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_a_page_goes_on_from_pythons_state_and_back(
    provider: str, browser: webdriver.Chrome, site: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(browser, site)
    if provider == "webgpu" and not browser.execute_async_script(_HAS_GPU):
        pytest.skip("Chromium has no WebGPU device here, not even a software one")
    ids = np.random.default_rng(3).integers(0, 256, 66).tolist()
    session = started(bundle, ids[:11], monkeypatch)
    page("load", model="m", bundle="/bundle", options={"provider": provider, "threads": 1})
    assert page("restore", model="m", session="s", bytes=base64.b64encode(session.to_bytes()).decode()) == 11
    page("fork", session="s", to="f")
    page("mark", session="s", mark="here")
    pieces = [ids[11:13], ids[13:14], ids[14:26]]
    found = page("feed", session="s", pieces=pieces)
    wanted = np.concatenate([session.feed(piece, all_logits=True) for piece in pieces])
    assert np.abs(floats(found["all"]).reshape(wanted.shape) - wanted).max() <= CLOSE
    back = titans_runtime.load(bundle, provider="cpu", threads=1).restore_bytes(
        base64.b64decode(page("bytes", session="s"))
    )
    assert back.position == 26
    rest = session.feed(ids[26:], all_logits=True)
    assert np.abs(back.feed(ids[26:], all_logits=True) - rest).max() <= CLOSE
    forked = page("feed", session="f", pieces=pieces[:2])
    assert page("rewind", session="s", mark="here") == 11
    again = page("feed", session="s", pieces=pieces[:2])
    assert forked["all"] == again["all"]
    assert np.array_equal(floats(again["all"]), floats(found["all"])[: 3 * 256])
    for name in ("s", "f"):
        page("dispose", session=name)


def test_the_demo_page_remembers_its_reader_after_a_reload(
    browser: webdriver.Chrome, site: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The answer to the question of the reader is on the page.\n"
    wanted = started(bundle, list(text.encode()), monkeypatch)
    answer = "".join(wanted.generate(None, 120, temperature=0.0))

    def until(word: str) -> int:
        """Wait until the page says something; the position that it reports."""
        status = WebDriverWait(browser, _PATIENCE, 0.05).until(
            lambda _: (it := browser.find_element(By.ID, "status")) and it.text.startswith(word) and it
        )
        WebDriverWait(browser, _PATIENCE, 0.05).until(lambda _: browser.find_element(By.ID, "read").is_enabled())
        return int(status.get_attribute("data-position") or -1)

    browser.get(f"{site}?temperature=0")
    assert until("Hello") == 0
    browser.find_element(By.ID, "text").send_keys(text)
    browser.find_element(By.ID, "read").click()
    assert until("Remembered") == len(text)
    browser.refresh()
    assert until("Welcome back") == len(text)
    browser.find_element(By.ID, "write").click()
    assert until("Remembered") == len(text) + 120
    assert browser.find_element(By.ID, "written").get_property("textContent") == answer
    browser.find_element(By.ID, "forget").click()
    until("Remembered")
    browser.refresh()
    assert until("Welcome back") == 0
