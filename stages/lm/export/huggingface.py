"""Writes a model folder in Hugging Face's format, which transformers, vLLM, MLX and others read.

`model.safetensors` (weights; format: huggingface.co/docs/safetensors), `config.json` (the keys of
transformers' own classes), `tokenizer.json` (written by `tokenizers`) with
`tokenizer_config.json`, `generation_config.json` (sampling defaults), and a model card.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Regex, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE

from ..core.files import write_json, write_text
from ..inference.generation import DEFAULT_LENGTH, SamplingSettings
from ..inference.loading import LoadedModel
from ..model.config import ModelConfig
from ..pretrained.hf_weights import huggingface_tensors, shift_norms
from ..text.byte_level import printed_merges, printed_tokens
from ..text.records import PROMPT_END, RECORD_END
from ..text.tokenizer import PATTERNS, Tokenizer
from .pattern_names import pattern_name
from .rotary_json import rotary_json


def write_huggingface(loaded: LoadedModel, folder: Path) -> None:
    """Write all files of a model, its weights in float32, into an existing folder.

    Raises:
        UserError: the tokenizer's pattern cannot be exported, or a file cannot be written.
    """
    config = loaded.config
    tensors = huggingface_tensors(config, loaded.model.state_dict())
    tensors = {
        name: shift_norms(config, name, tensor, -1.0).contiguous()
        for name, tensor in tensors.items()
    }
    tokenizer = hf_tokenizer(loaded.tokenizer, loaded.opening)
    try:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    except SafetensorError as error:  # it has no other errors than the system's
        raise OSError(str(error)) from error
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    end = loaded.tokenizer.ranks[RECORD_END] if loaded.ends else None
    write_json(folder / "config.json", config_json(config, end))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
        },
    )
    ours = SamplingSettings()
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "temperature": ours.temperature,
            "top_k": ours.top_k,
            "top_p": ours.top_p,
            "max_new_tokens": DEFAULT_LENGTH,
            "eos_token_id": end,
        },
    )
    write_text(folder / "README.md", card(loaded))


def config_json(config: ModelConfig, end: int | None) -> dict[str, Any]:
    """The content of `config.json`; `end` is the id of the token that ends a text, if any."""
    shared = {
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": end,
    }
    if config.arch != "gpt2":
        return shared | rotary_json(config)
    return shared | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_inner": config.ff_width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def hf_tokenizer(tokenizer: Tokenizer, opening: bytes = b"") -> HFTokenizer:
    """The tokenizer as one of Hugging Face's `tokenizers`; it puts the token `opening` first."""
    printed = printed_tokens(tokenizer.tokens)
    merges = printed_merges(printed, tokenizer.merges())
    # ignore_merges, as in tiktoken: a piece of text that is a token becomes that token directly.
    model = BPE({token: i for i, token in enumerate(printed)}, merges, ignore_merges=True)
    result = HFTokenizer(model)
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern_name(tokenizer)]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    if opening:
        first = tokenizer.ranks[opening]
        result.post_processor = processors.TemplateProcessing(
            single=f"{printed[first]} $A", special_tokens=[(printed[first], first)]
        )
    return result


def card(loaded: LoadedModel) -> str:
    """The model card `README.md`: what the model is and how to use it."""
    config = loaded.config
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        "# A small language model",
        "",
        f"{config.arch}, {loaded.model.parameter_count():,} parameters: {config.layers} layers of "
        f"width {config.width}, {config.heads} heads ({config.kv_heads} for keys and values), "
        f"{config.vocab_size:,} tokens, {config.context:,} tokens of context.",
    ]
    if loaded.scheme != "float32":
        lines += ["", f"The weights were quantized ({loaded.scheme}) and are stored as float32."]
    lines += ["", training_data(loaded.provenance)]
    usage = "It continues text. It has no special tokens, no end-of-text token and no chat format."
    example = [
        'prompt = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt)[0]))",
    ]
    if loaded.opening:
        end = loaded.tokenizer.ranks[loaded.opening]
        usage = f"It continues text. Token {end} begins and ends one; the tokenizer puts it first."
    if loaded.answers:
        begin, end = (loaded.tokenizer.ranks[mark] for mark in (PROMPT_END, RECORD_END))
        usage = (
            f"It answers prompts: token {begin} (the byte 0xFE) ends a prompt, token {end} (the "
            "byte 0xFF) the answer."
        )
        example = [
            f'prompt = tokenizer("PROMPT")["input_ids"] + [{begin}]',
            "answer = model.generate(torch.tensor([prompt]))[0, len(prompt) : -1]",
            "print(tokenizer.decode(answer))",
        ]
    lines += [
        "",
        usage,
        "",
        "```python",
        *(["import torch"] if loaded.answers else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        *example,
        "```",
    ]
    return "\n".join(lines) + "\n"


def training_data(provenance: dict[str, Any]) -> str:
    """A sentence about the training data, from the provenance in the model file."""
    try:
        train = provenance["data"]["splits"]["train"]
        epochs = provenance["metrics"]["best_epoch"]
        return f"Trained on {train['bytes']:,} bytes ({train['tokens']:,} tokens), {epochs} epochs."
    except (LookupError, TypeError, ValueError):
        return "What it was trained on is not recorded."
