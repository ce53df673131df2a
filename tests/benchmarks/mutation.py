"""How many hand-made faults the tests notice.

    python tests/benchmarks/mutation.py [--only TEXT] [--whole]

Each fault is one change to the library, put into a copy of the project. The test files most likely
to notice it run there; with `--whole` a fault that they miss meets the rest of the quick tests too.
A line tells each fault, and the last one how many were caught.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240


class Fault(NamedTuple):
    """A change to one file, and the tests that should notice it (`tests/test_X.py`)."""

    file: str
    """In `stages/lm`, or a stage with its `stages/`."""
    old: str
    new: str
    tests: str


FAULTS = [
    # core
    Fault("core/files.py", "                os.fsync(file.fileno())\n", "", "files"),
    Fault("core/files.py", "            _sync_folder(path.parent)\n", "", "files"),
    Fault(
        "core/files.py", "                temporary.unlink()\n", "                pass\n", "files"
    ),
    Fault("core/files.py", "allow_nan=False", "allow_nan=True", "files"),
    Fault("core/artifact.py", 'if digest.result() != document["digest"]:', "if False:", "artifact"),
    Fault(
        "core/artifact.py", "if kinds.get(kind) != version:", "if kind not in kinds:", "artifact"
    ),
    Fault(
        "core/artifact.py",
        "return texts.setdefault(value, value) if isinstance(value, str) else value",
        "return value",
        "artifact",
    ),
    Fault("core/errors.py", 'line = " ".join(message.split())', "line = message", "errors"),
    Fault("core/errors.py", "code = 130", "code = 0", "errors"),
    # settings
    Fault(
        "settings/loader.py",
        'if value == "auto":\n            value = auto.get(key, value)',
        'if value == "auto":\n            value = auto.get(name, value)',
        "settings recipes",
    ),
    Fault("settings/loader.py", "        if key not in names:", "        if False:", "settings"),
    Fault("settings/loader.py", "isinstance(value, bool) or not", "not", "settings"),
    # data
    Fault(
        "data/splits.py",
        '"val": range(train_end, test_start)',
        '"val": range(train_end - 1, test_start)',
        "data",
    ),
    Fault(
        "data/splits.py",
        "max(train_end, int(size * (1 - test_fraction) + 1e-6))",
        "int(size * (1 - test_fraction))",
        "data",
    ),
    Fault("data/splits.py", "& 0xC0 == 0x80", "& 0xC0 == 0xC0", "data"),
    Fault(
        "data/windows.py",
        "return tokens[starts[:, None] + np.arange(length + 1)]",
        "return tokens[starts[:, None] + np.arange(1, length + 2) - 1 + (length > 9)]",
        "data trainer",
    ),
    Fault("data/windows.py", "return random.permutation(", "return np.asarray(", "data"),
    Fault(
        "data/windows.py",
        "offset = random.integers(1, self.length, endpoint=True)",
        "offset = 1",
        "data",
    ),
    Fault(
        "data/sequence_packing.py",
        "np.cumsum(rows == prompt_end, axis=1)",
        "np.cumsum(rows == prompt_end, axis=0)",
        "sequence_packing",
    ),
    Fault(
        "data/sequence_packing.py",
        "if length > size:",
        "if length >= size:",
        "sequence_packing",
    ),
    # text
    Fault(
        "text/records.py",
        "hashlib.sha256(record.prompt.encode()).digest()",
        "record.prompt.encode()",
        "records",
    ),
    Fault("text/records.py", "list(dict.fromkeys(found))", "found", "records"),
    Fault("text/records.py", '"utf-8-sig"', '"utf-8"', "records"),
    Fault(
        "text/tokenizer.py",
        "if count == 2 else (own, own)",
        "if count == 2 else (0, own)",
        "tokenizer",
    ),
    Fault("text/tokenizer.py", "ord(char) - 0xDC00", "ord(char) - 0xDC01", "tokenizer"),
    # model
    Fault(
        "model/attention.py",
        ".triu(key_length - length + 1)",
        ".triu(key_length - length + 2)",
        "transformer",
    ),
    Fault("model/attention.py", "alpha=size**-0.5", "alpha=size**-0.49", "transformer"),
    Fault(
        "model/transformer.py",
        "(segments.unsqueeze(2) == segments.unsqueeze(1)).tril()",
        "(segments.unsqueeze(2) >= segments.unsqueeze(1)).tril()",
        "transformer sequence_packing",
    ),
    Fault(
        "model/transformer.py",
        "config.rope_base**-half",
        "config.rope_base ** (-half * 0.99)",
        "transformer",
    ),
    Fault("model/fused.py", "mul_(-1 / x.size(-1))", "mul_(1 / x.size(-1))", "transformer"),
    Fault(
        "model/fused.py",
        "learned = targets >= 0\n    nats",
        "learned = targets >= -1\n    nats",
        "transformer sequence_packing",
    ),
    Fault(
        "model/checkpoint.py",
        "weight.sum().isfinite() or weight.isfinite().all()",
        "True",
        "checkpoint loading damage",
    ),
    Fault(
        "model/checkpoint.py", "weight.dtype == torch.float32", "True", "checkpoint loading damage"
    ),
    Fault(
        "model/scoring.py",
        "np.maximum(ends - 1 - context, 0)",
        "np.maximum(ends - context, 0)",
        "scoring",
    ),
    Fault(
        "model/scoring.py", "stride = max(1, context - min_context)", "stride = context", "scoring"
    ),
    Fault("model/metrics.py", "nats / size / math.log(2)", "nats / size * math.log(2)", "metrics"),
    Fault("model/metrics.py", "if line not in held", "if True", "metrics resume"),
    # training
    Fault(
        "training/optim.py",
        "(step + 1) / (settings.warmup_steps + 1)",
        "step / (settings.warmup_steps + 1)",
        "optim trainer",
    ),
    Fault("training/optim.py", "scale = math.sqrt(max(1, rows / columns))", "scale = 1.0", "optim"),
    Fault(
        "training/optim.py",
        'torch._foreach_lerp_(updates, momenta, group["momentum"])',
        "pass",
        "optim",
    ),
    Fault("training/optim.py", "optimizer.load_state_dict(state)", "pass", "optim trainer"),
    Fault(
        "training/lora.py",
        "= split_sizes, rank, alpha / rank",
        "= split_sizes, rank, alpha",
        "lora",
    ),
    Fault(
        "training/bigrams.py", "kept = (counts - DISCOUNT).clamp(min=0)", "kept = counts", "bigrams"
    ),
    Fault(
        "training/trainer.py",
        '        restore_random_state(state["random"], self.machine.device)\n',
        "",
        "trainer",
    ),
    Fault("training/ema.py", "(step + 1) / (step + 10)", "(step + 1) / (step + 1)", "trainer"),
    Fault(
        "training/calibration.py",
        "parameter.data = weight / temperature",
        "parameter.data = weight * temperature",
        "trainer",
    ),
    Fault(
        "training/batches.py",
        "for number in numbers",
        "for number in [numbers[0]] * accumulate",
        "trainer",
    ),
    Fault("training/history.py", "self.point_losses.clear()", "pass", "trainer"),
    Fault(
        "training/resume.py",
        'text = json.dumps({"version": VERSION, **self.ingredients}, sort_keys=True)',
        'text = json.dumps({"version": VERSION}, sort_keys=True)',
        "resume",
    ),
    Fault("training/resume.py", "self.path.rename(aside)", "self.path.unlink()", "resume"),
    Fault(
        "training/token_splitting.py",
        "(random.random(len(row)) < share)",
        "(random.random(len(row)) < share / 4)",
        "data",
    ),
    # quantization
    Fault("quantization/rans.py", "(states != LOW).any()", "False", "rans"),
    Fault(
        "quantization/rans.py",
        "if total > MOST_PER_BYTE * len(stream):",
        "if False:",
        "rans quantized_model damage",
    ),
    Fault("quantization/gptq.py", "alpha=-1)", "alpha=-0.5)", "gptq"),
    Fault(
        "quantization/gptq.py",
        "y.register_hook(lambda grad: add(gradients, name, grad.square().sum((0, 1))))",
        "y.register_hook(lambda grad: add(gradients, name, grad.abs().sum((0, 1))))",
        "gptq",
    ),
    # inference
    Fault(
        "inference/samplers.py",
        "ordered.cumsum(dim=-1) - ordered < p",
        "ordered.cumsum(dim=-1) < p",
        "samplers",
    ),
    Fault(
        "inference/samplers.py",
        "logits / penalty, logits * penalty",
        "logits / penalty, logits / penalty",
        "samplers",
    ),
    Fault(
        "inference/samplers.py",
        "if k <= 0 or k >= logits.numel():",
        "if k <= 1 or k >= logits.numel():",
        "samplers generation",
    ),
    Fault("inference/samplers.py", "text[: min(ends)[1]]", "text[: min(ends)[0]]", "samplers"),
    Fault(
        "inference/generation.py", "seed + index * 0x9E3779B97F4A7C15", "seed + index", "generation"
    ),
    Fault(
        "inference/generation.py",
        "            self.seen[prompt] = True\n",
        "",
        "generation samplers",
    ),
    Fault(
        "inference/generation.py",
        "final = last or self.stops.met",
        "final = self.stops.met",
        "generation",
    ),
    Fault(
        "inference/token_step.py",
        "config.head_size**-0.5",
        "config.head_size**-0.45",
        "generation loading engine",
    ),
    # evaluation, export, pretrained
    Fault(
        "evaluation/surprisal.py",
        "dtype=torch.bool).triu(1)",
        "dtype=torch.bool).triu(2)",
        "surprisal",
    ),
    Fault(
        "evaluation/memorization.py",
        "steps[copied + span] -= 1",
        "steps[copied + span - 1] -= 1",
        "memorization",
    ),
    Fault(
        "export/gguf_file.py",
        "writer.add_rope_freq_base(",
        "(lambda base: writer.add_rope_freq_base(base + 1))(",
        "export",
    ),
    Fault(
        "pretrained/hf_weights.py",
        "name: tensor.T for name, tensor in views.items()",
        "name: tensor for name, tensor in views.items()",
        "pretrained export",
    ),
    # stages
    Fault("stages/train.py", "return 128 + stop.number", "return 0", "end_to_end"),
    Fault(
        "stages/quantize.py",
        "if increase <= settings.max_increase:\n            break",
        "break",
        "quantize",
    ),
]


def caught(fault: Fault, folder: Path, whole: bool) -> bool:
    """Whether a test fails in a copy of the project with the fault."""
    for name in ("stages", "app", "tests", "params.yaml", "dvc.yaml", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    for name in (
        "README.md",
        "requirements.txt",
        ".gitignore",
        ".dvcignore",
        ".gitattributes",
        ".dvc",
    ):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for name in ("data/base", "models", "metrics"):
        (folder / name).mkdir(parents=True)
    path = folder / (fault.file if fault.file.startswith("stages/") else f"stages/lm/{fault.file}")
    text = path.read_text("utf-8")
    assert text.count(fault.old) == 1, (
        f"{fault.file} holds {fault.old!r} {text.count(fault.old)} times"
    )
    path.write_text(text.replace(fault.old, fault.new), "utf-8")
    suites = [[f"tests/test_{name}.py" for name in fault.tests.split()]]
    if whole:
        suites.append(["tests"])
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow"]
    for tests in suites:
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", *options, *tests]
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                timeout=LIMIT_S if tests != ["tests"] else 4 * LIMIT_S,
            ).returncode
        except subprocess.TimeoutExpired:
            return True
        assert code in (0, 1), f"pytest ended with {code}"
        if code:
            return True
    return False


def main() -> None:
    """Try every fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="a part of the file's name")
    parser.add_argument("--whole", action="store_true", help="all quick tests for what is missed")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in fault.file]
    count = 0
    for fault in faults:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            found = caught(fault, Path(folder), arguments.whole)
        count += found
        seconds = time.monotonic() - began
        change = " ".join(f"{fault.old.strip()} -> {fault.new.strip()}".split())
        print(
            f"{'caught' if found else 'MISSED'} {seconds:4.0f} s  {fault.file}: {change[:110]}",
            flush=True,
        )
    print(f"{count} of {len(faults)} faults caught")


if __name__ == "__main__":
    main()
