"""Learning shared by spellings: what one spelling of a word learns, the others learn too.

A vocabulary has the same word as several tokens: ` the`, `the`, ` The`. Each row of the embedding
and of the head is trained as if it were a sum: a row of its own, a row for its spelling (lower
case, without the space before) and a row for its kind (the case, and whether a space stands
before). Only the sums are kept, so that the model stays as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW


def shared_rows(tokens: list[bytes], rows: int) -> Tensor:
    """For each of `rows` rows of a table, the numbers of the shared rows in its sum: (rows, 2).

    Rows beyond the `tokens` have one pair of their own.
    """
    plain = [token.lstrip(b" ") for token in tokens]
    pairs: list[tuple[Any, Any]] = [
        (word.lower(), (kind_of_case(word), word != token))
        for word, token in zip(plain, tokens, strict=True)
    ]
    pairs += [(None, None)] * (rows - len(tokens))
    words = {word: number for number, word in enumerate(dict.fromkeys(word for word, _ in pairs))}
    kinds = dict.fromkeys(kind for _, kind in pairs)
    kinds = {kind: number for number, kind in enumerate(kinds, len(words))}
    return torch.tensor([(words[word], kinds[kind]) for word, kind in pairs])


def kind_of_case(word: bytes) -> str:
    """`lower`, `upper` or `mixed`; bytes without letters are `lower`."""
    if word == word.lower():
        return "lower"
    return "upper" if len(word) > 1 and word == word.upper() else "mixed"


class SharedRowsAdam(AdamW):
    """Adam for the shared rows of several tables (rows, W) of weights.

    Its parameters are the changes of the shared rows in one step, so it keeps nothing of them
    beside Adam's moments. It reads the gradients of the tables and adds the changes to them.
    """

    def __init__(self, tables: list[tuple[Tensor, float]], shared: Tensor, **options: Any) -> None:
        """`tables` are weights and their peak learning rates, `shared` is from `shared_rows`."""
        self.tables = [table for table, _ in tables]
        self.shared = shared.to(self.tables[0].device)
        size = int(shared.max()) + 1
        groups = [
            {"params": [nn.Parameter(table.new_zeros(size, table.size(1)))], "lr": lr}
            for table, lr in tables
        ]
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step along the shared rows; the tables' gradients stay."""
        changes = [group["params"][0] for group in self.param_groups]
        for change, table in zip(changes, self.tables, strict=True):
            change.zero_()
            change.grad = torch.zeros_like(change)
            for column in self.shared.unbind(1):
                change.grad.index_add_(0, column, table.grad)
        super().step()
        for change, table in zip(changes, self.tables, strict=True):
            for column in self.shared.unbind(1):
                table.add_(change[column])
