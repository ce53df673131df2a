"""What the page promises."""

import html
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.testing.v1 import AppTest
from tokens_on_disk import write_split

from app import generate
from app.writing import TOP_LOGPROBS
from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id
from stages.lm.data.dataset import TokenData, write_meta
from stages.lm.data.meta import TokenizerMeta
from stages.lm.inference import generation
from stages.lm.inference.generation import (
    GeneratedToken,
    SamplingSettings,
    TokenLogprobs,
    WrittenText,
    chat_ids,
    generate_steps,
    generate_text,
)
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import ModelConfig
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.interface import Tokenizer
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, train_bpe

PAGE = str(Path(__file__).resolve().parents[1] / "app" / "app.py")
BYTES = BytePairTokenizer({bytes([byte]): byte for byte in range(256)}, PATTERNS["gpt-2"], "bytes")
FILES = (
    "CHECKPOINT", "QUANTIZED", "TRAIN_METRICS", "QUANTIZE_METRICS", "EVALUATE_METRICS",
    "LOSS_CURVE", "TOKENS", "PROGRESS",
)  # fmt: skip
PROVENANCE = {
    "data": {"splits": {"train": {"tokens": 411158, "bytes": 1003854}}},
    "metrics": {"epochs": 4, "best_epoch": 3},
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)


def save_tokens(text: str) -> str:
    """Write a training text as bytes; returns the digest of the tokens."""
    ids = {"train": list(text.encode()), "val": [1], "test": [1]}
    splits = {name: write_split(paths.TOKENS, name, [each], 256, 9) for name, each in ids.items()}
    name = TokenizerMeta(BYTES.name, BYTES.pattern)
    write_meta(paths.TOKENS, name, BYTES.to_text(), BYTES.merges(), splits)
    return TokenData.load(paths.TOKENS).digest()


WORDS = train_bpe(iter(["the cat sat on the mat, the rat ran to the hat. " * 5]), 280, "gpt-2")
ANSWERING = WORDS.for_conversations()


def save_models(
    seed: int = 0,
    provenance: dict[str, Any] = PROVENANCE,
    tokenizer: Tokenizer | None = None,
    **shape: int,
) -> None:
    tokenizer = tokenizer or WORDS
    small = {"context": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 8, "width": 16}
    config = ModelConfig(
        arch="qwen3", vocab_size=tokenizer.vocab_size, tie_embeddings=False, dropout=0.0,
        **small | {"ff_width": 32} | shape,
    )  # fmt: skip
    torch.manual_seed(seed)
    tensors = {name: torch.randn_like(t) for name, t in Transformer(config).state_dict().items()}
    parts = TokenizerMeta(tokenizer.name, tokenizer.pattern, *astuple(tokenizer.chat)).stored(
        tokenizer.to_text()
    )
    checkpoint = Checkpoint(config, tensors, parts, provenance)
    checkpoint.save(paths.CHECKPOINT)
    quantize_checkpoint(checkpoint, "int8").save(paths.QUANTIZED)


def save_figures(losses: dict[str, Any], **more: Any) -> None:
    """Metrics that name the saved models."""
    checkpoint, quantized = (artifact_id(path) for path in (paths.CHECKPOINT, paths.QUANTIZED))
    for path, values in {
        paths.TRAIN_METRICS: {"model": checkpoint},
        paths.QUANTIZE_METRICS: {"model": quantized, "checkpoint": checkpoint},
        paths.EVALUATE_METRICS: {
            "float": {"model": checkpoint} | losses,
            "quantized": {"model": quantized} | losses,
            **more,
        },
    }.items():
        path.write_text(json.dumps(values), "utf-8")


def save_byte_models(seed: int = 0) -> None:
    """Models over the 256 bytes: every character but ASCII comes in several tokens."""
    save_models(seed, tokenizer=BYTES)


def page() -> AppTest:
    at = AppTest.from_file(PAGE, default_timeout=30).run()
    assert not at.exception
    return at


