"""Settings that `init_from` fixes, and those that need weights to start from."""

from collections.abc import Mapping
from typing import Any

from ..core.errors import UserError
from .loader import convert, quoted


def refuse_contradictions(given: dict[str, Any], base: Mapping[str, Any], file: str) -> None:
    """Compare the settings `given` in `params.yaml` with those that `init_from` fixes (`base`).

    Raises:
        UserError: a setting differs from that of the weights, or needs weights and has none.
    """
    if not base:
        for key in ("tokenize.tokenizer", "model.init"):
            if given.get(key) == "base":
                raise UserError(
                    f"{file}: {key} is base, but init_from is scratch, which has none; set {key} "
                    "to auto, or init_from to the weights to start from."
                )
        if given.get("train.adapt") == "lora":
            raise UserError(
                f"{file}: train.adapt is lora, but init_from is scratch: there is nothing to "
                "adapt. Set train.adapt to full, or init_from to the weights to start from."
            )
    elif given.get("train.share_spellings") is True:
        raise UserError(
            f"{file}: train.share_spellings is true, but init_from names weights that were trained "
            "without it; set train.share_spellings to auto, or init_from to scratch."
        )
    for key, fixed in base.items():
        value = given.get(key, "auto")
        try:
            same = convert(value, type(fixed)) == fixed
            shorter = key == "model.context" and convert(value, int) < fixed
        except (ValueError, OverflowError):
            continue  # it is auto, or its own setting refuses it later
        if value != "auto" and not same and not shorter:
            limit = " at most" if key == "model.context" else ""
            raise UserError(
                f"{file}: {key} is {quoted(value)}, but the weights that init_from names have "
                f"{quoted(fixed)}{limit}; set {key} to auto, or init_from to scratch."
            )
