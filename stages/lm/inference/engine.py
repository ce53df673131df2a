"""Decoding with quantized weights on a CPU by the C engine: packs the weights and calls it.

`make_engine` returns None if the engine cannot be compiled or does not support the model.
"""

import ctypes
import mmap
from ctypes import byref

import torch
from torch import Tensor

from ..model.attention import CACHE_START
from ..model.config import ModelConfig
from ..model.rope import rotary_tables
from ..quantization.schemes import GROUP_SIZE, QuantizedWeight, StoredWeight, dequantize
from .engine_structs import (
    NORMS,
    SIZES,
    Block,
    Matrix,
    Model,
    Norm,
    State,
    Table,
    layout_here,
    layout_in,
)
from .native import library

BYTES_A_THREAD = 1 << 21
"""Packed bytes per additional thread: for less work a thread costs more than it saves."""
MAX_COLUMNS = 1 << 16
"""Columns of a matrix, so that no sum of products of codes overflows."""


class Engine:
    """A quantized model in the engine's layout. Any number of decoders may share it."""

    def __init__(self, library: ctypes.CDLL, config: ModelConfig, weights: dict[str, StoredWeight]):
        assert layout_here() == layout_in(library), "the structs here and in model.h differ"
        self.library = library
        self.config = config
        self.lanes: int = library.lanes()
        self.owned: list[Tensor] = []
        self.weights = weights
        quantized = (each for each in weights.values() if isinstance(each, QuantizedWeight))
        self.free = large_pages(sum(weight.codes.numel() for weight in quantized))
        self.packed_bytes = 0
        tied, family = config.tie_embeddings, config.family
        model = Model(**{name: getattr(config, name) for name in SIZES})
        model.norm_eps = config.norm_eps
        model.embedding_scale = config.width**0.5 if family.scaled_embedding else 1
        model.norm_all_heads = family.qk_norm == "layer"
        model.gelu, model.gated = family.activation != "swiglu", family.activation != "gelu"
        model.tokens = self._table("token_embedding.weight")
        model.head = self._matrix("token_embedding" if tied else "head")
        model.final_norm = self._norm("final_norm")
        if family.learned_positions:
            model.positions = self._table("position_embedding.weight")
        self.rope = {
            local: tuple(map(self._pointer, rotary_tables(config, local=local)))
            for local in {config.window(n) > 0 for n in range(config.layers) if config.rotated(n)}
        }
        model.blocks = (Block * config.layers)(*map(self._block, range(config.layers)))
        self.model = model

    def _pointer(self, tensor: Tensor) -> int:
        self.owned.append(tensor.contiguous())
        return self.owned[-1].data_ptr()

    def _values(self, name: str) -> int | None:
        return self._pointer(dequantize(self.weights[name])) if name in self.weights else None

    def _norm(self, name: str) -> Norm:
        return Norm(self._values(f"{name}.weight"), self._values(f"{name}.bias"))

    def _table(self, name: str) -> Table:
        weight = self.weights[name]
        if isinstance(weight, Tensor):
            return Table(values=self._values(name), groups=1)
        codes, scales = weight.codes, weight.scales.float()
        return Table(self._pointer(codes), self._pointer(scales), groups=scales.size(1))

    def _matrix(self, name: str) -> Matrix:
        weight = self.weights[f"{name}.weight"]
        assert isinstance(weight, QuantizedWeight), f"{name} has no codes"
        codes, scales = weight.codes, weight.scales
        (rows, columns), groups = codes.shape, scales.size(1)
        codes = codes.contiguous()
        bits = 4 if self.library.fits_4_bits(codes.data_ptr(), codes.numel()) else 8
        packed, self.free = self.free.tensor_split([rows * columns * bits // 8])
        self.packed_bytes += len(packed)
        threads = torch.get_num_threads()
        self.library.pack(codes.data_ptr(), packed.data_ptr(), rows, columns, bits, threads)
        if groups > 1:
            scales = scales.view(-1, self.lanes, groups).mT.to(self.half)
        else:
            scales = scales.float()
        pointers = self._pointer(packed), self._pointer(scales), self._values(f"{name}.bias")
        return Matrix(*pointers, rows, columns, bits, groups > 1)

    def _block(self, index: int) -> Block:
        config, block = self.config, f"blocks.{index}"
        up = "up" if config.family.activation == "gelu" else "gate_up"
        matrices = ("attention.qkv", "attention.out", f"feed_forward.{up}", "feed_forward.down")
        window = config.window(index)
        return Block(
            *(self._norm(f"{block}.{name}") for name in NORMS),
            *(self._matrix(f"{block}.{name}") for name in matrices),
            *(self.rope[window > 0] if config.rotated(index) else (None, None)),
            window,
        )

    @property
    def half(self) -> torch.dtype:
        """The type of cached keys, values and group scales: float32 without half instructions."""
        return torch.float16 if self.library.half_bytes() == 2 else torch.float32


def large_pages(count: int) -> Tensor:
    """A buffer of `count` bytes in huge pages where the system has them: fewer TLB misses.

    The system commits its memory only as it is written.
    """
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def make_engine(config: ModelConfig, weights: dict[str, StoredWeight]) -> Engine | None:
    """An engine of weights, by their names in `Transformer`; None if it cannot run them."""
    if not supports(config, weights):
        return None
    compiled = library()
    return Engine(compiled, config, weights) if compiled else None


def supports(config: ModelConfig, weights: dict[str, StoredWeight]) -> bool:
    """Whether shapes fit whole vectors and groups, and all matrices but embeddings have codes."""
    columns = (config.width, config.ff_width, config.heads * config.head_size)
    if config.head_size % 16 or any(size % GROUP_SIZE or size > MAX_COLUMNS for size in columns):
        return False
    tables = {"position_embedding.weight"}
    if not config.tie_embeddings:
        tables.add("token_embedding.weight")
    for name, weight in weights.items():
        if isinstance(weight, QuantizedWeight):
            codes, scales = weight.codes, weight.scales
            if codes.dtype != torch.int8 or scales.size(1) not in (1, codes.size(1) // GROUP_SIZE):
                return False
        elif weight.ndim == 2 and name not in tables:
            return False
    return True


class EngineDecoder:
    """A `Decoder` that runs on an `Engine`. Its results do not depend on batch or threads."""

    splits_freely = True
    states: Tensor

    def __init__(self, engine: Engine, batch: int, keep_states: bool = False) -> None:
        self.engine = engine
        self.keep_states = keep_states
        self.batch = batch
        self.context = engine.config.context
        self.length = 0
        config = engine.config
        rows = max(batch, engine.library.chunk_rows())
        heads_width = config.heads * config.head_size
        columns = max(config.width, config.ff_width, heads_width)
        qkv = heads_width + 2 * config.kv_heads * config.head_size
        self.buffers = {
            "residual": torch.empty(rows, config.width),
            "hidden": torch.empty(rows, max(qkv, 2 * config.ff_width, config.width)),
            "attention_out": torch.empty(rows, max(config.width, heads_width)),
            "codes": torch.empty(rows, columns, dtype=torch.int8),
            "scales": torch.empty(rows, columns // GROUP_SIZE),
            "sums": torch.empty(rows, columns // GROUP_SIZE, dtype=torch.int32),
        }
        pointers = {name: buffer.data_ptr() for name, buffer in self.buffers.items()}
        self.state = State(batch=batch, **pointers)

    def _reserve(self, length: int) -> None:
        """Make room in the cache for `length` tokens; it doubles as needed."""
        if length <= self.state.room:
            return
        config, lanes = self.engine.config, self.engine.lanes
        blocks = -(-min(self.context, max(CACHE_START, 2 * self.length, length)) // lanes)
        used = -(-self.length // lanes)
        cache, size = (config.layers, self.batch, config.kv_heads), config.head_size
        shapes = {"keys": (blocks, size, lanes), "values": (blocks, lanes, size)}
        for name, shape in shapes.items():
            grown = torch.empty(*cache, *shape, dtype=self.engine.half)
            if used:
                grown[:, :, :, :used] = self.buffers[name][:, :, :, :used]
            self.buffers[name] = grown
            setattr(self.state, name, grown.data_ptr())
        self.state.room = blocks * lanes

    def feed(self, tokens: list[list[int]]) -> Tensor:
        """See `Decoder`."""
        rows = torch.tensor(tokens, dtype=torch.int32)
        config = self.engine.config
        lowest, highest = rows.aminmax()
        assert lowest >= 0 and highest < config.vocab_size, "a token is not in the vocabulary"
        if self.length and len(rows) < self.batch:
            rows = rows.expand(self.batch, -1).contiguous()
        count, end = rows.size(1), self.length + rows.size(1)
        assert len(rows) in (1, self.batch) and count > 0 and end <= self.context
        self._reserve(end)
        logits = torch.empty(len(rows), config.padded_vocab)
        if self.keep_states:
            self.states = torch.empty(len(rows), count, config.width)
        useful_threads = 1 + self.engine.packed_bytes * rows.numel() // BYTES_A_THREAD
        self.engine.library.feed(
            byref(self.engine.model),
            byref(self.state),
            rows.data_ptr(),
            len(rows),
            count,
            self.length,
            logits.data_ptr(),
            self.states.data_ptr() if self.keep_states else None,
            min(useful_threads, torch.get_num_threads()),
        )
        if len(rows) < self.batch:  # a prompt that all sequences share is read once
            used = -(-end // self.engine.lanes)
            for cache in ("keys", "values"):
                every = self.buffers[cache][:, :, :, :used]
                every[:, 1:] = every[:, :1]
        self.length = end
        return logits[:, : config.vocab_size].expand(self.batch, -1)

    def reset(self) -> None:
        """See `Decoder`."""
        self.length = 0
