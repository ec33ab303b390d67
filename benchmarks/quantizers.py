"""SmolLM2-135M-Instruct to 4 bits: ours, llmcompressor's `oneshot`, AutoAWQ and llama.cpp's quantizer, side by side.

python3.11 -m venv /tmp/awq && /tmp/awq/bin/pip install torch==2.13.0 transformers==4.51.3 accelerate datasets \\
    zstandard && /tmp/awq/bin/pip install --no-deps --no-build-isolation autoawq==0.2.9
python -m benchmarks.boards FOLDER
python -m benchmarks.quantizers FOLDER --autoawq /tmp/awq/bin/python

The model and the rows are those of the boards in FOLDER. Seconds are from the model on disk to the quantized one on
disk: reading, calibration on the same rows, rounding in groups of 64, writing, but no measuring. Perplexity is of what
was written, on the same held-out rows: Linears as the file has them in transformers, a GGUF in llama.cpp. AutoAWQ wants
an older transformers, so it runs in an environment of its own and hands its rounded weights back; once without
clipping, once with it, as its users have it; ours alike. The peer of Q4_K_M is the program `llama-quantize` without
an importance matrix and with its own choice of types for short rows; both read a 32-bit GGUF from our writer.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

import cyclopts
import torch
from datasets import Dataset
from ik_llama_cpp import find_quantize_bin
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from torch import Tensor

from benchmarks import _result
from stages.export import gguf
from stages.export.parts import gguf_file
from stages.lib.nets import losses
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models, tokens
from stages.quantize import Quantization, awq, gptq, rtn
from stages.quantize.parts import compressed

RESULT = Path("benchmarks/results/quantizers.json")
GROUP, CALIBRATION, HELD_OUT = 64, 8, 32
PARENTS = {"model": "a/b", "tokens": "a/b"}
PEERS = {
    "rtn": "llmcompressor",
    "gptq": "llmcompressor",
    "awq": "autoawq",
    "awq_clipped": "autoawq",
    "q4_k_m": "llama_cpp",
}
INTEGERS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": False}


def main(folder: Path, *, autoawq: Path, out: Path = RESULT) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    source, packed = folder / "artifacts/pretrain/teacher/model", folder / "artifacts/tokenize/smollm2/tokens"
    seen, unseen = tokens.sample(packed, CALIBRATION, 0, source), tokens.held_out(packed, HELD_OUT, source)
    ways: dict[str, Callable[[Path], Any]] = {
        "ours_rtn": partial(ours, rtn.RTN, source, torch.empty(0, 0)),
        "llmcompressor_rtn": partial(llmcompressor, "rtn", source, None),
        "ours_gptq": partial(ours, gptq.GPTQ, source, seen),
        "llmcompressor_gptq": partial(llmcompressor, "gptq", source, seen),
        "ours_awq": partial(ours, awq.AWQ, source, seen, clip=False),
        "autoawq_awq": partial(peer_awq, autoawq, source, seen, "no clip"),
        "ours_awq_clipped": partial(ours, awq.AWQ, source, seen),
        "autoawq_awq_clipped": partial(peer_awq, autoawq, source, seen, "clip"),
        "ours_q4_k_m": partial(ours_gguf, source, seen),
        "llama_cpp_q4_k_m": partial(llama_cpp, source),
    }
    result: dict[str, Any] = {"unquantized_perplexity": round(perplexity(source, unseen), 3)}
    for name, quantize in ways.items():
        with tempfile.TemporaryDirectory() as place, compressed.quiet():
            start = perf_counter()
            quantize(Path(place))
            result[f"{name}_seconds"] = round(perf_counter() - start, 1)
            result[f"{name}_perplexity"] = round(perplexity(Path(place), unseen), 3)
            print(f"{name:22} {result[f'{name}_seconds']:8} s  perplexity {result[f'{name}_perplexity']:8}", flush=True)
    for method, peer in PEERS.items():
        ratio = result[f"{peer}_{method}_seconds"] / result[f"ours_{method}_seconds"]
        result[f"ratio_{method}_seconds"] = round(ratio, 2)
    _result.save(out, result | {"autoawq": "0.2.9"}, "torch", "transformers", "llmcompressor", "ik-llama-cpp-python")


def perplexity(folder: Path, rows_NT: Tensor) -> float:
    if not (folder / "model.gguf").exists():
        return exp(losses.evaluate(models.load(folder), rows_NT))
    runtime = open_runtime(folder)
    logits_NTV = (torch.from_numpy(runtime.logits(row.tolist()))[None] for row in rows_NT)
    total = sum(losses.next_token(each, row[None]).item() for each, row in zip(logits_NTV, rows_NT, strict=True))
    return exp(total / len(rows_NT))


def ours(kind: type[Quantization], source: Path, rows_NT: Tensor, out: Path, **more: bool) -> None:
    given = {"method": kind.__module__.rsplit(".", 1)[1], "group_size": GROUP} | PARENTS | more
    net = kind.model_validate(given).quantize(models.load(source), rows_NT)
    compressed.round_rest(net, torch.float16)
    models.write(compressed.pack(net, torch.float16), models.load_tokenizer(source), out)


def llmcompressor(method: str, source: Path, rows_NT: Tensor | None, out: Path) -> None:
    scheme: Any = {"config_groups": {"all": {"targets": ["Linear"], "weights": INTEGERS}}, "ignore": ["lm_head"]}
    order: Any = "static"
    recipe = GPTQModifier(**scheme, actorder=order) if method == "gptq" else QuantizationModifier(**scheme)
    data = {}
    if rows_NT is not None:
        columns = {"input_ids": rows_NT.tolist(), "attention_mask": torch.ones_like(rows_NT).tolist()}
        data = {"dataset": Dataset.from_dict(columns), "num_calibration_samples": len(rows_NT)}
        data |= {"max_seq_length": rows_NT.shape[1]}
    oneshot(model=str(source), recipe=recipe, output_dir=str(out), **data)


def peer_awq(python: Path, source: Path, rows_NT: Tensor, clip: str, out: Path) -> None:
    """Its transformers reads RoPE's base where older configs have it."""
    config = json.loads((source / "config.json").read_text())
    old = config | {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": "float32"}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(old))
        (Path(place) / "model.safetensors").symlink_to((source / "model.safetensors").absolute())
        (Path(place) / "rows.json").write_text(json.dumps(rows_NT.tolist()))
        command = [python, Path(__file__).with_name("_autoawq.py"), place, out, str(GROUP), clip]
        subprocess.run(command, check=True, capture_output=True)
    (out / "config.json").write_text(json.dumps(config))


def ours_gguf(source: Path, rows_NT: Tensor, out: Path) -> None:
    given = {"method": "gguf", "type": "Q4_K_M", "fallback": True, "calibration": {}}
    technique = gguf.GGUF.model_validate(given | PARENTS)
    technique.write(models.load(source), models.load_tokenizer(source), out, rows_NT)


def llama_cpp(source: Path, out: Path) -> None:
    model, tokenizer = models.load(source), models.load_tokenizer(source)
    full = out / "full.gguf"
    gguf_file.write(model, tokenizer, full)
    tokenizer.save_pretrained(out)
    subprocess.run([str(find_quantize_bin()), full, out / "model.gguf", "Q4_K_M"], check=True, capture_output=True)


if __name__ == "__main__":
    cyclopts.run(main)
