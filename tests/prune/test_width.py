"""Width: scores by the formula in loops, idle parts go without a trace, groups stay whole, and what is refused."""

import copy

import pytest
import torch

from benchmarks._families import DENSE, make
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.nets.anatomy import Axis, Heads
from stages.lib.store import models
from stages.prune import width

P = {"method": "width", "model": "pretrain/base", "tokens": "tokenize/bpe"}


@pytest.fixture
def prune(given):
    return lambda model, rows, **shape: width.Width(**P, **shape).prune(model, given(rows))


def kin(kind, grouped=True):
    """A model of each known kind, with gains and biases that are not what they begin as."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2 if grouped else 4}
    biases = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    more = (
        {"attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 2.0} if kind == "granite" else {}
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, **heads, **biases, **more, tie_word_embeddings=kind != "mistral")
    config.initializer_range, config.pad_token_id = 0.2, 0
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += torch.randn_like(weight) / 3
    return model


@pytest.mark.parametrize("kind", anatomy.PLAIN)
def test_idle_heads_and_channels_go_without_a_trace(prune, kind, rows, tokenizer, tmp_path):
    """Half of everything is made idle, at places that are not its first half."""
    model = kin(kind)
    odd = torch.arange(64) % 2 == 1  # of hidden channels
    with torch.no_grad():
        for block in model.model.layers:
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                layer.weight[odd] = 0
                if layer.bias is not None:
                    layer.bias[odd] = 0
            block.mlp.up_proj.weight[20:68] = 0
            if block.mlp.up_proj.bias is not None:
                block.mlp.up_proj.bias[20:68] = 0
            block.self_attn.v_proj.weight[:16] = 0  # the first group of two heads
            if block.self_attn.v_proj.bias is not None:
                block.self_attn.v_proj.bias[:16] = 0
        model.model.embed_tokens.weight[:, odd] = 0
        before = model(rows[:2]).logits
        small = prune(model, rows[:4], hidden=32, ffn=48, heads=2, kv_heads=1)
        models.save(small, tokenizer, tmp_path / "model")
        stored = models.load(tmp_path / "model")
    shape = stored.config.to_dict()
    assert [shape[key] for key in ("hidden_size", "intermediate_size", "head_dim")] == [32, 48, 16]
    assert [shape[key] for key in ("num_attention_heads", "num_key_value_heads")] == [2, 1]
    torch.testing.assert_close(stored(rows[:2]).logits, before, atol=1e-3, rtol=1e-3)


def silence(model, idle):
    """Nothing is written to these places of the axes; what else is written has no mean, which some norms take off."""
    axes = anatomy.axes(model)
    centred = any("LayerNorm" in type(module).__name__ for module in model.modules())
    for name, weight in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        stored = axes[name][:1] if isinstance(module, torch.nn.Linear) else axes[name][-1:]  # what it writes
        if "norm" in type(module).__name__.lower() and not name.endswith("bias"):
            continue
        rows = weight.data.mT if stored == axes[name][-1:] and weight.ndim > 1 else weight.data
        first = 0
        for axis, size in stored[0]:
            if axis.space in idle:
                rows[first + torch.tensor(idle[axis.space])] = 0
            if axis.space == "hidden" and centred and "norm" not in type(module).__name__.lower():
                kept = first + torch.tensor([i for i in range(size) if i not in idle["hidden"]])
                rows[kept] -= rows[kept].mean(0)
            first += size


@pytest.mark.parametrize("family", DENSE)
@torch.no_grad()
def test_every_dense_family_loses_what_is_idle_without_a_trace(prune, family, rows, tokenizer, tmp_path):
    model = make(family, tokenizer, **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), 1e-9))
    shape = anatomy.heads(model.config)
    queries, groups = shape.queries // 2 * shape.size, shape.keys_values // 2 * shape.size
    silence(
        model,
        {
            "hidden": list(range(1, 64, 2)),
            "ffn": list(range(20, 84)),
            "queries": list(range(queries)),
            "keys": list(range(groups)),
            "values": list(range(groups)),
            "triples": list(range(3 * queries)),
        },
    )
    before = model(rows[:2]).logits
    small = prune(model, rows[:4], hidden=32, ffn=64, heads=2, kv_heads=shape.keys_values // 2)
    models.save(small, tokenizer, tmp_path / "model")
    stored = models.load(tmp_path / "model")
    assert sum(w.numel() for w in stored.parameters()) < 0.55 * sum(w.numel() for w in model.parameters())
    torch.testing.assert_close(stored(rows[:2]).logits, before, atol=2e-3, rtol=2e-3)


def test_importance_is_the_root_of_the_squared_means(tiny, rows):
    """In loops over rows, of what transformers itself says the states and the norms' outputs are."""
    scores = width.Width(**P, hidden=32).score(tiny, rows[:3])
    seen = {"heads": [], "norm": []}
    tiny.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen["heads"].append(x[0]))
    tiny.model.norm.register_forward_hook(lambda _, __, x: seen["norm"].append(x))
    for row in rows[:3]:
        tiny(row[None])
    heads = torch.zeros(4)
    for x_1TD in seen["heads"]:
        norms = [[x_1TD[0, t, 16 * h : 16 * h + 16].norm().item() for t in range(64)] for h in range(4)]
        heads += torch.tensor([sum(each) / 64 for each in norms]) ** 2
    torch.testing.assert_close(scores["model.layers.1.self_attn.o_proj"], heads.sqrt(), atol=1e-5, rtol=1e-4)
    final = sum(x_1TD[0].abs().mean(0) ** 2 for x_1TD in seen["norm"]).sqrt()
    torch.testing.assert_close(scores["model.norm"], final, atol=1e-5, rtol=1e-4)
    assert scores["model.norm.energy"].mean().item() == pytest.approx(1, abs=1e-3)


