"""Pictures of the page, in both widths and both themes, from a real browser.

    python tests/benchmarks/screenshots.py --out FOLDER            every view
    python tests/benchmarks/screenshots.py --readme                app/screenshot.png alone

Needs the models of a finished `dvc repro` and a Chromium of the system. The page is started on a
free port and used as a visitor would use it.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"wide": (1400, 900), "narrow": (390, 844)}
PROMPT = "Returns the shortest path"
TEXT = "Returns the shortest path between two nodes of a graph, or a teapot full of rain."


@contextmanager
def server() -> Iterator[str]:
    """The page of this project; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/app.py", "--server.port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def write(page: Page) -> None:
    """Have a text written."""
    page.get_by_role("textbox", name="Prompt").fill(PROMPT)
    page.get_by_role("button", name="Continue the text").click()
    page.get_by_text("tokens/s").wait_for(timeout=60_000)


def choose(page: Page, name: str) -> None:
    """Show the text in one of the ways there are."""
    page.get_by_role("radio", name=name).or_(page.get_by_role("button", name=name)).first.click()


def odds(page: Page) -> None:
    """Show the odds of each token that was written."""
    write(page)
    choose(page, "Probabilities")
    page.locator("span[title]").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Go on", exact=True).scroll_into_view_if_needed()


def copied(page: Page) -> None:
    """Show what of the text stands in the training text."""
    write(page)
    choose(page, "Copied parts")
    page.get_by_text("stands word for word").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Go on", exact=True).scroll_into_view_if_needed()


def read(page: Page) -> None:
    """Have a text read."""
    page.get_by_role("tab", name="Read").click()
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_role("button", name="Measure the surprise").click()
    page.locator("span[title]").first.wait_for(timeout=60_000)


def attention(page: Page) -> None:
    """Show what a head looks at."""
    read(page)
    page.get_by_text("Attention", exact=True).click()
    page.locator("svg.marks:visible").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    page.mouse.wheel(0, 2000)


def compare(page: Page) -> None:
    """Have two models write."""
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("textbox", name="Prompt for both").fill(PROMPT)
    page.get_by_role("button", name="Write with both").click()
    page.locator("code").nth(1).wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").wait_for(state="hidden", timeout=60_000)


def about(page: Page) -> None:
    """Show the model's card."""
    page.get_by_role("tab", name="About this model").click()
    page.get_by_text("Loss while training").wait_for(timeout=60_000)


def curves(page: Page) -> None:
    """Show how the training went."""
    about(page)
    page.get_by_text("Loss while training").scroll_into_view_if_needed()
    page.mouse.wheel(0, 2000)


VIEWS = {
    view.__name__: view for view in (write, odds, copied, read, attention, compare, about, curves)
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    parser.add_argument("--readme", action="store_true", help="only app/screenshot.png")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with server() as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        for size, (width, height) in SIZES.items():
            for theme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=theme
                )
                for name, use in VIEWS.items():
                    page = context.new_page()
                    page.goto(address)
                    page.get_by_role("textbox", name="Prompt").wait_for(timeout=120_000)
                    use(page)
                    page.wait_for_timeout(500)
                    if asked.readme:
                        page.screenshot(path=ROOT / "app" / "screenshot.png")
                        return
                    asked.out.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=asked.out / f"{name}-{size}-{theme}.png")
                    page.close()
        browser.close()


if __name__ == "__main__":
    main()
