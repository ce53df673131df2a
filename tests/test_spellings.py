"""Rows that learn together: which they are, and that a step is that of the sums they stand for."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from stages.lm.training.spellings import SharedRowsAdam, shared_rows

TOKENS = [b"the", b" the", b"The", b" THE", b"a", b"A", b"\n", b" ", b"\xff", b"1", b" tHe", b"I"]


def test_spellings_of_a_word_share_a_row_and_kinds_share_another():
    shared = shared_rows(TOKENS, 16).tolist()
    words, kinds = ([row[column] for row in shared] for column in (0, 1))
    assert len({words[TOKENS.index(t)] for t in (b"the", b" the", b"The", b" THE", b" tHe")}) == 1
    assert words[4] == words[5] != words[0]
    assert kinds[0] == kinds[4] == kinds[6] == kinds[8] == kinds[9]  # lower case, no space before
    assert kinds[2] == kinds[5] == kinds[11] != kinds[0] and len({*kinds[:4]}) == 4
    assert shared[12:] == [shared[12]] * 4 and shared[12] not in shared[:12]
    assert not set(words) & set(kinds)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_is_adams_on_rows_that_are_sums(steps):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(len(TOKENS), 4, generator=generator)
    shared = shared_rows(TOKENS, len(TOKENS))
    parts = [nn.Parameter(start.clone()), nn.Parameter(torch.zeros(int(shared.max()) + 1, 4))]
    plain = AdamW(parts, lr=0.1, betas=(0.8, 0.9), weight_decay=0.0)
    table = nn.Parameter(start.clone())
    options = {"betas": (0.8, 0.9), "weight_decay": 0.0}
    own = AdamW([table], lr=0.1, **options)
    together = SharedRowsAdam([(table, 0.1)], shared, **options)
    for _ in range(steps):
        wanted = torch.randn(start.shape, generator=generator)
        rows = parts[0] + parts[1][shared[:, 0]] + parts[1][shared[:, 1]]
        for weights, optimizers in ((rows, [plain]), (table, [own, together])):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (weights - wanted).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    rows = parts[0] + parts[1][shared[:, 0]] + parts[1][shared[:, 1]]
    torch.testing.assert_close(table.detach(), rows.detach(), rtol=1e-4, atol=1e-5)


def test_the_state_holds_the_moments_of_the_shared_rows_alone():
    table = nn.Parameter(torch.randn(len(TOKENS), 4))
    optimizer = SharedRowsAdam([(table, 0.1)], shared_rows(TOKENS, len(TOKENS)))
    table.square().sum().backward()
    optimizer.step()
    (state,) = optimizer.state_dict()["state"].values()
    rows = int(shared_rows(TOKENS, len(TOKENS)).max()) + 1
    assert {name: tuple(each.shape) for name, each in state.items()} == {
        "step": (),
        "exp_avg": (rows, 4),
        "exp_avg_sq": (rows, 4),
    }
