"""How soon and how fast the page shows text, in a real browser, beside the engine alone.

    PYTHONPATH=tests:. python tests/benchmarks/responsiveness.py

Needs the models of a finished `dvc repro`, a Chromium of the system and an idle machine. The page
is warm: one text has been written. Times are the browser's: from the click on the button to the
first character after the prompt, from it to the last one, and from the click on Stop to the text
that stays. A browser takes processor time from the engine where both are on one machine, so the
same is measured of a visitor who only reads the websocket. The engine's speed is that of
`generate_steps` in this process, rounds in turn with the page's; with the odds of each token, which
the page asks for and keeps.
"""

import argparse
import asyncio
import re
import shutil
import statistics
import time

from playwright.sync_api import Page, sync_playwright
from screenshots import PROMPT, server
from sessions import Visitor

from app.writing import TOP_LOGPROBS
from stages.lm.core import paths
from stages.lm.inference.generation import SamplingSettings, generate_steps
from stages.lm.inference.loading import LoadedModel, load_model

WATCH = """(prompt) => {
    const seen = (window.seen = {click: 0, first: 0, last: 0, text: ""});
    document.addEventListener("click", () => { seen.click = performance.now(); },
                              {capture: true, once: true});
    const look = () => {
        const block = document.querySelector("pre code");
        const text = block ? block.textContent : "";
        if (seen.click && text.length > prompt.length && text !== seen.text) {
            seen.last = performance.now();
            seen.first = seen.first || seen.last;
            seen.text = text;
        }
    };
    window.watcher?.disconnect();
    window.watcher = new MutationObserver(look);
    window.watcher.observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""Notes when a text longer than the prompt is in the page, and when it last changed."""


def engine_rate(loaded: LoadedModel, length: int, likeliest: int | None, seed: int) -> float:
    """Tokens a second of the engine alone, from the first token to the last."""
    rows = generate_steps(loaded, PROMPT, length, SamplingSettings(), seed, range(1), likeliest)
    next(rows)
    began = time.perf_counter()
    count = sum(1 for _ in rows)
    return count / (time.perf_counter() - began)


def press(page: Page, name: str) -> None:
    """Click a button while the watcher looks on."""
    page.evaluate("() => 0")  # whatever is under way in the browser comes first
    page.get_by_role("button", name=name, exact=True).click()


def write(page: Page, length: int, seed: int) -> tuple[float, float]:
    """Have a text written; returns ms to its first character, and tokens a second from it on."""
    for label, value in (("Length in tokens", length), ("Seed", seed)):
        box = page.get_by_role("spinbutton", name=label)
        box.fill(str(value))
        box.press("Enter")
    page.wait_for_timeout(500)
    # The caption of the text before would be taken for this one's.
    page.evaluate(WATCH, PROMPT)
    press(page, "Continue the text")
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden", timeout=120_000)
    caption = page.get_by_text("tokens/s").inner_text()
    count = int(re.search(r"([\d,]+) tokens,", caption)[1].replace(",", ""))  # type: ignore[index]
    seen = page.evaluate("window.seen")
    return seen["first"] - seen["click"], 1000 * (count - 1) / (seen["last"] - seen["first"])


async def websocket_rates(port: int, length: int, rounds: int) -> list[float]:
    """Tokens a second that the page counts itself, by a visitor who draws nothing."""
    visitor = await Visitor.arrive(port)
    rates = []
    for seed in range(rounds + 1):
        await visitor.write(PROMPT, length, seed)
        captions = [each.markdown.body for each in visitor.elements.values()]
        (rate,) = [found[1] for c in captions if (found := re.search(r"([\d,]+) tokens/s", c))]
        rates.append(float(rate.replace(",", "")))
    return rates[1:]


def stop(page: Page, length: int) -> tuple[float, int]:
    """Stop a text; returns ms until it stands, and how many characters came after the click."""
    write_button = page.get_by_role("button", name="Continue the text")
    box = page.get_by_role("spinbutton", name="Length in tokens")
    box.fill(str(length))
    box.press("Enter")
    page.wait_for_timeout(500)
    write_button.click()
    button = page.get_by_role("button", name="Stop", exact=True)
    button.wait_for()
    page.wait_for_timeout(700)
    page.evaluate(WATCH, PROMPT)
    before = len(page.locator("pre code").first.text_content() or "")
    button.click()
    button.wait_for(state="hidden")
    page.get_by_text("stopped early").wait_for()
    seen = page.evaluate("window.seen")
    return seen["last"] - seen["click"], len(seen["text"]) - before


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=2000, help="tokens of a text")
    asked = parser.parse_args()
    loaded = load_model(paths.QUANTIZED)
    first, drawn, rates, plain, stops = [], [], [], [], []
    with server() as address:
        with sync_playwright() as play:
            browser = play.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.set_default_timeout(60_000)
            page.goto(address)
            page.get_by_role("textbox", name="Prompt").fill(PROMPT)
            for seed in range(asked.rounds + 1):
                soon, rate = write(page, asked.length, seed)
                if seed:  # the first one warms up
                    first.append(soon)
                    drawn.append(rate)
                    rates.append(engine_rate(loaded, asked.length, TOP_LOGPROBS, seed))
                    plain.append(engine_rate(loaded, asked.length, None, seed))
            stops = [stop(page, 4000) for _ in range(asked.rounds)]
            browser.close()
        port = int(address.rpartition(":")[2])
        read = asyncio.run(websocket_rates(port, asked.length, asked.rounds))
    middle = statistics.median
    engine = middle(rates)
    print(f"first text after {middle(first):.0f} ms, at most {max(first):.0f} ms")
    print(f"tokens/s of the engine: {engine:,.0f} with odds, {middle(plain):,.0f} without")
    for name, values in (("browser", drawn), ("websocket", read)):
        print(f"tokens/s of the page, {name}: {middle(values):,.0f}, {middle(values) / engine:.2f}")
    print(f"stop: the text stands after {middle(ms for ms, _ in stops):.0f} ms")
    print("characters between click and end:", [count for _, count in stops])


if __name__ == "__main__":
    main()
