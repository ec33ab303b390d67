"""Networks that are no llama: experts, Conv1D, fields that count layers; and what is refused by name."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import _families
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, calibrate
from stages.lib.store import models
from stages.prune import __main__ as stage
from stages.prune import depth, magnitude, sparsegpt, wanda

PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 16, "pad_token_id": 0}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2}
KINDS = {
    "mixtral": SIZES | EXPERTS,
    "qwen3_moe": SIZES | EXPERTS,
    "gpt_oss": SIZES | EXPERTS,
    "llama4_text": SIZES | EXPERTS,
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 128},
    "smollm3": SIZES,
    "gemma3_text": SIZES,
    "qwen3_next": SIZES | EXPERTS,
}
TECHNIQUES = {
    "magnitude": {"sparsity": 0.5},
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "lottery": {"sparsity": 0.5, "rounds": 1, "training": {"steps": 1, "batch_size": 2}},
}


def build(kind, layers=2, **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=512, num_hidden_layers=layers, **KINDS[kind] | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn_like(weight) * 0.1
    return model


def make(name, **target):
    return params.technique("prune", "mine", {"method": name, **PARENTS, **target})


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_half_of_every_matrix_goes_experts_included(kind, name, rows, given, tokenizer, tmp_path):
    model = build(kind)
    dense = copy.deepcopy(model)
    pruned = make(name, **TECHNIQUES[name]).prune(model, given(rows))
    every = anatomy.matrices(pruned)
    assert kind == "gpt2" or sum("experts" in matrix for matrix in every) == 2 * 2 * 6
    for matrix, found in every.items():
        assert (found.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01), matrix
    routers, total = (sum(each.weight.numel() for each in of.values()) for of in (anatomy.routers(pruned), every))
    told = stage.zeros(pruned)
    assert told["sparsity"] == pytest.approx(0.5 * total / (total + routers), abs=0.005)
    for router, found in anatomy.routers(pruned).items():
        assert torch.equal(found.weight, dense.get_submodule(router).weight) != (name == "lottery")
    models.save(pruned, tokenizer, tmp_path / "model")
    assert torch.equal(models.load(tmp_path / "model")(rows[:2]).logits, pruned(rows[:2]).logits)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "gpt2"])
def test_a_pattern_holds_along_the_inputs_of_every_expert(kind, name, rows, given):
    pruned = make(name, pattern="2of4").prune(build(kind), given(rows))
    for matrix, found in anatomy.matrices(pruned).items():
        assert ((found.weight != 0).unflatten(1, (-1, 4)).sum(2) == 2).all(), matrix


def tokens_of(model, rows, number):
    """What block 0 hands to this expert, by its own norm and router: in a loop over the tokens."""
    kept = []
    block = model.model.layers[0]
    with torch.no_grad():
        hidden = {}
        hook = block.post_attention_layernorm.register_forward_hook(lambda _, __, x: hidden.update(x=x))
        model.model(rows, use_cache=False)
        hook.remove()
        for token in hidden["x"].flatten(0, 1):
            logits = torch.mv(block.mlp.gate.weight, token)
            if number in logits.topk(2).indices.tolist():
                kept.append(token)
    return kept


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_wandas_scores_of_an_expert_are_those_of_its_own_tokens(kind, rows, given):
    """The formula in loops; attention stays dense, so that the block's router reads what it read."""
    dense = build(kind, layers=1)
    pruned = copy.deepcopy(dense)
    wanda.Wanda(method="wanda", **PARENTS, sparsity=0.5).prune(pruned, given(rows))
    for number in range(6):
        tokens = tokens_of(dense, rows, number)
        norms = [sum(float(token[i]) ** 2 for token in tokens) ** 0.5 for i in range(32)]
        weight = dense.model.layers[0].mlp.experts.gate_up_proj[number]
        result = pruned.model.layers[0].mlp.experts.gate_up_proj[number]
        for o in range(0, 48, 7):
            score = [abs(weight[o, i].item()) * norms[i] for i in range(32)]
            kept = sorted(range(32), key=lambda i: score[i])[16:]  # noqa: B023
            assert sorted(kept) == result[o].nonzero().flatten().tolist(), f"expert {number} row {o}"


