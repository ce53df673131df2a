"""Writes a model folder in Hugging Face's format, which transformers, vLLM, MLX and others read.

`model.safetensors` (weights; format: huggingface.co/docs/safetensors), `config.json` (the keys of
transformers' own classes), `tokenizer.json` (written by `tokenizers`) with
`tokenizer_config.json`, `generation_config.json` (sampling defaults), and a model card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from torch import Tensor

from ..core.files import write_json, write_text
from ..inference.generation import DEFAULT_LENGTH, SamplingSettings
from ..inference.loading import LoadedModel
from ..model.config import ModelConfig
from ..pretrained.hf_weights import huggingface_tensors, shift_norms
from ..settings.init_from import SCRATCH
from ..text.byte_level import printed_merges, printed_tokens
from ..text.conversation import end_token
from ..text.interface import Tokenizer
from ..text.tokenizer import PATTERNS, BytePairTokenizer
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
    vocabulary, chat = tokenizer_json(loaded.tokenizer, loaded.opening), loaded.tokenizer.chat
    save_tensors(tensors, folder / "model.safetensors")
    write_text(folder / "tokenizer.json", vocabulary)
    end = end_token(loaded.tokenizer)
    named = {"bos_token": chat.bos_token, "eos_token": chat.eos_token}
    if end is not None:
        named["eos_token"] = loaded.tokenizer.control[end]
    if chat.template:
        write_text(folder / "chat_template.jinja", chat.template)
    write_json(folder / "config.json", config_json(config, end))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
            **{key: name for key, name in named.items() if name},
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


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a file in the format safetensors, as transformers and PEFT read it."""
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # it has no other errors than the system's
        raise OSError(str(error)) from error


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


def tokenizer_json(tokenizer: Tokenizer, opening: Sequence[int] = ()) -> str:
    """The tokenizer as one of Hugging Face's `tokenizers`, in its own format.

    It puts the control tokens `opening` before every text.
    """
    if not isinstance(tokenizer, BytePairTokenizer):
        if tuple(opening) == tokenizer.opening:
            return tokenizer.to_text()
        result = HFTokenizer.from_str(tokenizer.to_text())
        return with_opening(result, tokenizer, opening).to_str(pretty=True)
    printed = printed_tokens(tokenizer.spelled)
    merges = printed_merges(printed, tokenizer.merges())
    for token, name in tokenizer.control.items():
        printed[token] = name
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
    names = tokenizer.control.values()
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return with_opening(result, tokenizer, opening).to_str(pretty=True)


def with_opening(result: HFTokenizer, tokenizer: Tokenizer, opening: Sequence[int]) -> HFTokenizer:
    """`result`, which now puts the control tokens `opening` before every text."""
    special = [(tokenizer.control[token], token) for token in opening]
    if special:
        single = [*(name for name, _ in special), "$A"]
        result.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return result


def card(loaded: LoadedModel) -> str:
    """The model card `README.md`: what the model is and how to use it."""
    config = loaded.config
    start = loaded.provenance.get("init_from")
    base = start if isinstance(start, str) and start != SCRATCH else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {base}"] if "/" in base else []),
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
    if base:
        lines += ["", f"It began with the weights of {base}, whose licence holds for it, too."]
    usage, example = how_to_use(loaded)
    lines += [
        "",
        usage,
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        *example,
        "```",
    ]
    return "\n".join(lines) + "\n"


def how_to_use(loaded: LoadedModel) -> tuple[str, list[str]]:
    """A sentence about what the model does, and lines of Python that do it."""
    usage = "It continues text. It has no chat format."
    example = [
        'prompt = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt)[0]))",
    ]
    if loaded.opening:
        name = loaded.tokenizer.control[loaded.opening[0]]
        usage = f"It continues text. The token {name} begins one; the tokenizer puts it first."
    if loaded.tokenizer.chat.template:
        usage = "It answers prompts, in the form that its chat template gives them."
        example = [
            'messages = [{"role": "user", "content": "PROMPT"}]',
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
            'answer = model.generate(**prompt)[0, prompt["input_ids"].size(1) :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
    return usage, example


def training_data(provenance: dict[str, Any]) -> str:
    """A sentence about the training data, from the provenance in the model file."""
    try:
        train = provenance["data"]["splits"]["train"]
        epochs, loss = (provenance["metrics"][key] for key in ("best_epoch", "best_val_loss"))
        return (
            f"Trained on {train['bytes']:,} bytes ({train['tokens']:,} tokens), {epochs} epochs; "
            f"{loss:.4f} nats per token on the validation split."
        )
    except (LookupError, TypeError, ValueError):
        return "What it was trained on is not recorded."
