r"""The same greedy conversation here, in transformers and in llama.cpp's server.

    python tests/benchmarks/conversation.py --python VENV/bin/python --model models/checkpoint.pt \
        "First prompt" "Second prompt" "Third prompt"

Exports a model to a Hugging Face folder and GGUF files; each program reads its file, is asked
line after line, and is given its own answers back. VENV is an environment with xllamacpp. For each
file: the number of answers that are the same as those of the model file here, and the first that is
not. Beside a checkpoint, its weights in eight bits answer here, too.
"""

import argparse
import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import pipeline

from stages.export import write
from stages.lm.inference.chatting import replies
from stages.lm.inference.generation import SamplingSettings
from stages.lm.inference.loading import load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.quantization.quantized_model import quantize_checkpoint

FILES = {"f32": "F32", "f16": "F16", "q8_0": "F16"}
"""Number formats of GGUF files, and of llama.cpp's keys and values with each (F16 is usual)."""
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = getattr(
    xllamacpp.ggml_type, "GGML_TYPE_" + sys.argv[3]
)
server = xllamacpp.Server(params)
print("\\n" + server.listening_address, flush=True)
sys.stdin.read()
"""

Messages = list[dict[str, str]]
Answer = Callable[[Messages], str]


def converse(lines: list[str], answer: Answer) -> list[str]:
    """The answers to successive lines."""
    messages: Messages = []
    for line in lines:
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": answer(messages)})
    return [message["content"] for message in messages[1::2]]


def ours(path: Path, lines: list[str], length: int) -> list[str]:
    """What `app.generate --chat --temperature 0` prints."""
    answers: list[str] = []

    def said() -> Iterator[str]:
        for line in lines:
            answers.append("")
            yield line

    for text in replies(load_model(path), said(), "", length, SamplingSettings(temperature=0), 1):
        answers[-1] += text
    return [answer.removesuffix("\n") for answer in answers]


def transformers_answers(folder: Path, length: int) -> Answer:
    """`pipeline("text-generation")` with a folder."""
    generate = pipeline("text-generation", model=str(folder), device="cpu", dtype="float32")

    def answer(messages: Messages) -> str:
        result = generate(messages, do_sample=False, max_new_tokens=length)
        return str(result[0]["generated_text"][-1]["content"])

    return answer


@contextmanager
def llama_answers(
    python: Path, file: Path, length: int, context: int, cache: str
) -> Iterator[Answer]:
    """llama.cpp's server with a file, in a process of its own."""
    command = [str(python), "-c", SERVER, str(file), str(context), cache]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout and process.stdin
    address = next(line.strip() for line in process.stdout if line.startswith("http"))

    def answer(messages: Messages) -> str:
        asked: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": length}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    try:
        yield answer
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    """Print how many answers of each program are those of the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--python", type=Path, required=True, help="of xllamacpp's environment")
    parser.add_argument("--model", type=Path, required=True, help="a model file")
    parser.add_argument("--length", type=int, default=60)
    asked = parser.parse_args()
    loaded, lines = load_model(asked.model), asked.lines
    expected = ours(asked.model, lines, asked.length)
    for line, answer in zip(lines, expected, strict=True):
        print(f"> {line}\n{answer!r}")

    def tell(name: str, answers: list[str]) -> None:
        same = [a == b for a, b in zip(answers, expected, strict=True)]
        first = "" if all(same) else f"; first other: {answers[same.index(False)]!r}"
        print(f"{name}: {sum(same)} of {len(same)} answers the same{first}", flush=True)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if loaded.scheme == "float32":
            quantize_checkpoint(Checkpoint.load(asked.model), "int8").save(folder / "int8.pt")
            tell("ours, int8", ours(folder / "int8.pt", lines, asked.length))
        write(loaded, folder, ["huggingface", *(f"gguf-{kind}" for kind in FILES)])
        tell("transformers", converse(lines, transformers_answers(folder, asked.length)))
        for kind, cache in FILES.items():
            file, context = folder / f"model-{kind}.gguf", min(loaded.config.context, 2048)
            with llama_answers(asked.python, file, asked.length, context, cache) as answer:
                tell(f"llama.cpp, {kind}", converse(lines, answer))


if __name__ == "__main__":
    main()