def write(at: AppTest, prompt: str) -> list[str]:
    at.text_area(key="prompt").set_value(prompt)
    at.button(key="write").click().run()
    assert not at.exception
    return shown(at)


def shown(at: AppTest) -> list[str]:
    return [block.value for block in at.code if not block.value.startswith("python -m")]


def text_after(loaded: LoadedModel, written: list[int], length: int) -> str:
    """The text after "the cat" when tokens are added to those with the ids `written`."""
    sampling = SamplingSettings()
    rows = generate_steps(loaded, "the cat", length, sampling, 1337, written=written)
    more = "".join(step.text for (step,) in rows if step)
    return WrittenText(loaded, sampling, written).start + more


def terminal(at: AppTest, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command that the page shows prints."""
    (line,) = [block.value for block in at.code if block.value.startswith("python -m")]
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "app.generate"]
    capsys.readouterr()
    generate.main(words[3:])
    return capsys.readouterr().out


def test_a_missing_model_names_the_command() -> None:
    at = page()
    assert "`dvc repro`" in at.info[0].value
    assert not at.button


def test_only_the_title_and_one_sentence_stand_above_the_tabs() -> None:
    save_models()
    assert len(page().title) == len(page().markdown) == 1


def test_a_damaged_model_is_a_sentence() -> None:
    paths.QUANTIZED.write_bytes(b"not a model")
    at = page()
    assert len(at.error) == 1
    assert "is damaged" in at.text[0].value and "`dvc repro`" in at.text[0].value


def test_the_text_is_the_librarys_after_the_prompt() -> None:
    save_models()
    text = generate_text(load_model(paths.QUANTIZED), "the cat", 200, SamplingSettings(), 1337)
    assert write(page(), "the cat") == ["the cat" + text]


def test_white_space_at_both_ends_survives() -> None:
    save_models()
    at = page()
    at.number_input(key="length").set_value(1)
    assert write(at, "\n\n  the")[0].startswith("\n\n  the")


def test_copies_are_marked_with_their_length_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    save_models()
    known = "zwölf Boxkämpfer <b>jagen</b> Viktor quer"
    size = len(known.encode())
    replay(monkeypatch, ["new ", known, " new"])
    digest = save_tokens("0123456789" + known + "the rest")
    save_models(provenance={"data": {"digest": digest}}, tokenizer=BYTES)
    at = page()
    write(at, "")
    at.segmented_control(key="view").set_value("Copied parts").run()
    (block,) = [element.proto.body for element in at.get("html")]
    drawn = re.findall(r'<span title="([^"]*)"[^>]*>(.*?)</span>', block)
    assert drawn == [(f"{size} bytes, as at byte 10 of the training text", html.escape(known))]
    assert re.sub(r"<[^>]*>", "", block) == f"new {html.escape(known)} new"
    share = f"{100 * size / (size + 8):.0f} %"
    assert any(caption.value.startswith(share) for caption in at.caption)
    save_tokens("another text")
    assert "is not in models/tokens/" in at.run().text[0].value


def test_page_and_terminal_write_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    save_models()
    generate.main(["the rat", "--model", str(paths.QUANTIZED)])
    assert [capsys.readouterr().out] == [text + "\n" for text in write(page(), "the rat")]


def replay(monkeypatch: pytest.MonkeyPatch, pieces: Iterable[str]) -> list[tuple[Any, ...]]:
    """Have the engine write these pieces; returns the list of what it is called with."""
    calls: list[tuple[Any, ...]] = []
    odds = TokenLogprobs(-0.5, [(0, -0.5)])

    def replayed(*arguments: Any) -> Iterator[list[GeneratedToken]]:
        calls.append(arguments)
        for piece in pieces:
            yield [GeneratedToken(0, piece.encode(), piece, odds, odds)] * len(arguments[5])

    monkeypatch.setattr(generation, "generate_steps", replayed)
    return calls


def test_every_setting_reaches_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    save_models()
    calls = replay(monkeypatch, ["ok"])
    at = page()
    at.radio(key="model").set_value("Checkpoint (float32)")
    at.number_input(key="length").set_value(7)
    at.slider(key="sequences").set_value(3)
    at.slider(key="temperature").set_value(1.5)
    at.number_input(key="top_k").set_value(11)
    at.slider(key="top_p").set_value(0.5)
    at.slider(key="min_p").set_value(0.25)
    at.slider(key="penalty").set_value(1.5)
    at.number_input(key="cache").set_value(3000)
    at.text_area(key="stop").set_value("END\n\\n\\n")
    at.number_input(key="seed").set_value(99)
    assert write(at, "hello") == ["hellook"] * 3
    settings = SamplingSettings(
        temperature=1.5, top_k=11, top_p=0.5, min_p=0.25, repetition_penalty=1.5,
        cache=3000, stop=("END", "\n\n"),
    )  # fmt: skip
    assert [call[1:] for call in calls] == [("hello", 7, settings, 99, range(3), TOP_LOGPROBS, ())]
    assert {call[0].scheme for call in calls} == {"float32"}
    told = at.caption[0].value
    assert "min-p 0.25, repetition penalty 1.5, cache 3,000, 2 stop strings, seed 99" in told


def test_the_summary_is_silent_about_samplers_that_are_off() -> None:
    save_models()
    at = page()
    write(at, "the")
    assert at.caption[0].value.endswith("temperature 0.8, top-k off, top-p 0.95, seed 1337")


def test_a_text_that_stops_tells_how_many_tokens_it_has() -> None:
    save_models()
    at = page()
    at.text_area(key="stop").set_value("t")
    at.slider(key="sequences").set_value(2)
    settings = SamplingSettings(stop=("t",))
    loaded = load_model(paths.QUANTIZED)
    texts = [generate_text(loaded, "the", 200, settings, 1337, i) for i in range(2)]
    assert write(at, "the") == ["the" + text for text in texts]
    taken = [
        step for row in generate_steps(loaded, "the", 200, settings, 1337, range(2)) for step in row
    ]
    count = sum(step is not None for step in taken)
    assert at.caption[0].value.startswith(f"{count} tokens, ") and count < 400


def test_a_preset_sets_the_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    save_models()
    calls = replay(monkeypatch, ["ok"])
    at = page()
    at.number_input(key="top_k").set_value(11)
    at.pills(key="preset").set_value("Likeliest").run()
    write(at, "")
    assert calls[0][3] == SamplingSettings(temperature=0, top_p=1)


def test_sequences_are_those_of_their_index() -> None:
    save_models()
    at = page()
    at.slider(key="sequences").set_value(4)
    at.number_input(key="length").set_value(40)
    loaded = load_model(paths.QUANTIZED)
    texts = [generate_text(loaded, "the", 40, SamplingSettings(), 1337, i) for i in range(4)]
    assert write(at, "the") == ["the" + text for text in texts]
    assert len(set(texts)) == 4


def test_markup_is_never_rendered() -> None:
    save_models()
    at = page()
    prompt = "<script>alert(1)</script> **bold** $x$ :red[no] ![i](http://a/b.png)"
    assert write(at, prompt)[0].startswith(prompt)
    assert all(block.language in (None, "", "plaintext") for block in at.code)
    rendered = [element.value for element in [*at.markdown, *at.caption, *at.title]]
    assert not any("script" in value or "bold" in value for value in rendered)


@pytest.mark.parametrize(
    "prompt",
    ["", "word " * 200_000, bytes(range(1, 160)).decode("latin-1") + "\u202e\u2028\ufeff"],
    ids=["nothing", "a megabyte", "control characters"],
)
def test_any_prompt_is_continued_as_it_stands(prompt: str) -> None:
    save_models()
    text = generate_text(load_model(paths.QUANTIZED), prompt, 200, SamplingSettings(), 1337)
    assert write(page(), prompt) == [prompt + text]


def test_a_stop_comes_before_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    save_models()

    def stopped_at_the_third() -> Iterator[str]:
        for token in "abcdef":
            if token == "c":
                context = get_script_run_ctx()
                assert context and context.script_requests
                context.script_requests.request_stop()
            yield token

    replay(monkeypatch, stopped_at_the_third())
    at = page()
    write(at, "")
    assert shown(at.run()) == ["abc"]
    assert "stopped early" in at.caption[0].value


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_a_text_outlives_its_models_file(replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    save_models(0)
    text = generate_text(load_model(paths.QUANTIZED), "the", 200, SamplingSettings(), 1337)

    def interrupted(*arguments: Any) -> Iterator[list[GeneratedToken | None]]:
        rows = generate_steps(*arguments)
        yield next(rows)
        save_models(1) if replaced else paths.QUANTIZED.unlink()
        yield from rows

    monkeypatch.setattr(generation, "generate_steps", interrupted)
    at = page()
    assert write(at, "the") == ["the" + text]
    assert len(at.run().info) == (not replaced)


def test_the_text_survives_a_change_of_settings() -> None:
    save_models()
    at = page()
    before = write(at, "the mat")
    at.slider(key="temperature").set_value(1.0).run()
    assert shown(at) == before


def test_a_changed_file_is_read_again() -> None:
    save_models(0)
    at = page()
    before = write(at, "the cat")
    save_models(1)
    after = write(at, "the cat")
    text = generate_text(load_model(paths.QUANTIZED), "the cat", 200, SamplingSettings(), 1337)
    assert after == ["the cat" + text] and after != before


def test_the_card_tells_training_and_evaluation() -> None:
    save_models()
    save_figures({"held_out": {"bits_per_byte": 2.345678}}, baselines={"gzip": 3.21, "xz": 2.1})
    paths.LOSS_CURVE.write_text(
        "step\tepoch\ttrain_loss\tval_loss\tlr\n0\t0\tnan\t6.9\tnan\n"
        "1\t0.1\t6.5\tnan\t0.1\n2\t1\t6.1\t6.2\t0.1\n",
        "utf-8",
    )
    at = page()
    card = {metric.label: metric.value for metric in at.metric}
    assert card["Weights"] == "int8" and card["Training text"] == "1.004 MB"
    assert card["Training tokens"] == "411.2 k" and card["Best epoch, kept"] == "3"
    told = [caption.value for caption in at.caption if "never seen" in caption.value]
    assert "2.35" in told[0] and "less than ` gzip ` and more than ` xz `," in told[0]
    assert not at.warning
    assert not any("word for word" in caption.value for caption in at.caption)


def test_a_conversation_is_answered_as_in_the_terminal_and_markup_stays_text() -> None:
    save_models(0, {"data": {"records": {"train": 1}}}, ANSWERING)
    at = page()
    at.number_input(key="length").set_value(5)
    loaded, asked = load_model(paths.QUANTIZED), []
    for said in ("the <b>cat</b> *sat*", "the rat"):
        at.chat_input(key="message").set_value(said).run()
        asked.append(("user", said))
        text = generate_text(loaded, chat_ids(loaded, asked), 5, SamplingSettings(), 1337)
        asked.append(("assistant", text))
        assert not at.exception
        assert [block.value for block in at.text] == [content for _, content in asked]
    at.button(key="new conversation").click().run()
    assert not at.text


def test_the_card_tells_how_much_is_copied() -> None:
    save_models()
    copied = {"span_bytes": 32, "copied_share": 0.0412, "held_out_copied_share": 0.0}
    save_figures({"held_out": {"bits_per_byte": 2.345678}}, memorisation=copied)
    at = page()
    (told,) = (caption.value for caption in at.caption if "word for word" in caption.value)
    assert "32 bytes" in told and "4.1 %" in told and "0.0 %" in told
    assert not at.warning


def test_damaged_figures_leave_the_page_working() -> None:
    save_models()
    save_figures({"held_out": "none"})
    paths.LOSS_CURVE.write_text("step\ttrain_loss\nx\ty\n", "utf-8")
    at = page()
    assert len(at.warning) == 2 and all("`dvc repro`" in each.value for each in at.warning)
    assert write(at, "the")[0].startswith("the")


def test_going_on_continues_a_text_and_undo_takes_it_back() -> None:
    save_models()
    at = page()
    at.number_input(key="length").set_value(20)
    first = write(at, "the cat")
    at.button(key="go on 0").click().run()
    assert not at.exception
    sampling = SamplingSettings()
    text = generate_text(load_model(paths.QUANTIZED), "the cat", 40, sampling, 1337)
    assert shown(at) == ["the cat" + text]
    assert at.pills(key="branch 1.1 of 2").options == ["1", "1.1"]
    at.pills(key="branch 1.1 of 2").set_value("1").run()
    assert shown(at) == first
    at.pills(key="branch 1 of 2").set_value("1.1").run()
    at.button(key="undo").click().run()
    assert shown(at) == first
    at.button(key="undo").click().run()
    assert shown(at) == []


def test_a_branch_goes_on_from_another_token_and_reproduces() -> None:
    save_models()
    at = page()
    at.number_input(key="length").set_value(20)
    write(at, "the cat")
    at.segmented_control(key="view").set_value("Probabilities").run()
    (block,) = [element.proto.body for element in at.get("html")]
    loaded = load_model(paths.QUANTIZED)
    rows = list(generate_steps(loaded, "the cat", 20, SamplingSettings(), 1337, (0,), TOP_LOGPROBS))
    steps = [step for (step,) in rows if step]
    drawn = html.unescape(re.sub(r"<[^>]*>", "", block))
    assert drawn == "the cat" + "".join(step.text for step in steps)
    place = 3
    at.selectbox(key="token").set_value(place).run()
    options = at.pills(key="alternative").options
    before = steps[place].before
    assert before and len(options) >= TOP_LOGPROBS
    token = before.top[0][0]
    share = math.exp(before.top[0][1])
    assert options[0].split(" → ")[0].endswith(f" {100 * share:.2g} %")
    written = [*(step.token for step in steps[:place]), token]
    at.pills(key="alternative").set_value(token).run()
    assert not at.exception
    at.segmented_control(key="view").set_value("Text").run()
    assert shown(at) == ["the cat" + text_after(loaded, written, 19 - place)]


def test_parts_that_end_within_characters_are_the_text_written_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_byte_models()
    at = page()
    at.slider(key="sequences").set_value(4)
    at.number_input(key="length").set_value(3)
    write(at, "我 ü")
    at.number_input(key="length").set_value(7)
    at.button(key="go on 2").click().run()
    loaded, sampling = load_model(paths.QUANTIZED), SamplingSettings()
    for length in range(10, 40, 7):
        whole = "我 ü" + generate_text(loaded, "我 ü", length, sampling, 1337, 2)
        assert shown(at) == [whole]
        assert terminal(at, capsys) == whole + "\n"
        at.button(key="go on 0").click().run()
        assert not at.exception


def test_a_branch_may_begin_with_a_part_of_a_character(capsys: pytest.CaptureFixture[str]) -> None:
    save_byte_models()
    at = page()
    at.number_input(key="length").set_value(20)
    write(at, "the cat")
    at.segmented_control(key="view").set_value("Probabilities").run()
    loaded = load_model(paths.QUANTIZED)
    rows = generate_steps(loaded, "the cat", 20, SamplingSettings(), 1337, (0,), TOP_LOGPROBS)
    steps = [step for (step,) in rows if step]
    parts = [
        (place, token)
        for place, step in enumerate(steps)
        for token, _ in step.before.top
        if token >= 0xC2 and token != step.token
    ]
    assert len(parts) > 1
    for place, token in parts[:2]:
        at.selectbox(key="token").set_value(place).run()
        at.pills(key="alternative").set_value(token).run()
        at.segmented_control(key="view").set_value("Text").run()
        written = [*(step.token for step in steps[:place]), token]
        assert shown(at) == ["the cat" + text_after(loaded, written, max(1, 19 - place))]
        assert terminal(at, capsys) == shown(at)[0] + "\n"
        at.button(key="undo").click().run()
        at.segmented_control(key="view").set_value("Probabilities").run()


def test_the_alternatives_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [bytes([byte]) for byte in range(256)] + [rb"\n", rb"\x00", rb"\xe2", rb"\\"]
    ranks = {data: token for token, data in enumerate(texts)}
    save_models(tokenizer=BytePairTokenizer(ranks, PATTERNS["gpt-2"], "bytes"))
    odds = TokenLogprobs(-0.5, [(token, -7.0) for token in range(260)])
    steps = [[GeneratedToken(10, b"\n", "\n", odds, odds)]]
    monkeypatch.setattr(generation, "generate_steps", lambda *_: iter(steps))
    at = page()
    write(at, "")
    at.segmented_control(key="view").set_value("Probabilities").run()
    assert len(set(at.pills(key="alternative").options)) == 260


def test_a_text_is_gone_on_with_by_a_model_of_another_vocabulary() -> None:
    save_byte_models()
    at = page()
    at.number_input(key="length").set_value(20)
    write(at, "the cat")
    rows = generate_steps(load_model(paths.QUANTIZED), "the cat", 20, SamplingSettings(), 1337)
    data = b"".join(step.data for (step,) in rows if step)
    save_models()
    at.button(key="go on 0").click().run()
    assert not at.exception
    loaded = load_model(paths.QUANTIZED)
    written = loaded.tokenizer.encode(data)
    assert shown(at) == ["the cat" + text_after(loaded, written, 20)]


def test_nothing_goes_on_after_a_stop_string_unless_it_is_taken_back() -> None:
    save_models()
    at = page()
    at.text_area(key="stop").set_value("t")
    text = write(at, "the")
    assert at.button(key="go on 0").disabled
    at.text_area(key="stop").set_value("").run()
    assert not at.button(key="go on 0").disabled
    at.button(key="go on 0").click().run()
    assert shown(at)[0].startswith(text[0] + "t")


def test_the_terminal_command_repeats_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    save_models()
    at = page()
    at.radio(key="model").set_value("Checkpoint (float32)")
    at.number_input(key="length").set_value(30)
    at.slider(key="temperature").set_value(1.25)
    at.slider(key="penalty").set_value(1.5)
    at.number_input(key="cache").set_value(20)
    at.text_area(key="stop").set_value("\\n\\n\n-q")
    texts = write(at, '-- it\'s\nthe "rat" \\n ')
    assert terminal(at, capsys) == texts[0] + "\n"


def test_an_answer_stands_under_its_prompt_and_is_gone_on_with_after_it() -> None:
    save_models(0, {"data": PROVENANCE["data"] | {"records": {"train": 1234}}}, ANSWERING)
    at = page()
    at.number_input(key="length").set_value(5)
    loaded = load_model(paths.QUANTIZED)
    text = generate_text(loaded, "the cat", 5, SamplingSettings(), 1337)
    longer = generate_text(loaded, "the cat", 10, SamplingSettings(), 1337)
    assert write(at, "the cat") == [f"the cat\n{text}"]
    assert at.button(key="write").label == "Answer"
    assert "Training records" in {metric.label for metric in at.metric}
    at.button(key="go on 0").click().run()
    assert shown(at) == [f"the cat\n{longer}"]
    (command,) = (block.value for block in at.code if block.value.startswith("python -m"))
    assert "--written" in command and command.endswith(" 'the cat'")


def test_the_card_tells_how_many_records_are_answered() -> None:
    save_models()
    losses = {"held_out": {"bits_per_byte": 0.5}, "exact_match": 0.9125}
    save_figures(losses, asked_records=400, majority=0.25)
    told = {metric.label: metric.value for metric in page().metric}
    assert told["Answered exactly"] == "91.2 %" and told["Majority label"] == "25.0 %"
    assert told["Records asked"] == "400"
