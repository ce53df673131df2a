"""Stage `tokenize`: what lies in `data/` -> `models/tokens/`.

Text and documents are read in pieces; records are held in memory. Not called `tokenize`, which is a
module of the standard library.
"""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.tokenize_text`")

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass

import numpy as np
from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_errors
from stages.lm.core.stage import run_stage
from stages.lm.corpus.chosen import chosen_survey, corpus_of
from stages.lm.corpus.corpus import Corpus
from stages.lm.corpus.texts import Text, text_corpus
from stages.lm.data.dataset import RECORD_DTYPE, split_meta, token_dtype, token_file, write_meta
from stages.lm.data.lengths import Lengths
from stages.lm.data.meta import DocumentsMeta, RecordsMeta, TokenizerMeta
from stages.lm.data.sequence_packing import LEARNED, ids_of, sequence_bounds
from stages.lm.data.splits import SPLITS
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.corpus import CorpusSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.recipes import automatic
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.text.conversation import conversation_tokens
from stages.lm.text.interface import Tokenizer
from stages.lm.text.parallel import batches, encode_pieces
from stages.lm.text.records import TEXT_END
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, named_tokenizer, train_bpe
from stages.sample_text import sample_text

BPE_SAMPLE_BYTES = 16 << 20
"""A vocabulary is learned from so many bytes, the same share of each MiB of the training split."""


def main() -> None:
    """Split the data, learn or load the vocabulary, encode."""
    init_from = load_init_from()
    base = None if init_from == SCRATCH else base_tokenizer(init_from)
    fixed = {} if base is None else tokenizer_settings(base)
    fractions = load_section(TokenizeSettings, auto=automatic(0, base=fixed).values).fractions()
    corpus = read_corpus(load_section(CorpusSettings), fractions)
    auto = automatic(corpus.bytes, base=fixed)
    settings = load_section(TokenizeSettings, auto=auto.values)
    for line in auto.lines(TokenizeSettings.SECTION):
        print(line)
    tokenizer = make_tokenizer(settings, corpus) if base is None else base
    if corpus.kind == "records":
        tokenizer = tokenizer.for_conversations()
    if corpus.kind == "documents":
        tokenizer = tokenizer.for_documents()
    encode = encode_records if corpus.kind == "records" else encode_texts
    encoded = encode(corpus, tokenizer)
    tokens = {split: part.tokens for split, part in encoded.items()}
    if tokens["train"] < 2:
        raise UserError(
            f"the training split is {tokens['train']} token long, but training needs two, a "
            "token and the next one; add text, or lower tokenize.vocab_size."
        )
    long = long_length(encoded)
    if corpus.counts and (base is None or "model.context" not in auto.used):
        auto = automatic(corpus.bytes, base=fixed, lengths=Lengths(corpus.kind, long))
        tell_what_is_longer(corpus.kind, encoded, auto.context, long)
    write_meta(
        paths.TOKENS,
        TokenizerMeta(tokenizer.name, tokenizer.pattern, *astuple(tokenizer.chat)),
        tokenizer.to_text(),
        tokenizer.merges(),
        {
            split: split_meta(paths.TOKENS, split, part.tokens, part.scored)
            for split, part in encoded.items()
        },
        records_meta(corpus, long),
        documents_meta(corpus, tokenizer, long),
    )
    total = sum(tokens.values())
    counts = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
    print(
        f"{total:,} tokens ({counts}), {sum(corpus.sizes.values()) / total:.2f} bytes a token, "
        f"vocabulary {tokenizer.name} of {tokenizer.vocab_size:,}"
    )


def read_corpus(settings: CorpusSettings, fractions: dict[str, float]) -> Corpus:
    """What is learned from, or the sample."""
    chosen = chosen_survey(settings)
    if chosen:
        return corpus_of(chosen, settings, fractions)
    return text_corpus({"train": Text("the sample", sample_text().encode())}, fractions)


@dataclass
class Encoded:
    """A split that has been written."""

    tokens: int
    """Number of its ids."""
    scored: int
    """Bytes that a model is scored on: of records the answers. An end counts as one."""
    lengths: np.ndarray
    """Tokens of each of its documents or records, with their marks."""


def encode_texts(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """Write the token ids of each split of a text or of documents, with a progress bar."""
    end = tokenizer.text_end if corpus.kind == "documents" else None
    dtype, size = token_dtype(tokenizer.vocab_size), sum(corpus.sizes.values())
    ends: dict[str, list[np.ndarray]] = {split: [np.array([0])] for split in SPLITS}
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=size, desc="tokenize", unit="B", unit_scale=True))
        files = {
            split: stack.enter_context(token_file(paths.TOKENS / f"{split}.npy", dtype))
            for split in SPLITS
        }
        files["train"].append(list(tokenizer.opening) if end is None else [end])
        for split in SPLITS[1:]:
            files[split].append([] if end is None else [end])
        for split, ids, bytes_done in encode_pieces(tokenizer, corpus.read(), end=end):
            if end is not None:
                ends[split].append(files[split].count + np.flatnonzero(ids == end))
            files[split].append(ids)
            bar.update(bytes_done)
    return {
        split: Encoded(
            files[split].count,
            corpus.sizes[split] + corpus.counts.get(split, 0),
            np.diff(np.concatenate(ends[split])),
        )
        for split in SPLITS
    }


def encode_records(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Encoded]:
    """Write the marked token ids of records, as sequences of conversations.

    Raises:
        UserError: a record cannot be written by the model's chat template.
    """
    lengths = np.array([len(token) or 1 for token in tokenizer.tokens])
    encoded = {}
    for split, records in corpus.records.items():
        with token_file(paths.TOKENS / f"{split}.npy", RECORD_DTYPE) as file:
            found, scored = [np.empty(0, np.int64)], 0
            for record in tqdm(records, desc=f"tokenize {split}", unit="record"):
                for tokens in conversation_tokens(tokenizer, record.conversation()):
                    file.append(tokens)
                    found.append(np.diff(sequence_bounds(tokens))[:, 0])
                    scored += int(lengths[ids_of(tokens[tokens & LEARNED > 0])].sum())
        encoded[split] = Encoded(file.count, scored, np.concatenate(found))
    return encoded


def long_length(encoded: dict[str, Encoded]) -> int:
    """The length in tokens that 99 % of all documents or records have at most; 0 of a text."""
    lengths = np.concatenate([part.lengths for part in encoded.values()])
    return int(np.quantile(lengths, 0.99, method="higher")) if len(lengths) else 0


def tell_what_is_longer(kind: str, encoded: dict[str, Encoded], context: int, long: int) -> None:
    """Say how many documents are cut, or records left out, because the context is shorter.

    Raises:
        UserError: no record of a split fits.
    """
    longer = {split: int((part.lengths > context + 1).sum()) for split, part in encoded.items()}
    total, count = sum(len(part.lengths) for part in encoded.values()), sum(longer.values())
    if not count:
        return
    for split, part in encoded.items():
        if kind == "records" and longer[split] == len(part.lengths):
            raise UserError(
                f"no record of the {split} split fits model.context, {context} tokens; raise "
                f"model.context, to {long} for 99 % of the records, or shorten them."
            )
    share = f"{count:,} of {total:,} {kind} ({100 * count / total:.1f} %)"
    if kind == "documents":
        print(f"{share} are longer than model.context, {context} tokens, and learned in parts")
    else:
        warning = "WARNING: " if count > 0.01 * total else ""
        print(
            f"{warning}{share} are longer than model.context, {context} tokens, and left out; "
            f"{long} tokens would hold 99 %"
        )


def records_meta(corpus: Corpus, long: int) -> RecordsMeta | None:
    """What `meta.json` says of records; None of others."""
    if corpus.kind != "records":
        return None
    return RecordsMeta(**corpus.counts, bytes=corpus.bytes, long=long)


def documents_meta(corpus: Corpus, tokenizer: Tokenizer, long: int) -> DocumentsMeta | None:
    """What `meta.json` says of documents; None of others."""
    if corpus.kind != "documents":
        return None
    assert tokenizer.text_end is not None
    return DocumentsMeta(**corpus.counts, end=tokenizer.text_end, bytes=corpus.bytes, long=long)


def make_tokenizer(settings: TokenizeSettings, corpus: Corpus) -> Tokenizer:
    """The tokenizer that `tokenize.tokenizer` names."""
    name = settings.tokenizer
    if name == "bpe":
        return train_bpe(training_sample(corpus), settings.vocab_size, settings.pattern)
    if not name.endswith(".tiktoken"):
        return named_tokenizer(name)
    path = paths.BASE / name
    with read_errors(path, "put the vocabulary there, or set tokenize.tokenizer to bpe."):
        text = path.read_bytes().decode("ascii", "replace")
    return BytePairTokenizer.from_text(
        text, PATTERNS[settings.pattern], name.removesuffix(".tiktoken")
    )


def training_sample(corpus: Corpus) -> Iterator[str]:
    """Texts to learn a vocabulary from; bytes that are not UTF-8 are left out.

    Documents and messages of records are texts of their own.
    """
    share = min(1.0, BPE_SAMPLE_BYTES / corpus.sizes["train"])
    for batch in batches(data for split, data in corpus.read() if split == "train"):
        data = b"".join(batch)
        for text in data[: int(len(data) * share)].split(TEXT_END):
            yield text.decode("utf-8", "ignore")


if __name__ == "__main__":
    run_stage(main)
