"""Records lie whole in rows, each as if it were alone, and nothing but completions is learned."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from stages.lm.core.errors import UserError
from stages.lm.data.dataset import TokenData
from stages.lm.data.meta import RecordsMeta, SplitMeta, TokenizerMeta, TokensMeta
from stages.lm.data.sequence_packing import (
    IGNORE_INDEX,
    LAST,
    LEARNED,
    ids_of,
    last_answers,
    pack,
    sequence_bounds,
    targets_and_segments,
)
from stages.lm.data.windows import PackedRowSampler
from stages.lm.model.scoring import final_states, score_records
from stages.lm.training.history import summary
from stages.lm.training.token_splitting import split_tokens
from stages.lm.training.trainer import Trainer

PROMPT_END, END = 73, 74


def marked(*turns):
    """Turns of prompt and answer as marked tokens of one sequence."""
    tokens = []
    for prompt, answer in turns:
        tokens += [*prompt, PROMPT_END, *(token | LEARNED for token in [*answer, END])]
    tokens[-1] |= LAST
    return np.array(tokens, "<u4")


def records(sizes, seed=1):
    random = np.random.Generator(np.random.Philox(seed))
    drawn = ([random.integers(0, 73, size).tolist() for size in both] for both in sizes)
    return [marked(each) for each in drawn]


def some(count, seed=1):
    random = np.random.Generator(np.random.Philox(seed))
    return records(random.integers(1, 6, (count, 2)).tolist(), seed)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40),
    context=st.integers(12, 30),
)
def test_every_record_that_fits_is_in_one_row(sizes, context):
    parts = records(sizes)
    fitting = sorted(part.tolist() for part in parts if len(part) <= context + 1)
    if not fitting:
        return
    rows, left_out = pack(np.concatenate(parts), context, "train")
    assert left_out == len(parts) - len(fitting) and rows.shape[1] <= context + 1
    found = [
        row[begin:end].tolist()
        for row in rows
        for begin, end in sequence_bounds(row)
        if end - begin > 1  # the others pad
    ]
    assert sorted(found) == fitting


def test_rows_are_well_filled():
    parts = some(300)
    rows, _ = pack(np.concatenate(parts), 31, "train")
    assert sum(map(len, parts)) > 0.95 * rows.size


def test_records_that_are_all_too_long_are_refused():
    with pytest.raises(UserError, match=r"no record of the val split fits model\.context, 16"):
        pack(np.concatenate(records([(9, 9), (20, 2)])), 16, "val")


def test_answers_and_their_ends_are_the_targets():
    row = np.concatenate([marked(([5, 6], [7])), marked(([8], [9, 10])), [LAST, LAST]])[None]
    targets, segments = targets_and_segments(row)
    out = IGNORE_INDEX
    assert targets.tolist() == [[out, out, 7, 74, out, out, 9, 10, 74, out, out]]
    assert segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]]


def test_every_answer_of_a_conversation_is_learned_and_the_last_is_asked_for():
    row = marked(([5], [6]), ([7], [8, 9]))
    targets, segments = targets_and_segments(row[None])
    assert targets.tolist() == [[-1, 6, 74, -1, -1, 8, 9, 74]] and not segments.any()
    assert last_answers(np.concatenate([row, marked(([1], [2]))])) == [
        ([5, 73, 6, 74, 7, 73], [8, 9, 74]),
        ([1, 73], [2, 74]),
    ]


def test_a_row_that_was_cut_teaches_what_is_left_of_it():
    row = np.concatenate([marked(([5], [7])), [8, 9, 8]])[None]
    assert targets_and_segments(row)[0].tolist() == [[-1, 7, 74, -1, -1, -1]]


def test_parts_of_a_split_token_carry_its_mark():
    merges = np.arange(75).repeat(2).reshape(75, 2)
    merges[60] = 1, 2
    row = marked(([60], [60, 5])).astype(np.int64)[None]
    wide = np.pad(row, ((0, 0), (0, 3)), constant_values=LAST)
    found = split_tokens(wide, merges, 1.0, np.random.Generator(np.random.Philox(1)))
    wanted = marked(([1, 2], [1, 2, 5])).tolist()
    assert found[0, : len(wanted)].tolist() == wanted


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_a_packed_row_is_its_records_one_by_one(make_model, arch):
    model = make_model(arch, context=40, kv_heads=2).requires_grad_(True)
    parts = records([(3, 4), (1, 1), (6, 2), (2, 7)])
    rows, _ = pack(np.concatenate(parts), 40, "train")
    rows = np.pad(rows, ((0, 0), (0, 3)), constant_values=LAST)
    assert rows.shape == (1, 37)
    targets, segments = (torch.from_numpy(x) for x in targets_and_segments(rows))
    inputs = torch.from_numpy(ids_of(rows).astype(np.int64))[:, :-1]
    together = model(inputs, segments=segments)[0]
    loss = model(inputs, targets=targets, segments=segments)
    loss.backward()
    packed = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    nats, count = 0.0, 0
    for begin, end in sequence_bounds(rows[0, :-1]).tolist():
        ids = torch.from_numpy(ids_of(rows[:, begin:end]).astype(np.int64))
        alone = model(ids)[0]
        assert torch.allclose(alone, together[begin:end], atol=1e-5)
        if PROMPT_END in ids:
            first = ids[0].tolist().index(PROMPT_END)
            wanted = ids[0, first + 1 :]
            nats = nats + F.cross_entropy(alone[first:][: len(wanted)], wanted, reduction="sum")
            count += len(wanted)
    (nats / count).backward()
    assert loss.item() == pytest.approx(nats.item() / count, rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, packed[name], atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("packed", [True, False], ids=["records", "text"])
def test_in_bf16_the_gradient_is_about_the_same(make_model, arch, packed):
    model, norms = make_model(arch, context=40).requires_grad_(True), []
    rows = np.stack([np.resize(part, 33) for part in records([(15, 16), (8, 23)])])
    targets, segments = (torch.from_numpy(x) for x in targets_and_segments(rows))
    inputs = torch.from_numpy(ids_of(rows).astype(np.int64))
    asked = (targets, segments) if packed else (inputs[:, 1:], None)
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(inputs[:, :-1], targets=asked[0], segments=asked[1])
        loss.backward()
        norms.append(torch.stack([weight.grad.norm() for weight in model.parameters()]).norm())
    assert norms[1] != norms[0] and norms[1].item() == pytest.approx(norms[0].item(), rel=0.05)


def test_a_row_without_anything_to_learn_has_no_loss_and_no_gradient(make_model):
    model = make_model().requires_grad_(True)
    ids = torch.randint(0, 70, (2, 8), generator=torch.Generator().manual_seed(1))
    nothing = torch.full_like(ids, IGNORE_INDEX)
    loss = model(ids, targets=nothing, segments=torch.zeros_like(ids))
    loss.backward()
    assert loss.item() == 0
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_rows_come_once_an_epoch_in_an_order_of_its_own():
    order = PackedRowSampler(tokens=17 * 10, context=16, batch=5, seed=1)
    epochs = [np.concatenate([order.batch_starts(2 * n + k) for k in (0, 1)]) for n in range(3)]
    assert (order.per_epoch, order.length, order.num_batches(3)) == (10, 16, 6)
    assert all(sorted(starts) == list(range(0, 170, 17)) for starts in epochs)
    assert len({tuple(starts) for starts in epochs}) == 3


def task(count, seed):
    """Records whose completion is the prompt's two tokens, exchanged."""
    random = np.random.Generator(np.random.Philox(seed))
    pairs = random.integers(0, 6, (count, 2)).tolist()
    return np.concatenate([marked(([a, b], [b, a])) for a, b in pairs])


