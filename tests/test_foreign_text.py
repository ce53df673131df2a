"""What comes from model files, metrics, experiments and texts is shown as text, never as markup."""

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
import yaml
from google.protobuf.message import Message
from streamlit.testing.v1 import AppTest
from test_app import PAGE, page, save_figures, save_models, write
from test_app import files as files  # the fixture that keeps the project's own files away

from app.marking import plain, visible
from stages.lm.core import paths
from stages.lm.core.artifact import read_artifact, write_artifact
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.quantization import quantized_model
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer

HOST = "zq.invalid"
HOSTILE = [
    f"![zq](http://{HOST}/a.png)",
    f"[![zq](http://{HOST}/b.png)](http://{HOST})",
    f"[zq](http://{HOST} 'title')",
    f"<http://{HOST}/auto>",
    f"http://{HOST}/x",
    f"www.{HOST}",
    f"a@{HOST}",
    f"<img src=http://{HOST}/c.png onerror=alert(1)>zq",
    f"<script src=http://{HOST}/d.js></script>zq",
    f"<a href=http://{HOST}>zq</a>",
    "<!-- zq -->",
    "*zq*",
    "__zq__",
    "~~zq~~",
    "$zq$",
    "$$\\int zq$$",
    "\\(zq\\)",
    ":red[zq]",
    ":blue-background[zq]",
    ":orange-badge[zq]",
    ":small[zq]",
    ":material/home: zq",
    ":streamlit: zq",
    ":smile: zq",
    "zq -> zq",
    "`zq",
    "zq`",
    "``zq`` *zq*",
    "``` zq\n*zq*",
    "# zq",
    "- zq",
    "1. zq",
    "> zq",
    "    zq",
    "zq\n\n*zq*",
    "| zq |\n|---|\n| *zq* |",
    "[^1] zq\n\n[^1]: zq",
    "\\zq\\",
    "&lt;zq&#42;",
    "\u202ezq\x1b[31mzq\x9b\x07",
]
ALL = "\n".join(HOSTILE)
FORMATS = {quantized_model.KIND: quantized_model.VERSION}
PLAIN = {
    ("Text", "body"),
    ("Code", "code_text"),
    ("Selectbox", "options"),
    ("TextArea", "default"),
    ("TextArea", "value"),
    ("VegaLiteChart", "spec"),
    ("Html", "body"),
}
"""Fields that the browser shows as text: test_browser.py looks. The last is HTML, escaped."""


