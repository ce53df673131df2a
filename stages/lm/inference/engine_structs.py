"""The structs of model.h, as ctypes has them, and a check that both are the same."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p, sizeof


class Matrix(Structure):
    """Packed codes and scales."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "bias")),
        *((name, c_int32) for name in ("rows", "columns", "bits", "grouped")),
    )


class Norm(Structure):
    """Without a weight, no norm."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Table(Structure):
    """Embeddings by row."""

    _fields_ = (*((name, c_void_p) for name in ("codes", "scales", "values")), ("groups", c_int32))


NORMS = (
    *("attention_norm", "attention.query_norm", "attention.key_norm", "attention_post_norm"),
    *("feed_forward_norm", "feed_forward_post_norm"),
)


class Block(Structure):
    """One layer."""

    _fields_ = (
        *((name.split(".")[-1], Norm) for name in NORMS),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, c_void_p) for name in ("cosines", "sines")),
        ("window", c_int32),
    )


SIZES = ("layers", "heads", "kv_heads", "head_size", "width", "padded_vocab")


class Model(Structure):
    """The weights."""

    _fields_ = (
        ("blocks", POINTER(Block)),
        ("tokens", Table),
        ("positions", Table),
        ("final_norm", Norm),
        ("head", Matrix),
        *((name, c_float) for name in ("norm_eps", "embedding_scale")),
        *((name, c_int32) for name in (*SIZES, "norm_all_heads", "gelu", "gated")),
    )


BUFFERS = ("keys", "values", "residual", "hidden", "attention_out", "codes", "scales", "sums")


class State(Structure):
    """The cache and the buffers of a batch of sequences."""

    _fields_ = (*((name, c_void_p) for name in BUFFERS), ("batch", c_int32), ("room", c_int32))


class _LayoutEntry(Structure):
    _fields_ = (("name", c_char_p), ("bytes", c_int64))


STRUCTS = (Matrix, Norm, Table, Block, Model, State)


def layout_here() -> dict[str, int]:
    """The size of each struct and the offset of each of its fields, in bytes, as defined here."""
    layout = {}
    for struct in STRUCTS:
        name = struct.__name__
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
