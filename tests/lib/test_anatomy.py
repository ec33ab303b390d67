"""What anatomy says of decoders of many kinds, against what transformers computes with them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks._families import DENSE
from benchmarks._families import make as make_family
from stages.lib.nets import anatomy, calibrate
from stages.lib.training import loop, optimizers
from stages.lib.training.config import Training

SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
FUSED = {"moe_intermediate_size": 24, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2}
MOE = ["mixtral", "qwen3_moe", "gpt_oss", "qwen2_moe"]


def build(kind, seed=0, **more):
    """A tiny random model whose weights differ enough that errors show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = SIZES | (FUSED if kind in MOE else {})
    if kind == "gpt2":
        sizes = {"vocab_size": 512, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
    if kind == "mamba2":
        sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "num_heads": 4}
        sizes |= {"state_size": 8, "chunk_size": 16, "n_groups": 1}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **sizes | more)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.1) + (weight.ndim == 1)
    return model


@pytest.fixture
def ids():
    return torch.randint(512, (4, 24), generator=torch.Generator().manual_seed(1))


class Multiplying(TorchFunctionMode):
    """Notes what every product with a weight reads, by the weight's place in memory: independent of any name."""

    PRODUCTS = {F.linear: 1, torch.Tensor.__matmul__: 1, torch.matmul: 1, torch.addmm: 2, torch.Tensor.matmul: 1}

    def __init__(self):
        super().__init__()
        self.read: dict[int, list[torch.Tensor]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.PRODUCTS and len(args) > self.PRODUCTS[func]:
            place = self.PRODUCTS[func]
            self.read.setdefault(args[place].data_ptr(), []).append(args[place - 1].flatten(0, -2))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", *MOE])
def test_every_product_inside_the_blocks_is_a_known_matrix_that_reads_what_is_shown(kind, ids):
    """transformers' own loops over experts, watched at the products themselves."""
    model = build(kind)
    model.config._experts_implementation = "eager"
    every = anatomy.matrices(model)
    with torch.no_grad(), Multiplying() as products:
        model.base_model(ids, use_cache=False)
    shown: dict[str, list[torch.Tensor]] = {}
    calibrate.observe(model, ids, every, lambda name, x_MI: shown.setdefault(name, []).append(x_MI))
    assert not anatomy.unknown(model)
    known = every | anatomy.routers(model)
    weights = {matrix.weight.data_ptr(): name for name, matrix in known.items()}
    parameters = {w.data_ptr() for block in anatomy.blocks(model) for w in block.parameters() if w.ndim > 1}
    assert parameters & set(products.read) <= set(weights), "a weight multiplies that anatomy does not know"
    assert {weights[place] for place in products.read if place in weights} - set(anatomy.routers(model)) == set(shown)
    for place, name in weights.items():
        if name in shown:
            own_MI, read_MI = torch.cat(shown[name]), torch.cat(products.read[place])
            if known[name].expert is not None:  # the order of an expert's tokens is its loop's
                own_MI, read_MI = (x_MI[x_MI[:, 0].argsort()] for x_MI in (own_MI, read_MI))
            torch.testing.assert_close(own_MI, read_MI, atol=1e-5, rtol=1e-4)
            assert shown[name][0].shape[1] == known[name].in_features


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "gpt2"])
def test_a_matrix_is_the_linear_map_and_writing_into_it_changes_the_network(kind, ids):
    """Rows are outputs, whatever the layout: an expert without its last matrix adds no more than that one's bias."""
    model = build(kind)
    name, matrix = [(n, m) for n, m in anatomy.matrices(model).items() if "down_proj" in n or "c_proj" in n][-1]
    assert matrix.out_features == 32 and matrix.weight.shape == (32, matrix.in_features)
    assert matrix.weight.data_ptr() >= matrix.parameter.data_ptr() and not matrix.weight.requires_grad
    before = model(ids).logits
    for every in (m for n, m in anatomy.matrices(model).items() if n.rsplit(".", 1)[0] == name.rsplit(".", 1)[0]):
        every.weight.zero_()
    assert not torch.allclose(model(ids).logits, before)
    assert (matrix.parameter if matrix.expert is None else matrix.parameter[matrix.expert]).count_nonzero() == 0


def test_a_transposed_weight_multiplies_as_its_module_does():
    from transformers.pytorch_utils import Conv1D

    module, x = Conv1D(3, 5), torch.randn(7, 5)
    [matrix] = anatomy.matrices(nn.Sequential(module)).values()
    torch.testing.assert_close(F.linear(x, matrix.weight, module.bias), module(x))


def test_names_and_counts():
    model = build("qwen3_moe", mlp_only_layers=[1])
    names = set(anatomy.matrices(model))
    assert {"model.layers.0.mlp.experts.gate_up_proj.5", "model.layers.1.mlp.up_proj"} <= names
    assert len(names) == 4 * 4 + 3 * 2 * 6 + 3
    assert set(anatomy.routers(model)) == {f"model.layers.{i}.mlp.gate" for i in (0, 2, 3)}
    counted = sum(w.numel() for w in anatomy.multiplying(model).values())
    assert counted == sum(w.numel() for n, w in model.named_parameters() if ".layers." in n and w.ndim > 1)
    shared = {n.rsplit(".", 1)[1] for n in anatomy.routers(build("qwen2_moe", shared_expert_intermediate_size=40))}
    assert shared == {"gate", "shared_expert_gate"}


def test_weights_of_an_unknown_kind_are_told():
    model = build("mixtral")
    model.model.layers[2].mlp.experts.extra = nn.Parameter(torch.randn(6, 4, 4))
    assert list(anatomy.unknown(model)) == ["model.layers.2.mlp.experts.extra"]
    assert not anatomy.unknown(build("mamba2"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "mamba2"])
