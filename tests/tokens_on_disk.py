"""Writes token ids as the stage `tokenize` does."""

from stages.lm.data.dataset import split_meta, token_dtype, token_file


def write_split(folder, split, chunks, vocab_size, size):
    """Write the ids of a split that scores `size` bytes; returns its entry in `meta.json`."""
    with token_file(folder / f"{split}.npy", token_dtype(vocab_size)) as file:
        for ids in chunks:
            file.append(ids)
    return split_meta(folder, split, file.count, size)
