"""Decoding with quantized weights on a CPU by the C engine: packs the weights and calls it.

`make_engine` returns None if the engine cannot be compiled or does not support the model.
"""

import ctypes
import mmap
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_void_p, sizeof

import torch
from torch import Tensor

from ..model.transformer import ModelConfig, rotary_tables
from ..quantization.schemes import GROUP_SIZE, QuantizedWeight, StoredWeight, dequantize
from .native import library

BYTES_A_THREAD = 1 << 21
"""Packed bytes per additional thread: for less work a thread costs more than it saves."""
MAX_COLUMNS = 1 << 16
"""Columns of a matrix, so that no sum of products of codes overflows."""


# The structs of model.h --------------------------------------------------------------------------


class _Matrix(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "bias")),
        *((name, c_int32) for name in ("rows", "columns", "bits", "grouped")),
    )


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Table(Structure):
    _fields_ = (*((name, c_void_p) for name in ("codes", "scales", "values")), ("groups", c_int32))


class _Block(Structure):
    _fields_ = (
        *((f"{name}_norm", _Norm) for name in ("attention", "query", "key", "feed_forward")),
        *((name, _Matrix) for name in ("qkv", "out", "up", "down")),
    )


SIZES = ("layers", "heads", "kv_heads", "head_size", "width", "ff_width", "context", "padded_vocab")


class _Model(Structure):
    _fields_ = (
        ("blocks", POINTER(_Block)),
        ("tokens", _Table),
        ("positions", _Table),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("final_norm", _Norm),
        ("head", _Matrix),
        *((name, c_int32) for name in SIZES),
    )


BUFFERS = ("keys", "values", "residual", "hidden", "attention_out", "codes", "scales", "sums")


class _State(Structure):
    _fields_ = (*((name, c_void_p) for name in BUFFERS), ("batch", c_int32))


class _LayoutEntry(Structure):
    _fields_ = (("name", c_char_p), ("bytes", c_int64))


STRUCTS = (_Matrix, _Norm, _Table, _Block, _Model, _State)


def layout_here() -> dict[str, int]:
    """The size of each struct and the offset of each of its fields, in bytes, as defined here."""
    layout = {}
    for struct in STRUCTS:
        name = struct.__name__.removeprefix("_")
        layout[name] = sizeof(struct)
        layout |= {
            f"{name}.{field[0]}": getattr(struct, field[0]).offset for field in struct._fields_
        }
    return layout


def layout_in(library: ctypes.CDLL) -> dict[str, int]:
    """The same as compiled into the library."""
    layout, index = {}, 0
    entries = ctypes.pointer(_LayoutEntry.in_dll(library, "struct_layout"))
    while name := entries[index].name:  # a null pointer ends the table
        layout[name.decode()] = entries[index].bytes
        index += 1
    return layout


# Models and their decoders -----------------------------------------------------------------------


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
        tied = config.tie_embeddings
        model = _Model(**{name: getattr(config, name) for name in SIZES})
        model.tokens = self._table("token_embedding.weight")
        model.head = self._matrix("token_embedding" if tied else "head")
        model.final_norm = self._norm("final_norm")
        if config.arch == "qwen3":
            model.cosines, model.sines = map(self._pointer, rotary_tables(config))
        else:
            model.positions = self._table("position_embedding.weight")
        model.blocks = (_Block * config.layers)(*map(self._block, range(config.layers)))
        self.model = model

    def _pointer(self, tensor: Tensor) -> int:
        self.owned.append(tensor.contiguous())
        return self.owned[-1].data_ptr()

    def _values(self, name: str) -> int | None:
        return self._pointer(dequantize(self.weights[name])) if name in self.weights else None

    def _norm(self, name: str) -> _Norm:
        return _Norm(self._values(f"{name}.weight"), self._values(f"{name}.bias"))

    def _table(self, name: str) -> _Table:
        weight = self.weights[name]
        if isinstance(weight, Tensor):
            return _Table(values=self._values(name), groups=1)
        codes, scales = weight.codes, weight.scales.float()
        return _Table(self._pointer(codes), self._pointer(scales), groups=scales.size(1))

    def _matrix(self, name: str) -> _Matrix:
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
        return _Matrix(*pointers, rows, columns, bits, groups > 1)

    def _block(self, index: int) -> _Block:
        block = f"blocks.{index}"
        qwen3 = self.config.arch == "qwen3"
        norms = ("attention_norm", "attention.query_norm", "attention.key_norm")
        up = "gate_up" if qwen3 else "up"
        matrices = ("attention.qkv", "attention.out", f"feed_forward.{up}", "feed_forward.down")
        return _Block(
            *(self._norm(f"{block}.{name}") for name in (*norms, "feed_forward_norm")),
            *(self._matrix(f"{block}.{name}") for name in matrices),
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
        config, lanes = engine.config, engine.lanes
        rows = max(batch, engine.library.chunk_rows())
        context = -(-config.context // lanes) * lanes
        heads_width = config.heads * config.head_size
        columns = max(config.width, config.ff_width, heads_width)
        cache = (config.layers, batch, config.kv_heads)
        hidden = max(heads_width + 2 * config.kv_heads * config.head_size, 2 * config.ff_width)
        self.buffers = {
            "keys": torch.empty(
                *cache, context // lanes, config.head_size, lanes, dtype=engine.half
            ),
            "values": torch.empty(*cache, context, config.head_size, dtype=engine.half),
            "residual": torch.empty(rows, config.width),
            "hidden": torch.empty(rows, hidden),
            "attention_out": torch.empty(rows, max(config.width, heads_width)),
            "codes": torch.empty(rows, columns, dtype=torch.int8),
            "scales": torch.empty(rows, columns // GROUP_SIZE),
            "sums": torch.empty(rows, columns // GROUP_SIZE, dtype=torch.int32),
        }
        pointers = {name: buffer.data_ptr() for name, buffer in self.buffers.items()}
        self.state = _State(batch=batch, **pointers)

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
            blocks = -(-end // self.engine.lanes)
            for cache, used in (("keys", blocks), ("values", end)):
                every = self.buffers[cache][:, :, :, :used]
                every[:, 1:] = every[:, :1]
        self.length = end
        return logits[:, : config.vocab_size].expand(self.batch, -1)

    def reset(self) -> None:
        """See `Decoder`."""
        self.length = 0
