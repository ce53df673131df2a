"""The page in a real browser, used as a visitor would: the whole way through, once."""

import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import warm
from playwright.sync_api import Locator, Page, expect, sync_playwright
from test_app import FILES, save_models
from test_foreign_text import ALL, HOST, HOSTILE, hostile_files

from app.marking import escaped
from stages.lm.core import paths

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed here"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a small model."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("app", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHECKPOINT", "QUANTIZED"):
            patch.setattr(paths, name, folder / "models" / getattr(paths, name).name)
        save_models()
    return folder


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where its page is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(project / "app" / "app.py")
    words = ("-m", "streamlit", "run", script, "--server.port", str(port))
    with Path(os.devnull).open("wb") as nothing:
        server = warm.start(project / "models", *words, output=nothing)
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


def test_foreign_text_is_text(
    visitor: Page, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, asked = visitor, []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    for name in (*FILES, "PARAMS"):
        monkeypatch.setattr(paths, name, project / getattr(paths, name).relative_to(paths.ROOT))
    for folder in ("metrics", "data"):
        (project / folder).mkdir()
    hostile_files(project)
    page.reload()
    read = time.monotonic()  # at the latest, the experiments
    page.get_by_role("textbox", name="Prompt", exact=True).fill(ALL)
    page.get_by_role("button", name=re.compile("Answer|Continue the text")).click()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    page.get_by_text("Probabilities", exact=True).click()
    expect(page.locator("span[title*=zq]").first).to_be_attached()
    expect(page.get_by_role("radio", name=re.compile("zq.*→")).first).to_be_visible()
    open_choices(page, "Token")
    expect(page.get_by_role("option", name=re.compile("zq")).first).to_be_visible()
    page.keyboard.press("Escape")
    check_no_markup(page)

    page.get_by_role("tab", name="Read").click()
    page.get_by_role("textbox", name="Text", exact=True).fill(ALL)
    page.get_by_role("button", name="Measure the surprise").click()
    page.get_by_text("The least expected tokens").click()
    page.get_by_text("Attention", exact=True).click()
    expect(page.get_by_text("the darker a cell")).to_be_visible()
    check_no_markup(page)

    page.get_by_role("tab", name="About this model").click()
    expect(page.get_by_text("never seen")).to_be_visible()
    expect(page.locator("[data-testid=stVegaLiteChart]").last).to_be_visible()
    check_no_markup(page)
    told = [text.replace("\u2060", "") for text in page.locator("code").all_text_contents()]
    assert {escaped(name) for name in HOSTILE} <= {*told}

    page.get_by_role("tab", name="Compare").click()
    page.wait_for_timeout(1000 * max(0, read + 11 - time.monotonic()))  # until they are read again
    page.get_by_role("button", name="Write with both").click()
    expect(page.get_by_text("tokens/s").last).to_be_visible()
    open_choices(page, "Right")
    page.get_by_role("option").nth(2).click()
    press(page, "Write with both", page.locator("code", has_text="$zq$<b>_zq_").last)
    check_no_markup(page)
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(page.url).netloc}


def open_choices(page: Page, name: str) -> None:
    """Open a list of choices; a page that is being drawn may pass over a key."""
    while not page.get_by_role("option").count():
        page.get_by_role("combobox", name=name).press("ArrowDown")
        page.wait_for_timeout(200)


def press(page: Page, name: str, shown: Locator) -> None:
    """Press a button until it has acted; a page that is being drawn may pass over a click."""
    for _ in range(10):
        page.get_by_role("button", name=name).click()
        with contextlib.suppress(AssertionError):
            expect(shown).to_be_visible(timeout=8_000)
            return
    expect(shown).to_be_visible()


def check_no_markup(page: Page) -> None:
    """Nothing is made of what is foreign; Streamlit has icons of its own."""
    made = "img, .katex, script, iframe, em, strong, del, blockquote, sup"
    assert page.locator("[data-testid=stMain]").locator(made).count() == 0
    assert page.get_by_role("heading", name=re.compile("zq")).count() == 0
    assert page.locator(f"a[href*='{HOST}'], [aria-label='home icon']").count() == 0
    assert not re.search("😄|zq → zq", page.locator("body").inner_text())
