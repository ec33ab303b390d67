"""The card names every ancestor and every licence, once, as params.yaml has them now."""

import copy

import pytest

from stages.lib.frame.files import write_json
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
    "export": {"mine": {"method": "gguf", "model": "prune/half", "tokens": "tokenize/bpe", "type": "Q8_0"}},
    "eval": {"models": {"shipped": "export/mine"}, "accuracy": {"records": "data/problems"},
             "bits_per_byte": {"records": "data/corpus"}},
}  # fmt: skip
METRICS = {
    **{"parameters": 10, "bytes": 1_234_567, "bits_per_weight": 8.5, "kl": 0.1, "same_top": 0.9},
    **{"loss_before": 1, "loss_after": 1.1, "format": "GGUF Q8_0", "run": "    llama-cli -m model.gguf"},
    **{"architecture": "llama: 2 layers, width 64", "vocabulary": 1024, "context": 2048},
}


@pytest.fixture
def card(tmp_path):
    """card(tree, **metrics): the text of the export's card."""

    def text(tree, **metrics):
        write_json(tmp_path / "export/mine/metrics.json", METRICS | metrics)
        model_card.write_all(tree, tmp_path, tmp_path / "cards")
        return (tmp_path / "cards/mine.md").read_text()

    return text


def test_names_data_licences_and_lineage(card):
    text = card(TREE)
    assert "from `prune/half` as GGUF Q8_0." in text
    assert "    llama-cli -m model.gguf" in text and "| 1,024 tokens, 2,048 tokens |" in text
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


def test_a_renamed_parent_and_a_changed_licence_change_the_card(card):
    """Neither retrains anything, so the card must not be made where the weights are."""
    before = card(TREE)
    renamed = copy.deepcopy(TREE)
    renamed["prune"] = {"sparse": renamed["prune"]["half"]}
    renamed["export"]["mine"]["model"] = "prune/sparse"
    after = card(renamed)
    assert "prune/half" in before and "prune/half" not in after
    assert "from `prune/sparse` as" in after and "- prune/sparse: magnitude of" in after

    licensed = copy.deepcopy(TREE)
    licensed["data"]["corpus"]["licence"] = "CC-BY-4.0"
    assert "- data/corpus: `texts`, CC-BY-4.0" in card(licensed)
    assert card(TREE) == before


def test_says_what_eval_measured_of_this_export(card, tmp_path):
    assert "| accuracy, held-out problems | not measured |" in card(TREE)
    accuracy = {"accuracy": 0.655, "accuracy_low": 0.61, "accuracy_high": 0.7, "num_problems": 240}
    write_json(tmp_path / "eval/shipped/accuracy/metrics.json", accuracy)
    write_json(tmp_path / "eval/shipped/bits_per_byte/metrics.json", {"bits_per_byte": 3.5812})
    text = card(TREE)
    assert "| accuracy, 240 held-out problems | 65.5%, 95 % interval 61.0% to 70.0% |" in text
    assert "| bits per byte, held-out documents | 3.581 |" in text
    assert "| bytes of the weights file | 1,234,567 |" in text


def test_a_state_space_has_no_longest_context(card):
    assert "1,024 tokens, of any length" in card(TREE, context=None)


def test_the_chat_template_is_the_exports(card, tmp_path):
    assert "Chat template (Jinja):\n\n    none\n" in card(TREE)
    folder = tmp_path / "export/mine/model"
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ x }}"})
    assert "\n    {{ x }}\n" in card(TREE)
    (folder / "chat_template.jinja").write_text("{{ a }}\n{{ b }}")
    assert "\n    {{ a }}\n    {{ b }}\n" in card(TREE)


def test_an_export_that_is_gone_or_was_not_made_has_no_card(card, tmp_path):
    card(TREE)
    model_card.write_all(TREE | {"export": {"other": TREE["export"]["mine"]}}, tmp_path, tmp_path / "cards")
    assert list((tmp_path / "cards").iterdir()) == []


def test_a_variant_is_its_own_ancestor_only_once():
    tree = {"prune": {"a": {"method": "depth", "model": "prune/a", "tokens": "prune/a", "layers": 2}}}
    assert list(model_card.ancestors(tree, "prune/a")) == ["prune/a"]
    assert model_card.parents(tree, "prune/a") == {"model": "prune/a", "tokens": "prune/a"}


def test_a_path_of_data_is_no_parent():
    tree = {"data": {"corpus": {"source": "data/corpus"}, "problems": {"source": "data/corpus"}}}
    assert model_card.ancestors(tree, "data/problems") == {}
