"""From align to the shipped adapter: peft itself, base and adapter must say what the merged model says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.align import __main__ as align
from stages.export import Export, adapter
from stages.export import __main__ as export
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import adapters, models, records, tokens

ALIGN = "problems: data/p, examples: data/p, context: 64, training: {steps: 4, batch_size: 2, lr: 0.01, warmup: 0}"
PARAMS = f"""
data:
  p: {{method: problems, source: code.py, licence: none, per_family: 2, families: {{leg_counting: {{}}}}}}
tokenize:
  bpe: {{method: bpe, documents: data/p, problems: data/p}}
pretrain:
  base: {{method: decoder, tokens: tokenize/bpe, hidden: 64, layers: 2, heads: 4, kv_heads: 2, ffn: 128}}
align:
  low: {{method: sft, model: pretrain/base, lora: {{rank: 2}}, {ALIGN}}}
  next: {{method: dpo, model: align/low, lora: {{}}, {ALIGN}}}
  all: {{method: sft, model: pretrain/base, {ALIGN}}}
export:
  adapter: {{method: adapter, model: align/low, tokens: tokenize/bpe, rows: 4}}
"""
BASE, OUT = Path("artifacts/pretrain/base/model"), Path("artifacts/export/adapter")


@pytest.fixture
def project(tmp_path, monkeypatch, rows, tiny, tokenizer):
    """A folder with params.yaml, a base, problems that are pairs too, and token rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    Path("code.json").write_text("{}")
    models.save(tiny, tokenizer, BASE)
    said = [{"id": str(n), "prompt": f"Say {n}", "chosen": f"#### {n}", "rejected": "#### none"} for n in range(20)]
    Path("records").mkdir()
    records.save(Path("records"), **dict.fromkeys(("train", "held_out"), [p | {"solution": p["chosen"]} for p in said]))
    numbers = rows.numpy().astype(np.uint16)
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(BASE / "tokenizer.json")}
    tokens.save(Path("tokens"), about, train=numbers, held_out=numbers)


def aligned(variant, base=BASE):
    out, given = Path("artifacts/align", variant), Path("records")
    code, kept = Path("code.json"), Path("checkpoints")
    align.main(variant, model=base, problems=given, examples=given, code=code, checkpoints=kept, out=out)
    return out / "model"


def exported(model):
    export.main("adapter", model=model, tokens=Path("tokens"), code=Path("code.json"), out=OUT)
    return OUT / "model"


@torch.no_grad()
def said(model, rows):
    return model(rows).logits


@pytest.mark.slow
def test_base_and_adapter_are_the_merged_model(project, rows):
    from peft import PeftModel

    merged = aligned("low")
    folder = exported(merged)
    expected, before = (said(models.load(each), rows[:4]) for each in (merged, BASE))
    theirs = PeftModel.from_pretrained(models.load(BASE), folder).eval()
    assert said(theirs, rows[:4]) == pytest.approx(expected, abs=1e-4)
    assert abs(expected - before).max() > 0.1  # it learnt something
    assert open_runtime(folder).logits(rows[0].tolist()) == pytest.approx(expected[0].numpy(), abs=1e-5)

    weights = load_file(folder / "adapter_model.safetensors")
    assert all(".lora_" in name and 2 in weight.shape for name, weight in weights.items())
    seen = json.loads((OUT / "metrics.json").read_text())
    assert abs(seen["kl"]) < 1e-6 and seen["parameters"] == models.load(BASE).num_parameters()
    assert seen["bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert seen["format"] == "LoRA adapter, without its base" and "peft.PeftModel" in seen["run"]


@pytest.mark.slow
def test_the_folder_says_nothing_of_this_machine_and_has_one_order(project, tmp_path):
    folder = exported(aligned("low"))
    about = json.loads((folder / "adapter_config.json").read_text())
    assert about["target_modules"] == sorted(about["target_modules"])  # a set: no two processes order it alike
    assert about["base_model_name_or_path"] == f"sha256:{files.digest(BASE)}" and not about["revision"]
    places = (str(tmp_path).encode(), str(BASE).encode())
    assert not [file for file in folder.iterdir() if any(place in file.read_bytes() for place in places)]
    before = files.digest(folder)
    assert files.digest(exported(aligned("low"))) == before


@pytest.mark.slow
def test_an_adapter_on_an_adapted_base_by_dpo(project, rows):
    """What the base was aligned with is merged into it: only what this variant trained is shipped."""
    merged = aligned("next", base=aligned("low"))
    folder = exported(merged)
    assert not [file for file in folder.iterdir() if file.is_dir()]
    expected = said(models.load(merged), rows[:1])[0].numpy()
    assert open_runtime(folder).logits(rows[0].tolist()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_another_base_is_refused(project, llama, tokenizer):
    folder = exported(aligned("low"))
    models.save(llama(len(tokenizer), seed=1), tokenizer, BASE)
    with pytest.raises(
        UserError, match="adapter/model was trained on the model sha256:.*, which is no artefact beside it"
    ):
        open_runtime(folder)
    inside = Path("artifacts/align/low/model/adapter")
    with pytest.raises(UserError, match=f"pretrain/base/model is not what {inside} was trained on: its sha256 is not"):
        adapters.load(inside)
    shutil.rmtree(BASE)
    with pytest.raises(UserError, match="artifacts/pretrain/base/model is missing"):
        adapters.load(inside)


@pytest.mark.slow
def test_without_lora_there_is_none(project):
    model = aligned("all")
    assert not (model / adapters.FOLDER).exists()
    with pytest.raises(UserError, match="adapter is no adapter: adapter_config.json is missing; align writes one"):
        exported(model)
    assert not (OUT / "model").exists()


@pytest.mark.parametrize("parent", ["align/all", "pretrain/base"])
def test_a_parent_without_lora_is_refused_before_any_work(project, parent):
    Path("params.yaml").write_text(PARAMS.replace("adapter, model: align/low", f"adapter, model: {parent}"))
    complaint = f"export.adapter.model is '{parent}', which has no `lora`; with it: align/low, align/next"
    with pytest.raises(UserError, match=complaint):
        params.load(Export, "adapter")
    assert adapter.Adapted.needs in params.read()["align"]["low"]