def test_sparsegpt_settles_an_expert_by_the_moments_of_its_own_tokens(rows, given):
    dense = build("mixtral", layers=1)
    pruned = copy.deepcopy(dense)
    technique = sparsegpt.SparseGPT(method="sparsegpt", **PARENTS, sparsity=0.5)
    technique.prune(pruned, given(rows))
    for number in range(6):
        x_MI = torch.stack(tokens_of(dense, rows, number))
        weight = dense.model.layers[0].mlp.experts.gate_up_proj[number].detach()
        expected = technique.sparsify(weight, sum(torch.outer(x_I, x_I) for x_I in x_MI))
        result = pruned.model.layers[0].mlp.experts.gate_up_proj[number]
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_an_expert_that_no_token_reaches_loses_its_smallest_weights_alone(name, rows, given):
    """The router never takes the last one; what it keeps, it keeps as it was."""
    model = build("mixtral", layers=1)
    block = model.model.layers[0]
    block.post_attention_layernorm.weight.data.zero_()  # so that all that the router says is its tie
    experts = block.mlp.experts
    block.post_attention_layernorm.register_forward_hook(lambda _, __, x: x + 1)
    block.mlp.gate.weight.data[5] = -1.0
    block.mlp.gate.weight.data[:5] = torch.rand(5, 32)
    dense = experts.gate_up_proj[5].detach().clone()
    make(name, sparsity=0.5).prune(model, given(rows))
    result = experts.gate_up_proj[5]
    kept = result != 0
    assert (kept.float().mean().item(), result.isfinite().all()) == (0.5, True)
    torch.testing.assert_close(result[kept], dense[kept], atol=1e-6, rtol=0)
    if name == "wanda":
        assert all(dense[o][kept[o]].abs().min() >= dense[o][~kept[o]].abs().max() for o in range(96))
    else:
        assert dense[kept].abs().min() >= dense[~kept].abs().max()


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "lottery", "spectral"])
def test_weights_of_an_unknown_kind_are_refused_before_anything_changes(name, rows, given):
    model = build("mixtral")
    model.model.layers[1].mlp.experts.extra = nn.Parameter(torch.randn(6, 4, 4))
    dense = copy.deepcopy(model.state_dict())
    model.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=f"pretrain/base is a mixtral; {name} can prune .*layers.1.mlp.experts.extra"):
        make(name, **TECHNIQUES.get(name, {})).prune(model, given(rows))
    assert all(torch.equal(weight, dense[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_experts_that_are_called_otherwise_are_refused(name, rows, given):
    """Llama 4 multiplies all experts at once, by another way than the others."""
    model = build("llama4_text")
    with pytest.raises(UserError, match=f"pretrain/base is a llama4_text; {name} can prune .*experts.gate_up_proj"):
        make(name, sparsity=0.5).prune(model, given(rows))


@pytest.mark.parametrize("name", ["width", "spectral_width"])
def test_only_decoders_whose_every_parameter_is_known_are_narrowed(name, rows, given):
    more = {"hidden": 16} if name == "width" else {}
    with pytest.raises(UserError, match=f"pretrain/base is a mixtral; {name.replace('_', '.')} can narrow: llama, mis"):
        make(name, **more).prune(build("mixtral"), given(rows))


def test_spectral_gives_every_expert_its_own_rank(given, rows):
    """Each expert is noise and as many strong directions as its number."""
    model = build("mixtral", layers=1)
    for name, matrix in anatomy.matrices(model).items():
        if "gate_up" in name:
            count, random = int(name[-1]), torch.Generator().manual_seed(0)
            left = torch.linalg.qr(torch.randn(96, 6, generator=random))[0][:, :count]
            right = torch.linalg.qr(torch.randn(32, 6, generator=random))[0][:, :count]
            matrix.weight.copy_(0.1 * torch.randn(96, 32, generator=random) + 6 * left @ right.T)
    technique = make("spectral")
    ranks = technique.ranks(technique.prune(model, given(rows)))
    found = [rank for name, rank in ranks.items() if "gate_up" in name]
    assert all(number <= rank <= max(1, number) for number, rank in enumerate(found)), found


def skipped(model, gone):
    """The same network, in which these blocks hand on what they read."""
    for number in gone:
        block = anatomy.blocks(model)[number]
        block.register_forward_hook(
            lambda _, inputs, output: (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
        )
    return model


DEPTHS = {
    "smollm3": {"no_rope_layers": [1, 0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 8}
    | {"layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]},
    "qwen3_moe": {"mlp_only_layers": [1, 4], "decoder_sparse_step": 1},
    "qwen3_moe every second": {"mlp_only_layers": [1], "decoder_sparse_step": 2},
    "gemma3_text": {"sliding_window": 8}
    | {
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ]
    },
    "mixtral": {},
    "gpt_oss": {"sliding_window": 8},
    "gpt2": {},
}


@pytest.mark.parametrize("gone", [[0, 2], [1], [3, 4]], ids=str)
@pytest.mark.parametrize("case", DEPTHS)
def test_a_shorter_network_is_the_whole_one_without_these_blocks(case, gone, rows, given, tokenizer, tmp_path):
    """Also after it was saved and read, with a cache too."""
    model = build(case.split()[0], layers=5, **DEPTHS[case])
    expected = skipped(copy.deepcopy(model), gone)
    own = given(rows)
    own.once(lambda: {"influence": torch.tensor([float(i not in gone) for i in range(5)])}, model.device)
    pruned = depth.Depth(method="depth", **PARENTS, layers=5 - len(gone)).prune(model, own)
    assert anatomy.layers(pruned) == len(anatomy.blocks(pruned)) == 5 - len(gone)
    models.save(pruned, tokenizer, tmp_path / "model")
    stored = models.load(tmp_path / "model")
    with torch.no_grad():
        wanted = expected(rows[:2], use_cache=False).logits
        torch.testing.assert_close(stored(rows[:2], use_cache=False).logits, wanted, atol=1e-4, rtol=1e-3)
        past = stored(rows[:2, :40], use_cache=True).past_key_values
        cached = stored(rows[:2, 40:], past_key_values=past).logits
    torch.testing.assert_close(cached, wanted[:, 40:], atol=1e-4, rtol=1e-3)


def test_blocks_that_no_config_can_describe_are_refused_before_any_work(rows, given):
    """A scale of each block that comes from its number: what is left would be read with another."""
    model = build("gpt2", layers=4, scale_attn_by_inverse_layer_idx=True)
    model.transformer.wte.register_forward_hook(lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match="pretrain/base is a gpt2; depth can shorten only what .* another attn.scaling"):
        depth.Depth(method="depth", **PARENTS, layers=2).prune(model, given(rows))


HYBRID = ("deepseek_v3", "mamba2", "falcon_h1", "bamba", "granitemoehybrid", "qwen3_next")


@pytest.mark.parametrize("kind", HYBRID)
def test_a_hybrid_is_shortened_too(kind, rows, given, tokenizer, tmp_path):
    """The state of what stays is its own: also token by token."""
    model = _families.make(kind, tokenizer, num_hidden_layers=6)
    gone = [2, 5]
    expected = skipped(copy.deepcopy(model), gone)
    own = given(rows)
    own.once(lambda: {"influence": torch.tensor([float(i not in gone) for i in range(6)])}, model.device)
    models.save(depth.Depth(method="depth", **PARENTS, layers=4).prune(model, own), tokenizer, tmp_path / "model")
    stored = models.load(tmp_path / "model")
    assert anatomy.layers(stored) == 4
    with torch.no_grad():
        wanted = expected(rows[:2], use_cache=False).logits
        torch.testing.assert_close(stored(rows[:2], use_cache=False).logits, wanted, atol=1e-4, rtol=1e-3)
        written = stored.generate(rows[:1, :40], max_new_tokens=4, do_sample=False, pad_token_id=0)[:, 40:]
        scores = stored(torch.cat([rows[:1, :40], written], 1), use_cache=False).logits[0, 39:-1]
    stops = written[0].eq(tokenizer.eos_token_id).cumsum(0)
    assert scores.argmax(-1)[stops == 0].tolist() == written[0][stops == 0].tolist()


@pytest.mark.parametrize("kind", ["phi3", "gpt_neox", *HYBRID])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_every_matrix_of_other_networks_goes(kind, name, rows, given, tokenizer):
    """What counts is all that holds two dimensions in the blocks, but convolutions and the routers, which stay."""
    model = _families.make(kind, tokenizer)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    make(name, sparsity=0.5).prune(model, given(rows[:4]))
    blocks = {id(w) for block in anatomy.blocks(model) for w in block.parameters()}
    for name, weight in model.named_parameters():
        router = "router" in name or name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))
        if weight.ndim < 2 or id(weight) not in blocks or "conv1d" in name or router:
            changed = not torch.equal(weight, before[name])
            assert not changed, name
        else:
            assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.02), name


def test_nothing_to_prune_is_refused(none):
    model = build("gpt2")
    for block in model.transformer.h:
        block.attn, block.mlp = nn.Identity(), nn.Identity()
    with pytest.raises(UserError, match="pretrain/base is a gpt2; magnitude can prune .* it has none"):
        magnitude.Magnitude(method="magnitude", **PARENTS, sparsity=0.5).prune(model, none)


def test_what_a_technique_reads_is_the_same_with_every_kernel_for_experts(rows):
    model = build("mixtral")
    found = []
    for kernel in ("eager", "grouped_mm", "batched_mm"):
        model.config._experts_implementation = kernel
        shown = {}
        calibrate.observe(
            model, rows, anatomy.matrices(model), lambda n, x, shown=shown: shown.setdefault(n, []).append(x)
        )
        found.append({name: torch.cat(x) for name, x in shown.items()})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-3)