@pytest.fixture(scope="module")
def data():
    train, val = task(200, 1), task(40, 2)
    splits = {"val": SplitMeta(len(val), 120, "")}
    records = RecordsMeta(200, 40, 40, bytes=0, long=0)
    meta = TokensMeta(75, TokenizerMeta("bpe", ""), splits, "", "", records)
    return TokenData(train, val, val, np.arange(75).repeat(2).reshape(75, 2), meta, vocabulary="")


@pytest.fixture
def make_run(initialised_model, make_train_settings, machine, data):
    def make(context=16, **fields):
        fields = {"accumulate": 2, "split_tokens": 0.1, "epochs": 8} | fields
        model = initialised_model("qwen3", dropout=0.1, context=context)
        run = Trainer(model, data, make_train_settings(**fields), machine)
        run.initialize("looking_back")
        return run

    return make


def test_a_run_learns_the_task_and_reports_completions_alone(make_run):
    run = make_run()
    run.fit(lambda: None, lambda: False)
    figures = summary(run.progress, run.batches, run.validator)
    assert figures["val_loss"] < 0.35 * math.log(6), (
        "guessing both and knowing the end is 2/3 of it"
    )
    assert run.validator.bits_per_byte(0.5) == pytest.approx(0.5 / math.log(2), abs=1e-6)


def test_a_stopped_run_ends_as_if_it_had_not(make_run):
    whole = make_run(epochs=2)
    whole.fit(lambda: None, lambda: False)
    first = make_run(epochs=2)
    first.fit(lambda: None, lambda: first.progress.step == 7)
    assert not first.progress.finished
    state = first.state_dict()
    second = make_run(epochs=2)
    second.restore(state)
    second.fit(lambda: None, lambda: False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_the_parts_of_a_step_count_by_what_they_teach(make_run):
    gradients = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        run = make_run(batch_size=batch_size, accumulate=accumulate, split_tokens=0.0)
        run.model.eval()
        assert run._compute_gradients() > 0
        gradients.append([weight.grad for weight in run.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_the_score_is_that_of_every_record(make_model, machine, data):
    model = make_model(context=20)
    rows, _ = data.packed("val", 20)
    nats, count = score_records(model, rows, machine)
    assert count == data.scored_tokens("val") == 120
    ids = torch.from_numpy(data.ids("val").astype(np.int64)).view(-1, 6)
    logits = model(ids[:, :-1])[:, 2:].flatten(0, 1)
    expected = F.cross_entropy(logits, ids[:, 3:].flatten(), reduction="sum").item()
    assert nats == pytest.approx(expected, rel=1e-5)
    states, targets = final_states(model, data, "val", machine, 10_000)
    loss = F.cross_entropy(model.logits(states), targets, reduction="sum")
    assert len(targets) == count and loss.item() == pytest.approx(nats, rel=1e-5)


def test_thinned_rows_score_about_as_much_as_asked(make_model, machine, data):
    rows, _ = data.packed("val", 20)
    _, count = score_records(make_model(context=20), rows, machine, max_tokens=100)
    assert 0 < count <= 60
    assert data.scored_bytes("val", count) == count


def test_bf16_is_close_to_float32(make_model, machine, data):
    model, (rows, _) = make_model(context=20), data.packed("val", 20)
    exact, _ = score_records(model, rows, machine)
    rounded, _ = score_records(model, rows, replace(machine, precision="bf16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
