"""What `python -m app.generate` promises."""

import io
import os
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
import warm

from app import generate
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.data.meta import TokenizerMeta
from stages.lm.inference.generation import SamplingSettings, chat_ids, generate_steps, generate_text
from stages.lm.inference.loading import load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import ModelConfig
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.tokenizer import train_bpe

GREEDY = SamplingSettings(temperature=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = train_bpe(
        iter(["the cat sat on the mat, the rat ran to the hat. " * 5]), 280, "gpt-2"
    )
    config = ModelConfig(
        arch="qwen3", vocab_size=tokenizer.vocab_size, context=32, layers=1, heads=2, kv_heads=2,
        head_size=8, width=16, ff_width=32, tie_embeddings=False, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tensors = {name: torch.randn_like(t) for name, t in Transformer(config).state_dict().items()}
    parts = TokenizerMeta(tokenizer.name, tokenizer.pattern, *astuple(tokenizer.chat)).stored(
        tokenizer.to_text()
    )
    path = tmp_path / "model.pt"
    quantize_checkpoint(Checkpoint(config, tensors, parts, {}), "int8").save(path)
    return path


def test_what_was_written_is_gone_on_with(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(model)
    rows = list(generate_steps(loaded, "the", 9, SamplingSettings(), 1337, range(3)))
    texts = ["".join(step.text for step in column) for column in zip(*rows, strict=True)]
    for place, column in enumerate(zip(*rows, strict=True), 1):
        written = ",".join(str(step.token) for step in column[:4])
        flags = ["--written", written, "--length", "5", "--first", str(place)]
        generate.main(["the", *flags, "--model", str(model)])
        assert capsys.readouterr().out == f"the{texts[place - 1]}\n"


def test_the_later_of_many_sequences_can_be_written_alone(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["the", "--length", "9", "--model", str(model)]
    generate.main([*flags, "--sequences", "4"])
    every = capsys.readouterr().out
    generate.main([*flags, "--sequences", "2", "--first", "3"])
    later = capsys.readouterr().out
    assert later.startswith("--- 3 of 4 ---\n") and every.endswith(later)


def test_of_an_answer_nothing_but_itself_is_printed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(model)
    loaded = replace(
        loaded,
        provenance={"data": {"records": {"train": 1}}},
        tokenizer=loaded.tokenizer.for_conversations(),
    )
    monkeypatch.setattr(generate, "load_model", lambda path: loaded)
    generate.main(["the cat", "--length", "9"])
    text = generate_text(loaded, "the cat", 9, SamplingSettings(), 1337)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_conversation_goes_on_line_by_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(model)
    flags = ["Be brief.", "--chat", "--length", "5", "--temperature", "0"]
    monkeypatch.setattr(generate, "load_model", lambda path: loaded)
    with pytest.raises(UserError, match="no chat template"):
        generate.main(flags)
    loaded = replace(loaded, tokenizer=loaded.tokenizer.for_conversations())
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe rat\n\nthe cat\n"))
    generate.main(flags)
    told, asked = "", [("system", "Be brief.")]
    for said in ("the cat", "the rat"):
        asked.append(("user", said))
        text = generate_text(loaded, chat_ids(loaded, asked), 5, GREEDY, 1337)
        asked.append(("assistant", text))
        told += f"{text}\n"
    assert capsys.readouterr().out == told + f"{asked[2][1]}\n"


def test_output_is_the_prompt_and_the_librarys_text(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SamplingSettings(temperature=1.2, top_k=30, top_p=0.9)
    flags = f"--length 70 --temperature 1.2 --top-k 30 --top-p 0.9 --seed 5 --model {model}"
    code = generate.main(["the cat", *flags.split()])
    text = generate_text(load_model(model), "the cat", 70, settings, 5)
    assert (code, capsys.readouterr().out) == (0, f"the cat{text}\n")


def test_defaults_are_the_samplers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["--model", str(model)])
    text = generate_text(load_model(model), "", 200, SamplingSettings(), 1337)
    assert capsys.readouterr().out == f"{text}\n"


def test_sequences_are_numbered_and_each_its_own(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.main(["the", "--sequences", "2", "--length", "9", "--model", str(model)])
    loaded = load_model(model)
    texts = [generate_text(loaded, "the", 9, SamplingSettings(), 1337, i) for i in range(2)]
    expected = f"--- 1 of 2 ---\nthe{texts[0]}\n--- 2 of 2 ---\nthe{texts[1]}\n"
    assert capsys.readouterr().out == expected
    assert texts[0] != texts[1]


def test_every_sampler_and_stop_string_has_its_flag(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SamplingSettings(
        temperature=2, top_p=1, min_p=0.01, repetition_penalty=1.2, cache=9, stop=("cat", "\n")
    )
    flags = "--temperature 2 --top-p 1 --min-p 0.01 --repetition-penalty 1.2 --cache 9"
    flags += " --stop cat --stop \\n"
    generate.main(["the", *flags.split(), "--length", "150", "--model", str(model)])
    text = generate_text(load_model(model), "the", 150, settings, 1337)
    assert capsys.readouterr().out == f"the{text}\n"
    assert not {"cat", "\n"} & {*text} and len(text) < 150


def test_logprobs_are_a_line_for_each_token(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--length", "5", "--logprobs", "2", "--top-k", "1", "--sequences", "2"]
    generate.main(["the", *flags, "--model", str(model)])
    loaded = load_model(model)
    printed = capsys.readouterr().out
    for row in generate_steps(loaded, "the", 5, SamplingSettings(top_k=1), 1337, top_logprobs=2):
        (step,) = row
        assert step and step.before
        (first, log), (second, other) = step.before.top
        names = [loaded.tokenizer.tokens[i] for i in (first, second)]
        line = f"{step.data!r}  {log:.4f}  {names[0]!r} {log:.4f}  {names[1]!r} {other:.4f}  |  "
        line += f"0.0000  {step.data!r} 0.0000\n"  # alone after top-k 1, so certain
        assert line.replace("-0.0000", "0.0000") in printed.replace("-0.0000", "0.0000")
    assert printed.count("  |  ") == 10


def test_more_sequences_than_a_batch_holds_are_all_written(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["the", "--sequences", "5", "--length", "9", "--model", str(model)]
    generate.main(flags)
    together = capsys.readouterr().out
    monkeypatch.setattr(generate, "BATCH", 2)
    generate.main(flags)
    assert capsys.readouterr().out == together and together.count("---\n") == 5


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("the cat\n", "the cat"),
        ("\ufeffthe cat\r\n", "the cat"),
        ("the\n\n", "the\n"),
        (r"the \n cat", r"the \n cat"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--prompt-file", "-"], ["--prompt-file", "{file}"]])
def test_a_prompt_comes_from_a_file_or_a_pipe_as_it_is(
    content: str, prompt: str, flags: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(content.encode())
    asked = generate.parser().parse_args([flag.format(file=file) for flag in flags])
    saved = os.dup(0)
    with file.open() as piped:
        os.dup2(piped.fileno(), 0)
    try:
        assert generate.read_prompt(asked) == prompt
    finally:
        os.dup2(saved, 0)
        os.close(saved)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"a\nb", "a\nb"),
        (r"a\\nb", r"a\nb"),
        (r"\\\n", r"\\n"),
        (r"C:\dir", r"C:\dir"),
        ("a\n", "a\n"),
    ],
)
def test_a_new_line_is_written_out_in_prompts_and_stop_strings(typed: str, text: str) -> None:
    asked = generate.parser().parse_args(["--stop", typed, "--", typed])
    assert (generate.read_prompt(asked), asked.stop) == (text, [text])


def test_what_is_dropped_of_a_long_prompt_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "".join(f"cat {number} " for number in range(30))
    generate.main([prompt, "--length", "1", "--model", str(model)])
    told = capsys.readouterr().err
    ids = load_model(model).tokenizer.encode(prompt.encode())
    assert f"has {len(ids)} tokens" in told and f"first {len(ids) - 16} are dropped" in told
    generate.main(["the cat", "--length", "40", "--model", str(model)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prompt", ["-Hello", "-hello", "--hello"])
def test_a_prompt_with_a_dash_in_front_is_told_its_place(prompt: str) -> None:
    with pytest.raises(UserError, match=r"comes after --: `python -m app.generate -- -x`"):
        generate.main([prompt])


def test_a_prompt_without_quotes_is_told_its_quotes() -> None:
    with pytest.raises(UserError, match=r"several words stands in quotes: `.* \"a b\"`"):
        generate.main(["The", "graph"])


def test_a_prompt_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    flags = ["--prompt-file", str(file)]
    with pytest.raises(UserError, match="prompt is missing"):
        generate.main(flags)
    file.write_bytes(b"the \xff")
    with pytest.raises(UserError, match=r"prompt is not UTF-8 \(byte 5"):
        generate.main(flags)
    with pytest.raises(UserError, match="leave one of them out"):
        generate.main([*flags, "the"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--length", "-1"],
        ["--length", "many"],
        ["--sequences", "0"],
        ["--temperature", "-0.1"],
        ["--temperature", "nan"],
        ["--top-k", "-1"],
        ["--top-p", "1.5"],
        ["--min-p", "-0.5"],
        ["--repetition-penalty", "0"],
        ["--stop", ""],
        ["--written", "the"],
        ["--written", "1,,2"],
        ["--first", "0"],
        ["--logprobs", "-2"],
        ["--seed", "-3"],
        ["--colour=red"],
        ["--model", "models/none.pt"],
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        generate.main(arguments)
    assert "\n" not in str(caught.value)
    assert arguments[-1] in str(caught.value)


@pytest.mark.parametrize("written", ["99999", "1,-1"])
def test_tokens_that_the_model_has_not_are_refused_before_any_text(
    written: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="written by another model"):
        generate.main(["the", "--written", written, "--model", str(model)])
    assert capsys.readouterr().out == ""


def test_an_error_is_one_line_and_exit_code_1() -> None:
    done = warm.python(paths.ROOT, "-m", "app.generate", "--length", "-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_terminal_that_is_not_utf8_gets_utf8(model: Path) -> None:
    words = ("-m", "app.generate", "ä€", "--length", "3", "--model", str(model))
    done = warm.python(paths.ROOT, *words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ä€")


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently there")
def test_a_reader_that_leaves_early_hears_nothing(model: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ("-m", "app.generate", "--length", "2", "--model", str(model))
    with os.fdopen(writing, "wb") as pipe, (tmp_path / "errors").open("wb") as errors:
        code = warm.start(paths.ROOT, *words, output=pipe, errors=errors).wait()
    assert (code, (tmp_path / "errors").read_bytes()) == (0, b"")
