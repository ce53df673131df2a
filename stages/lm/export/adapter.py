"""Writes LoRA adapters apart from the weights that they adapt, in PEFT's format.

A checkpoint holds the sum of both. What it has more than the weights of `init_from` is, for each
matrix, of the rank that was trained, and so again a product B A of two thin matrices: not the
trained ones, but with the same product.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import write_json
from ..core.paths import shown
from ..inference.loading import LoadedModel
from ..pretrained.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_path
from ..pretrained.hf_weights import huggingface_tensors, names_of, shift_norms
from ..pretrained.model import PretrainedModel
from .huggingface import save_tensors

ROUNDING = 1e-5
"""How far a sum in float32 may be from W + B A, as a share of its largest number."""
MERGED = "ask for the format huggingface, which holds the sum of weights and adapters."


def write_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into an existing folder.

    Raises:
        UserError: no adapters were trained, or what they were trained on is not in `data/base/`.
    """
    config, (base, rank) = loaded.config, trained_on(loaded)
    gpt2 = config.arch == "gpt2"
    rank *= 3 if gpt2 else 1  # its queries, keys and values are one matrix, with three adapters
    before = huggingface_tensors(config, base.state_dict(config))
    after = huggingface_tensors(config, loaded.model.state_dict())
    norm = {name: after.pop(name) for name in list(after) if names_of(config)["final_norm"] in name}
    adapters = adapter_tensors(before, after, rank, gpt2)
    if not adapters:
        raise UserError(f"the best epoch is {shown(base.path)} itself, without adapters.")
    if all(torch.equal(tensor, before[name]) for name, tensor in norm.items()):
        norm = {}  # but `train.calibrate` changes it
    norm = {name: shift_norms(config, name, each, -1.0).clone() for name, each in norm.items()}
    tensors = {f"base_model.model.{name}": each for name, each in (adapters | norm).items()}
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,  # B A is added as it is
        "target_modules": sorted({".".join(name.split(".")[-4:-2]) for name in adapters}),
        "fan_in_fan_out": gpt2,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in norm}) or None,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, described)


def adapter_tensors(
    before: dict[str, Tensor], after: dict[str, Tensor], rank: int, transposed: bool
) -> dict[str, Tensor]:
    """`<name>.lora_A.weight` and `<name>.lora_B.weight` of each matrix that training changed.

    Raises:
        UserError: one was changed by more than a matrix of this rank.
    """
    tensors = {}
    for name, tensor in after.items():
        if torch.equal(tensor, before[name]):
            continue
        added = tensor.double() - before[name].double()
        a, b = factors(added.T if transposed else added, rank)
        added -= (b @ a).T if transposed else b @ a
        if not added.abs().max() <= ROUNDING * tensor.abs().max():
            raise UserError(
                f"training changed {name} by more than adapters of rank {rank}; {MERGED}"
            )
        module = name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = a.float().contiguous()
        tensors[f"{module}.lora_B.weight"] = b.float().contiguous()
    return tensors


def trained_on(loaded: LoadedModel) -> tuple[PretrainedModel, int]:
    """The weights that the adapters of a model were trained on, and their rank.

    Raises:
        UserError: there are no adapters, or `data/base/` does not hold these weights.
    """
    try:
        name, digest = (loaded.provenance[key] for key in ("init_from", "base_sha256"))
        adapt, rank = (loaded.provenance["train"][key] for key in ("adapt", "lora_rank"))
    except (LookupError, TypeError):
        adapt = ""
    if adapt != "lora" or loaded.scheme != "float32" or (type(name), type(rank)) != (str, int):
        raise UserError(
            "there are no adapters to keep apart: only a checkpoint that was trained with "
            f"train.adapt set to lora can give them; {MERGED}"
        )
    path = base_path(name)
    if not path.exists():
        raise UserError(
            f"{shown(path)} is missing, without which adapters cannot be told from the weights "
            f"that they were trained on; put it there again, or {MERGED}"
        )
    base = PretrainedModel.open(name)
    if base.adapter or base.digest() != digest:
        raise UserError(
            f"{shown(path)} does not hold the plain weights that the adapters were trained on; "
            f"put these there again, or {MERGED}"
        )
    return base, rank


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, columns) and B (rows, rank), for a matrix B A of at most this rank, float64.

    B is an orthonormal basis of the columns, found by subspace iteration (Halko et al. 2011, arXiv
    0909.4061, algorithm 4.4).
    """
    rank_there = min(rank, *matrix.shape)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rank_there, matrix.size(1), generator=generator, dtype=matrix.dtype)
    for _ in range(3):
        b = torch.linalg.qr(matrix @ a.T).Q
        a = b.T @ matrix
    zeros = rank - rank_there
    return torch.nn.functional.pad(a, (0, 0, 0, zeros)), torch.nn.functional.pad(b, (0, zeros))
