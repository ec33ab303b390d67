"""A model of a billion weights through import, pruning, quantizing and export: minutes, and the most memory it takes.

python -m benchmarks.large [--techniques quantize.gptq,export]

A random llama of the shape of Llama 3.2 1B (1.24 billion weights, 2.5 GB in bfloat16), 256 tokens a row. Every stage
runs as dvc.yaml calls it, in a process of its own. Memory is the most that the process and its children hold at a time
(PSS: what they share counts once), and how much of that is their own: pages of files that they map can be dropped and
read again where memory is short. Into families.json, as llama-1b.STAGE.VARIANT.
"""

import contextlib
import copy
import json
import os
import tempfile
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import cyclopts
import psutil

from benchmarks import _result, families
from stages.lib.frame import files

NAME = "llama-1b"
SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
FEW = {"rows": 2}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # to benchmarks/families.yaml; what is not here does not run
    "pretrain": {"pretrained": {"dtype": "stored"}},
    "prune": {
        "magnitude": {},
        "wanda": {"calibration": FEW},
        "sparsegpt": {"calibration": FEW},
        "depth": {"model": "pretrain/pretrained", "layers": 12, "calibration": FEW},
    },
    "quantize": {
        "rtn": {"group_size": 128},
        "int8": {},
        "nf4": {},
        "awq": {"group_size": 128, "calibration": FEW},
        "gptq": {"group_size": 128, "calibration": FEW},
    },
    "export": {"safetensors": {}, "gguf": {"type": "Q4_K_M"}},
}
TEXTS = {  # 256 tokens a row need more problems
    "data": {"problems": {"per_family": 1000}},
    "tokenize": {"bpe": {"context": 256, "train_tokens": 8192, "held_out_tokens": 2048}},
}


def main(*, techniques: str = "", out: Path = families.RESULT) -> None:
    """Comma-separated names as STAGE or STAGE.VARIANT; all others keep what `out` holds."""
    asked = techniques.split(",") if techniques else []
    target = families.ROOT / out
    found: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        alone(make)
        tree = variants()
        for name in (f"{section}.{variant}" for section, entries in CHANGES.items() for variant in entries):
            section, variant = name.split(".")
            if asked and name != "pretrain.pretrained" and not {section, name}.intersection(asked):
                continue
            minutes, peak, own_peak = alone(families.run, tree, section, variant)
            kl = files.read_json(Path(f"artifacts/{section}/{variant}/metrics.json")).get("kl")
            held = f"{peak:.1f} GB, {own_peak:.1f} GB without files"
            print(f"{name}: {minutes:.1f} minutes, {held}{'' if kl is None else f', kl {kl:.2g}'}", flush=True)
            told = {"minutes": round(minutes, 2), "peak_gb": round(peak, 2), "peak_own_gb": round(own_peak, 2)}
            told |= {} if kl is None else {"kl": float(f"{kl:.3g}")}
            found |= {f"{NAME}.{name}.{key}": value for key, value in told.items()}
            _result.save(target, found, "torch", "transformers", "llmcompressor")


def variants() -> dict[str, Any]:
    tree = copy.deepcopy(families.TREE)
    lengthen(tree)
    tree["pretrain"]["pretrained"]["external"] = {"source": "given", "sha256": files.digest(Path("given"))}
    for section, entries in CHANGES.items():
        for variant, changes in entries.items():
            shared = {} if section == "pretrain" else {"model": "pretrain/pretrained"}
            measured = FEW if section == "export" else {"held_out_rows": FEW["rows"]}
            tree[section][variant] |= shared | measured | changes
    return tree


def lengthen(tree: dict[str, Any]) -> None:
    for section, entries in TEXTS.items():
        for variant, changes in entries.items():
            tree[section][variant] |= changes


def make() -> None:
    """Texts and rows, and the model in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.lib.store import models

    lengthen(families.TREE)
    families.prepare(Path())
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))  # pyright: ignore[reportArgumentType]
    models.save(model, models.load_tokenizer(Path("artifacts/tokenize/bpe/tokenizer")), Path("given"))


def alone(work: Any, *arguments: Any) -> tuple[float, float, float]:
    """Minutes, GB at the peak, and GB at the peak without pages of files, of work in a process of its own."""
    process = get_context("spawn").Process(target=work, args=arguments)
    start, peak, own = monotonic(), 0.0, 0.0
    process.start()
    while process.is_alive():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            whole = psutil.Process(process.pid)
            maps = [held(part.pid) for part in [whole, *whole.children(recursive=True)]]
            peak = max(peak, sum(each["Pss"] for each in maps))
            own = max(own, sum(each["Pss_Anon"] + each["Pss_Shmem"] for each in maps))
        sleep(0.2)
    if process.exitcode:
        raise SystemExit(f"{work.__name__} of {arguments[1:]} ended with {process.exitcode}")
    return (monotonic() - start) / 60, peak / 1e9, own / 1e9


def held(pid: int) -> dict[str, int]:
    """Bytes of a process's memory by kind, as Linux says."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: 1024 * int(size) for name, size, *_ in (line.replace(":", "").split() for line in lines)}


if __name__ == "__main__":
    cyclopts.run(main)