def test_groups_stay_whole_and_keep_equally_many_heads():
    """Heads 0 to 7 in groups of 4; the second group is the stronger one, its best two are its second and last."""
    scores = {
        "model.layers.0.self_attn.o_proj": torch.tensor([9.0, 0, 0, 0, 3, 4, 1, 5]),
        "model.layers.0.mlp.down_proj": torch.tensor([1.0, 3, 2]),
        "model.layers.1.self_attn.o_proj": torch.tensor([9.0, 9, 0, 0, 3, 4, 1, 5]),
        "model.layers.1.mlp.down_proj": torch.tensor([1.0, 2, 3]),
    }
    model = kin("llama")
    model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim = 8, 2, 2
    config = copy.deepcopy(model.config)
    anatomy.resize(config, 64, 1, Heads(2, 1, 2))
    stays = width.chosen(model, config, scores)
    for space in ("queries", "mixed"):
        assert stays[Axis(space, 0)].tolist() == [10, 11, 14, 15] and stays[Axis(space, 1)].tolist() == [0, 1, 2, 3]
    for space in ("keys", "values"):
        assert stays[Axis(space, 0)].tolist() == [2, 3] and stays[Axis(space, 1)].tolist() == [0, 1]
    assert stays[Axis("ffn", 0)].tolist() == [1] and stays[Axis("ffn", 1)].tolist() == [2]


def test_all_of_everything_is_the_same_model(prune, tiny, rows):
    torch.testing.assert_close(prune(tiny, rows, hidden=64, ffn=128)(rows).logits, tiny(rows).logits)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ({"hidden": 96}, "hidden is 96, but pretrain/base has no more than 64"),
        ({"ffn": 129}, "ffn is 129, but pretrain/base has no more than 128"),
        ({"hidden": 50}, "hidden is 50, which is no multiple of 4 heads"),
        ({"heads": 3}, "3 heads for 2 kv_heads; pretrain/base has groups of 2: keep as many or fewer"),
        ({"kv_heads": 1}, "4 heads for 1 kv_heads; pretrain/base has groups of 2: keep as many or fewer"),
    ],
)
def test_a_shape_that_no_model_can_have_is_refused_before_any_work(prune, tiny, rows, shape, complaint):
    tiny.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=complaint):
        prune(tiny, rows, **shape)


def test_what_it_cannot_narrow_is_refused(prune, tokenizer, rows):
    from stages.pretrain import state_space

    sizes = {"hidden": 32, "layers": 2, "head_dim": 16, "state": 8, "chunk": 16}
    model = state_space.StateSpace(method="state_space", tokens="a/b", **sizes).build(tokenizer)
    with pytest.raises(UserError, match="pretrain/base is a mamba2; width can narrow: llama, mistral, qwen2, qwen3"):
        prune(model, rows, hidden=16)
    with pytest.raises(ValueError, match="give at least one of hidden, ffn, heads and kv_heads"):
        width.Width(**P)