def test_blocks_are_the_decoder_layers_in_order(kind, ids):
    model, order = build(kind), []
    found = anatomy.named_blocks(model)
    for name, block in found.items():
        assert model.get_submodule(name) is block
        block.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    model(ids)
    assert order == list(found) and len(order) == model.config.num_hidden_layers


def test_a_model_without_blocks_is_one():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert anatomy.blocks(plain) == [plain] and list(anatomy.matrices(plain)) == ["0"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "qwen2"])
def test_heads_are_the_shape_of_the_cache(kind, ids):
    more = {"head_dim": None} if kind == "mixtral" else {}  # a config may leave it out
    model = build(kind, **more)
    heads = anatomy.heads(model.config)
    keys = model(ids, use_cache=True).past_key_values.layers[0].keys
    assert keys.shape == (4, heads.keys_values, 24, heads.size) and heads.queries == 4
    assert anatomy.attends(model) and not anatomy.attends(build("mamba2"))


@pytest.mark.parametrize("family", DENSE)
def test_axes_that_parameters_share_have_one_order(family, ids, tokenizer):
    """Any order of the stream's channels, of the feed-forward ones and of whole heads, everywhere at once: the same
    function."""
    model, random = make_family(family, tokenizer), torch.Generator().manual_seed(0)
    axes, state = anatomy.axes(model), model.state_dict()
    sizes = {part.axis: part.size for named in axes.values() for parts in named for part in parts}
    assert {axis.space for axis in anatomy.reading(model)} == {"mixed", "ffn"}
    free = [axis for axis in sizes if axis.space in ("hidden", "ffn")]
    orders = {axis: torch.randperm(sizes[axis], generator=random) for axis in free}
    shape, layers = anatomy.heads(model.config), model.config.num_hidden_layers
    assert len(free) == 1 + layers and set(axes) == set(state)
    groups = torch.randperm(shape.keys_values, generator=random)
    for block in range(layers):
        for space, width in (("queries", shape.queries), ("mixed", shape.queries), ("keys", 0), ("values", 0)):
            size = (width or shape.keys_values) // shape.keys_values * shape.size
            orders[anatomy.Axis(space, block)] = whole(groups, size)
        orders[anatomy.Axis("triples", block)] = whole(groups, 3 * shape.size)
    before = model(ids).logits
    model.load_state_dict({name: anatomy.take(weight, axes[name], orders) for name, weight in state.items()})
    torch.testing.assert_close(model(ids).logits, before, atol=1e-3, rtol=1e-3)
    last = anatomy.scales(model)[-1].gain
    del axes[last]  # one that does not follow, and it is another function
    orders = {axis: order for axis, order in orders.items() if axis.space == "hidden"}
    model.load_state_dict({name: anatomy.take(weight, axes.get(name, ()), orders) for name, weight in state.items()})
    assert not torch.allclose(model(ids).logits, before, atol=1e-3, rtol=1e-3)


def whole(groups, size):
    return (groups[:, None] * size + torch.arange(size)).flatten()


@pytest.mark.parametrize("kind", anatomy.PLAIN)
def test_what_reads_behind_a_norm(kind, ids):
    """Twice the gain and half of what its readers multiply with: the same function, norm by norm."""
    model = build(kind, tie_word_embeddings=False)
    before = model(ids).logits
    found = anatomy.norms(model)
    assert len(found) == 2 * 4 + 1
    for norm in found:
        norm.gain.data *= 2
        assert not torch.allclose(model(ids).logits, before, atol=1e-3), norm.name
        for reader in norm.readers:
            reader.weight.data /= 2
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(kind):
    model = build(kind)
    adamw, muon = optimizers.optimizers(model, Training(steps=1))
    moved = {id(w) for group in muon.param_groups for w in group["params"]}
    inside = {id(w) for block in anatomy.blocks(model) for w in block.parameters() if w.ndim == 2}
    assert moved == inside and moved
    rest = {id(w) for group in adamw.param_groups for w in group["params"]}
    assert rest == {id(w) for w in model.parameters()} - moved


def test_zeros_of_experts_stay_zeros_in_a_training(ids):
    model = build("mixtral")
    for matrix in anatomy.matrices(model).values():
        matrix.weight[:, ::2] = 0
    before = copy.deepcopy(model)
    p = Training(steps=1, precision="float32", lr=0.01)
    held, steppers = loop.zeros(model), optimizers.optimizers(model, p)
    loop.update(model, steppers, lambda _: ids, lambda part: model(part).logits.square().mean(), p, 0, held)
    start = anatomy.matrices(before)
    for name, matrix in anatomy.matrices(model).items():
        assert (matrix.weight[:, ::2] == 0).all(), name
        if "experts" not in name:
            assert not torch.equal(matrix.weight, start[name].weight), name
    assert not torch.equal(model.model.layers[0].mlp.experts.down_proj, before.model.layers[0].mlp.experts.down_proj)


def test_blocks_in_turn_hand_on_what_gpt2_passes_by_position(ids):
    model = build("gpt2")
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    shown = []
    for _, observe in calibrate.in_turn(model, ids):
        block = anatomy.blocks(model)[len(shown)]
        first = next(iter(anatomy.matrices_of(block)))
        observe(
            {first: anatomy.matrices_of(block)[first]},
            lambda _, x_MI, norm=block.ln_1: shown.append((norm, x_MI)),
        )
    for (norm, x_MI), states in zip(shown, expected, strict=False):
        torch.testing.assert_close(x_MI, norm(states).flatten(0, 1))
    assert math.prod(shown[0][1].shape) == 4 * 24 * 32
