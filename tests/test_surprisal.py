"""The surprisal of each token of a text agrees with the loss that `score` computes."""

import html
import math
import re
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
import torch
from test_app import page, save_models

from stages.lm.core import paths
from stages.lm.evaluation.surprisal import LEAD, attention, token_surprisals
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model import attention as attention_module
from stages.lm.model.runtime import Machine
from stages.lm.model.scoring import score

TEXT = "the cat sat on the mat, the rat ran to the hat. " * 6 + "ein Hut, 帽子 \xff"


@pytest.fixture(params=[16, 64])
def loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> LoadedModel:
    for name in ("CHECKPOINT", "QUANTIZED"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)
    save_models(context=request.param)
    return load_model(paths.CHECKPOINT)


@pytest.mark.parametrize("min_context", [0, 5, 64])
def test_surprisals_sum_to_the_loss(loaded: LoadedModel, min_context: int) -> None:
    tokens = token_surprisals(loaded, TEXT.encode(), min_context=min_context)
    lead, ids = (np.array(loaded.tokenizer.encode(part)) for part in (LEAD, TEXT.encode()))
    machine = Machine(torch.device("cpu"), "float32", 1)
    nats, count = score(loaded.model, ids, lead, machine, min_context=min_context)
    assert len(tokens) == count
    assert math.fsum(token.nats for token in tokens) == pytest.approx(nats, rel=1e-5)


def test_tokens_join_to_the_text(loaded: LoadedModel) -> None:
    data = b"any bytes \xff\x00 at all\r\n" + TEXT.encode()
    assert b"".join(token.data for token in token_surprisals(loaded, data)) == data
    assert token_surprisals(loaded, b"") == []


def test_ranks_and_alternatives_agree_with_the_probability(loaded: LoadedModel) -> None:
    for token in token_surprisals(loaded, TEXT.encode(), top_k=5):
        shares = [share for _, share in token.likeliest]
        assert shares == sorted(shares, reverse=True) and len(shares) == 5
        assert sum(share > math.exp(-token.nats) * (1 + 1e-6) for share in shares) == min(
            5, token.rank
        )
        if token.rank < 5:
            assert token.likeliest[token.rank] == (token.data, pytest.approx(math.exp(-token.nats)))


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_the_model_mixes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    for name in ("CHECKPOINT", "QUANTIZED"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)
    save_models(layers=2, heads=4, kv_heads=2, context=32)
    loaded = load_model(paths.CHECKPOINT)
    seen = {}

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, window: int
    ) -> torch.Tensor:
        mixed = attended(query, key, value)
        seen[len(seen)] = value, mixed
        return mixed

    attended = attention_module.attend
    monkeypatch.setattr(attention_module, "attend", attend)
    text = b"the cat sat on the mat"
    tokens, shares = attention(loaded, text, layer)
    loaded.model(torch.tensor([loaded.tokenizer.encode(text)]))
    value, mixed = (part[0] for part in seen[layer + layer])  # `attention` ran the blocks before it
    assert b"".join(tokens) == text and shares.shape == (4, len(tokens), len(tokens))
    torch.testing.assert_close(shares @ value.repeat_interleave(2, dim=0), mixed)


def test_the_page_colours_each_token_and_nothing_acts(loaded: LoadedModel) -> None:
    at = page()
    at.text_area(key="text").set_value("the cat <script>alert(1)</script>\n<b>")
    at.button(key="read").click().run()
    assert not at.exception
    (block,) = [element.proto.body for element in at.get("html")]
    assert "<script" not in block and "<b>" not in block
    drawn = re.sub(r"<[^>]*>", "", block)
    assert html.unescape(drawn) == "the cat <script>alert(1)</script>\n<b>"
    tokens = token_surprisals(
        load_model(paths.QUANTIZED), b"the cat <script>alert(1)</script>\n<b>"
    )
    bits = math.fsum(t.nats for t in tokens) / sum(len(t.data) for t in tokens) / math.log(2)
    assert {metric.label: metric.value for metric in at.metric}["Bits per byte"] == f"{bits:.3f}"


def test_the_page_draws_the_attention_of_the_chosen_head(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    charts = []
    monkeypatch.setattr(st, "altair_chart", lambda chart, **_: charts.append(chart.to_dict()))
    at = page()
    at.session_state["attention"] = True
    at.text_area(key="text").set_value("the cat sat")
    at.button(key="read").click().run()
    at.selectbox(key="head").set_value(2).run()
    assert not at.exception
    heat = [chart for chart in charts if chart.get("mark", {}).get("type") == "rect"]
    (cells,) = heat[-1]["datasets"].values()
    tokens, shares = attention(load_model(paths.QUANTIZED), b"the cat sat", 0)
    rows = range(len(tokens))
    expected = [float(shares[1, row, column]) for row in rows for column in range(row + 1)]
    assert [cell["weight"] for cell in cells] == pytest.approx(expected)
    assert cells[-1]["token"] == cells[-1]["attends to"] == "4 “ sat”"
