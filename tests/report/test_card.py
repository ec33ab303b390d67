"""The card names every ancestor and every licence, once."""

from pathlib import Path

from transformers import AutoConfig

from stages.export import gguf, safetensors
from stages.lib.frame import params
from stages.report.parts import model_card

TREE = {
    "data": {
        "corpus": {"method": "documents", "source": "texts", "licence": "CC0"},
        "problems": {"method": "problems", "source": "code.py", "licence": "Apache-2.0",
                     "per_family": 2, "families": {"leg_counting": {}}},
    },
    "tokenize": {"bpe": {"method": "bpe", "documents": "data/corpus", "problems": "data/problems"}},
    "pretrain": {"base": {"method": "pretrained", "tokens": "tokenize/bpe",
                          "external": {"source": "org/model", "revision": "abc123"}}},
    "prune": {"half": {"method": "magnitude", "model": "pretrain/base", "tokens": "tokenize/bpe", "sparsity": 0.5}},
}  # fmt: skip
METRICS = {"parameters": 10, "bits_per_weight": 8.5, "kl": 0.1, "same_top": 0.9, "loss_before": 1, "loss_after": 1.1}


class Tokenizer:
    chat_template = "{{ x }}"


def card(monkeypatch, tmp_path, technique, config, **other):
    from ruamel.yaml import YAML

    monkeypatch.chdir(tmp_path)
    YAML().dump(TREE, Path("params.yaml"))
    method = technique.__name__.rsplit(".", 1)[1]
    p = technique.Params(method=method, model="prune/half", tokens="tokenize/bpe", **other)
    return model_card.text(technique, "mine", p, config, Tokenizer(), METRICS)


def test_names_data_licences_and_lineage(monkeypatch, tmp_path):
    config = AutoConfig.for_model("llama", num_hidden_layers=2)
    text = card(monkeypatch, tmp_path, gguf, config, type="Q8_0")
    assert "from `prune/half` as GGUF Q8_0." in text
    data, lineage = text.split("## Data and licences\n\n")[1].split("\n\n## Lineage, nearest first\n\n")
    assert data.splitlines() == [
        "- pretrain/base: `org/model` (abc123), under the licence its owner gave it",
        "- data/corpus: `texts`, CC0",
        "- data/problems: `code.py`, Apache-2.0",
    ]
    assert lineage.splitlines() == [
        "- prune/half: magnitude of model pretrain/base, tokens tokenize/bpe",
        "- tokenize/bpe: bpe of documents data/corpus, problems data/problems",
        "- pretrain/base: pretrained of tokens tokenize/bpe",
        "- data/corpus: documents",
        "- data/problems: problems",
    ]


def test_a_state_space_has_no_heads(monkeypatch, tmp_path):
    config = AutoConfig.for_model("mamba2", num_hidden_layers=2, hidden_size=64, num_heads=16, head_dim=8)
    text = card(monkeypatch, tmp_path, safetensors, config)
    assert "| mamba2: 2 layers, width 64 |" in text and "of any length" in text


def test_a_variant_is_its_own_ancestor_only_once():
    tree = {"prune": {"a": {"method": "depth", "model": "prune/a", "tokens": "prune/a", "layers": 2}}}
    p = safetensors.Params(method="safetensors", model="prune/a", tokens="prune/a")
    assert list(model_card.ancestors(tree, p)) == ["prune/a"]
    assert params.parents(p) == {"model": "prune/a", "tokens": "prune/a"}