def strings(message: Message) -> Iterator[tuple[tuple[str, str], str]]:
    """Every string in what is sent to the browser, with the message and the field it stands in."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from strings(item)
            elif isinstance(item, str):
                yield (message.DESCRIPTOR.name, field.name), item


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", {}).values():
        yield from nodes(child)


def check(at: AppTest) -> str:
    """Nothing foreign stands in Markdown but as code; returns all the Markdown there is."""
    assert not at.exception
    seen = ""
    for node in nodes(at._tree):
        if not isinstance(getattr(node, "proto", None), Message):
            continue
        for place, text in strings(node.proto):
            if place == ("Html", "body"):
                assert "zq" not in "".join(re.findall("<.*?>", re.sub('title=".*?"', "", text)))
            if place not in PLAIN:
                seen += text
                code = re.sub(r"(?<!`)(`+)(?!`)[^\n]*?[^`\n]\1(?!`)", "", text)
                assert "zq" not in code, (place, text)
    return seen + "".join(map(str, (table.value.to_numpy().tolist() for table in at.table)))


TOKENS = [text.encode() for text in HOSTILE]
TOKENIZER = BytePairTokenizer(
    {token: rank for rank, token in enumerate([*(bytes([b]) for b in range(256)), *TOKENS])},
    PATTERNS["gpt-2"],
    ALL,
)


def hostile_files(root: Path) -> None:
    """A model that writes hostile tokens, its figures, and two experiments: all of it hostile."""
    paths.PARAMS.write_text("recipe: quick\n")
    odd = {"epochs": ALL, "best_epoch": ALL, "tokens": ALL, "bytes": ALL, ALL: ALL}
    data = {"splits": {"train": odd}, "records": {"train": ALL}}
    save_models(0, {"data": data, "metrics": odd, ALL: ALL}, TOKENIZER)
    checkpoint = Checkpoint.load(paths.CHECKPOINT)
    checkpoint.tensors["head.weight"][:256] /= 10
    checkpoint.save(paths.CHECKPOINT)
    quantize_checkpoint(checkpoint, "int8").save(paths.QUANTIZED)
    save_figures(
        {"held_out": {"bits_per_byte": 2.5}, ALL: ALL},
        baselines=dict.fromkeys(HOSTILE, 3.0),
        memorisation={"span_bytes": ALL, "copied_share": 0.1, "held_out_copied_share": 0.1},
    )
    paths.LOSS_CURVE.write_text("step\ttrain_loss\tval_loss\n0\tnan\t6.9\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    settings = {"train": {name: name for name in HOSTILE}, "recipe": ALL}
    for name, params in (("$zq$<b>_zq_`a@zq.invalid`www.zq.invalid", settings), ("zq", odd)):
        for words in (["init"], ["add", "-A"], ["commit", "-m", "zq"]):
            paths.PARAMS.write_text(yaml.safe_dump(params))
            subprocess.run([*git, *words], cwd=root, check=True, capture_output=True)
        ref = f"refs/exps/ab/cdef/{name}"
        subprocess.run([*git, "update-ref", ref, "HEAD"], cwd=root, check=True)
    paths.PARAMS.write_text("recipe: quick\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    st.cache_data.clear()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    monkeypatch.syspath_prepend(str(Path(PAGE).parent))
    # As many alternatives as there are tokens: every token is offered.
    tab = importlib.import_module("write_tab")
    monkeypatch.setattr(tab, "TOP_LOGPROBS", TOKENIZER.vocab_size)
    hostile_files(tmp_path)
    return tmp_path


def test_foreign_text_is_never_markup(project: Path) -> None:
    at = page()
    seen = check(at)
    assert all(plain(name) in seen for name in HOSTILE), "names of compressors"
    at.number_input(key="length").set_value(3)
    write(at, ALL)
    check(at)
    at.segmented_control(key="view").set_value("Copied parts").run()
    check(at)
    at.segmented_control(key="view").set_value("Probabilities").run()
    seen = check(at)
    assert all(plain(visible(token)) in seen for token in TOKENS)
    at.pills(key="alternative").set_value(TOKENIZER.vocab_size - 1).run()
    check(at)
    at.text_area(key="text").set_value(ALL)
    at.button(key="read").click().run()
    check(at)
    at.selectbox(key="Right").select_index(2)
    at.button(key="compare").click().run()
    check(at)
    (label,) = at.selectbox(key="Right").options[2:3]
    assert plain(label) in "".join(caption.value for caption in at.caption)


@pytest.mark.parametrize(
    ("part", "key"), [(None, "scheme"), ("config", "arch"), ("tokenizer", "pattern")]
)
def test_a_forged_model_file_is_told_as_text(part: str | None, key: str) -> None:
    save_models()
    kind, content = read_artifact(paths.QUANTIZED, FORMATS)
    (content[part] if part else content)[key] = ALL
    write_artifact(paths.QUANTIZED, kind, FORMATS[kind], content)
    at = page()
    check(at)
    assert "zq" in at.text[0].value or part == "tokenizer"


def test_figures_of_other_types_are_not_shown() -> None:
    save_models()
    save_figures({"held_out": {"bits_per_byte": 2.5}}, asked_records=5, majority=0.5)
    more = {"parameters": 1, "best_epoch": 1, "file_bytes": 1, "checkpoint_bytes": 1}
    files = (paths.EVALUATE_METRICS, paths.TRAIN_METRICS, paths.QUANTIZE_METRICS)
    found = {path: json.loads(path.read_text("utf-8")) | more for path in files}
    at = page()
    for value in (ALL, [ALL], {ALL: ALL}, -1e400, 10**400, True, None):
        for path, figures in found.items():
            path.write_text(json.dumps(replaced(figures, value)), "utf-8")
        check(at.run())


def replaced(found: Any, value: Any, key: str = "") -> Any:
    """`found` with `value` for every figure, but not for the names of the models."""
    if isinstance(found, dict):
        return {key: replaced(each, value, key) for key, each in found.items()}
    return found if key in ("model", "checkpoint") else value
