"""llama.cpp behind a pipe: a line of JSON in, a line of JSON out. Runs in its own environment.

`llamacpp.py` starts it; nothing but numpy and llama-cpp-python is imported, and the other side's
libraries share no process with it.
"""

import ctypes
import json
import sys
import time

import llama_cpp.llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def silent(*_):
    """Take llama.cpp's log."""


class Worker:
    """One model and its context."""

    def __init__(self) -> None:
        llama.llama_log_set(silent, None)
        llama.llama_backend_init()
        self.model = self.context = None

    def open(
        self, path: str, threads: int, flash: bool, context: int, exact: bool = False
    ) -> float:
        """Seconds from the file to the logits after one token. `exact`: a cache in float32."""
        start = time.perf_counter()
        if self.context:
            llama.llama_free(self.context)
            llama.llama_model_free(self.model)
        self.model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params()
        )
        assert self.model, path
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if exact:
            params.type_k = params.type_v = llama.GGML_TYPE_F32
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.size = llama.llama_vocab_n_tokens(self.vocab)
        self.reset()
        self.feed([0])
        return time.perf_counter() - start

    def reset(self) -> None:
        """Begin anew."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def feed(self, ids: list[int]) -> np.ndarray:
        """The logits after `ids`."""
        tokens = (llama.llama_token * len(ids))(*ids)
        failed = llama.llama_decode(self.context, llama.llama_batch_get_one(tokens, len(ids)))
        assert not failed
        pointer = llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.size,))

    def decode(self, prompt: list[int], ids: list[int]) -> float:
        """Seconds to feed `ids` one by one after a prompt."""
        self.reset()
        self.feed(prompt)
        start = time.perf_counter()
        for token in ids:
            self.feed([token])
        return time.perf_counter() - start

    def prefill(self, ids: list[int]) -> float:
        """Seconds to the logits after `ids`, all at once."""
        self.reset()
        start = time.perf_counter()
        self.feed(ids)
        return time.perf_counter() - start

    def first(self, text: str) -> float:
        """Seconds from a text to the likeliest token after it."""
        start = time.perf_counter()
        ids = self.tokenize(text)
        self.reset()
        self.feed(ids).argmax()
        return time.perf_counter() - start

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        data = text.encode()
        room = (llama.llama_token * (len(data) + 8))()
        count = llama.llama_tokenize(self.vocab, data, len(data), room, len(room), False, False)
        assert count >= 0
        return room[:count]

    def logits(self, ids: list[int], path: str) -> None:
        """Write the logits (T, V) after each of `ids` to a file."""
        self.reset()
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = True
        assert not llama.llama_decode(self.context, batch)
        pointer = llama.llama_get_logits(self.context)
        np.save(path, np.ctypeslib.as_array(pointer, shape=(len(ids), self.size)))
        llama.llama_batch_free(batch)

    def quantize(self, path: str, out: str, kind: str) -> None:
        """Write a float32 file's weights in another format, by llama.cpp's own choice of types."""
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
        assert not llama.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params))


def main() -> None:
    """Answer until the input ends."""
    worker = Worker()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(worker, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
