"""The page in a real browser, used as a visitor would: the whole way through, once."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from playwright.sync_api import Page, expect, sync_playwright
from test_app import save_models

from stages.lm.core import paths

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page with a small model is served from a copy of the project."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("app", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHECKPOINT", "QUANTIZED"):
            patch.setattr(paths, name, folder / "models" / getattr(paths, name).name)
        save_models()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(folder / "app" / "app.py")
    words = ("-m", "streamlit", "run", script, "--server.port", str(port))
    with Path(os.devnull).open("wb") as nothing:
        server = warm.start(folder / "models", *words, output=nothing)
    try:
        limit = time.monotonic() + 60
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)) and time.monotonic() < limit:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


@pytest.fixture
def visitor(address: str) -> Iterator[Page]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(address)
        page.get_by_role("textbox", name="Prompt", exact=True).wait_for()
        yield page
        browser.close()


def written(page: Page) -> str:
    """The text of the first block that is shown."""
    return page.locator("pre code").first.text_content() or ""


def test_a_visit(visitor: Page) -> None:
    page = visitor
    page.get_by_role("textbox", name="Prompt", exact=True).fill("the <b>cat</b> & ")
    page.get_by_role("button", name="Continue the text").click()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    first = written(page)
    assert first.startswith("the <b>cat</b> & ") and len(first) > 100

    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("1.1", exact=True)).to_be_visible()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    # A character that the first text only began is whole now.
    assert written(page).startswith(first.rstrip("\ufffd")) and len(written(page)) > len(first)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("1.1", exact=True)).to_be_hidden()
    assert written(page) == first

    page.get_by_text("Probabilities", exact=True).click()
    tokens = page.locator("span[title]")
    expect(tokens.first).to_be_visible()
    assert tokens.count() > 50
    assert "%" in (tokens.first.get_attribute("title") or "")
    page.get_by_role("button", name=re.compile("→")).or_(
        page.get_by_role("radio", name=re.compile("→"))
    ).nth(1).click()
    expect(page.get_by_text("1.1", exact=True)).to_be_visible()

    page.get_by_role("tab", name="Read").click()
    page.get_by_role("textbox", name="Text", exact=True).fill(
        "the cat sat <script>alert(1)</script>"
    )
    page.get_by_role("button", name="Measure the surprise").click()
    expect(page.get_by_text("Bits per byte", exact=True)).to_be_visible()

    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("textbox", name="Prompt for both").fill("the rat")
    page.get_by_role("button", name="Write with both").click()
    expect(page.get_by_text(re.compile(r"^Checkpoint .* tokens/s")).last).to_be_visible()

    page.get_by_role("tab", name="About this model").click()
    expect(page.get_by_text("Parameters", exact=True).last).to_be_visible()
    assert page.get_by_text("Traceback").count() == 0
