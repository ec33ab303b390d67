"""How decoders are built. The one file that knows their names: blocks, matrices, experts, routers, norms, heads, and
which fields of a config count layers. Everything else asks here.

What can be asked of any decoder of transformers:

    named_blocks    its layers, in the order of computation
    matrices        what multiplies inside the blocks and a technique may change, each as a writable (O, I) view
    routers         what chooses experts; stays as it is, but counts where weights are counted
    unknown         weights of the blocks that this file can't read, so that a technique can refuse the network
    attends         whether every block has attention; heads: how many queries have, how many keys and values, and how
                    wide one is, which is the shape of a cache
    shorten         the network without some of its blocks

of a decoder whose every parameter is known, one of AXES:

    axes            what the rows and columns of each parameter stand for: two parameters that share an axis feed each
                    other, and whoever narrows or reorders that axis changes both
    reading         what reads each axis of a block
    scales          the norms of these axes, whose gains count over how many channels they normalise

and of a plain one among them, one of PLAIN:

    norms           each norm of the residual stream, and the matrices that read behind it and nothing else

Shapes: O = out_features, I = in_features, E = experts, M = tokens, H = hidden, K = experts of a token.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Any decoder

ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # a block's attention
FIRST, GATED, LAST = "up_proj", "gate_up_proj", "down_proj"  # fused experts: the matrix that reads, the one that writes
ATTENDED = ("q_proj", "k_proj", "qkv_proj", "query_key_value")  # makes queries or keys, perhaps beside values
STATES = ("A_log",)  # of recurrences: no matrix multiplies with them
ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}  # layer types that a mask keeps apart
LISTED_LAYERS = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids")
LEADING_LAYERS = ("first_k_dense_replace", "num_dense_layers")  # how many layers at the beginning are unlike the rest


@dataclass(frozen=True)
class Matrix:
    """What multiplies its inputs: a Linear, GPT-2's Conv1D, or one expert's part of a fused 3-D Parameter."""

    module: nn.Module
    name: str = "weight"  # of the Parameter in the module
    expert: int | None = None
    transposed: bool = False  # the Parameter holds (I, O)

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.name)

    @property
    def weight(self) -> Tensor:
        """(O, I), outside of autograd; writing into it changes the network."""
        whole = self.parameter.detach()
        part = whole if self.expert is None else whole[self.expert]
        return part.mT if self.transposed else part

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]


def named_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers by dotted name, in the order of computation; a model without a list of them is one block."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    if not lists:
        return {"": model}
    count = layers(model)
    name = next((name for name, each in lists.items() if len(each) == count), next(iter(lists)))
    return {f"{name}.{number}": block for number, block in enumerate(lists[name])}


def blocks(model: nn.Module) -> list[nn.Module]:
    return list(named_blocks(model).values())


def layers(model: nn.Module) -> int | None:
    """The number of layers that the config tells; none without a config."""
    config: Any = getattr(model, "config", None)
    return getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every matrix inside the blocks but the routers, by dotted name; an expert's ends with its number."""
    return in_blocks(model, matrices_of)


def routers(model: nn.Module) -> dict[str, Matrix]:
    """What chooses experts, inside the blocks."""
    return in_blocks(model, routers_of)


def in_blocks(model: nn.Module, find: Callable[[nn.Module], dict[str, Matrix]]) -> dict[str, Matrix]:
    found = ((prefix, find(block)) for prefix, block in named_blocks(model).items())
    return {join(prefix, name): each for prefix, own in found for name, each in own.items()}


def matrices_of(block: nn.Module) -> dict[str, Matrix]:
    """As `matrices`, of one block and by the names inside it."""
    found, choosing = {}, {each.module for each in routers_of(block).values()}
    for name, module in block.named_modules():
        if is_experts(module):
            for parameter in expert_parameters(module):
                for number in range(expert_count(module)):
                    found[join(name, f"{parameter}.{number}")] = expert_matrix(module, parameter, number)
        elif multiplies(module) and module not in choosing:
            found[name] = Matrix(module, transposed=not isinstance(module, nn.Linear))
    return found


def routers_of(block: nn.Module) -> dict[str, Matrix]:
    """Beside the experts, what has a row for each of them; or a single row, which weighs a shared expert."""
    found = {}
    for prefix, module in block.named_modules():
        experts = next((each for name, each in module.named_children() if routed(name, each)), None)
        if experts is None:
            continue
        count = expert_count(experts)
        inside = set(experts.modules())
        for name, beside in module.named_modules():
            weight = dict(beside.named_parameters(recurse=False)).get("weight")
            if weight is None or weight.ndim != 2 or beside in inside:
                continue
            if weight.shape[0] == 1 or (weight.shape[0] == count and "shared" not in name):
                found[join(prefix, name)] = Matrix(beside)
    return found


def routed(name: str, module: nn.Module) -> bool:
    """Experts, fused or a list of networks."""
    return is_experts(module) or (name == "experts" and isinstance(module, nn.ModuleList))


def unknown(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights inside the blocks that may multiply, and are no matrix that this file knows."""
    known = {id(each.parameter) for each in (matrices(model) | routers(model)).values()}
    found = {}
    for prefix, block in named_blocks(model).items():
        for path, module in block.named_modules():
            if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd) or "norm" in type(module).__name__.lower():
                continue
            for name, weight in module.named_parameters(recurse=False):
                matrix = weight.ndim > 1 and not name.endswith("bias") and name not in STATES
                if matrix and id(weight) not in known:
                    found[join(prefix, join(path, name))] = weight
    return found


def multiplying(model: nn.Module) -> dict[str, Tensor]:
    """All that multiplies inside the blocks, whether a technique may change it or not."""
    known = {name: each.weight for name, each in (matrices(model) | routers(model)).items()}
    return known | unknown(model)


def multiplies(module: nn.Module) -> bool:
    """GPT-2's Conv1D is a Linear whose weight is stored (I, O)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def join(*names: str) -> str:
    return ".".join(name for name in names if name)


# Fused experts, as transformers' `use_experts_implementation` declares them: matrices of all experts in one Parameter,
# (E, O, I) or, transposed, (E, I, O).


def is_experts(module: nn.Module) -> bool:
    last = dict(module.named_parameters(recurse=False)).get(LAST)
    return last is not None and last.ndim == 3 and "is_transposed" in vars(module)


def has_experts(model: nn.Module) -> bool:
    """Fused ones."""
    return any(is_experts(module) for module in model.modules())


def expert_count(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList):  # an activation may stand among them
        return sum(any(True for _ in expert.parameters()) for expert in experts)
    return getattr(experts, LAST).shape[0]


def expert_parameters(experts: nn.Module) -> tuple[str, str]:
    """In the order of computation; what makes a gate is fused with what it multiplies."""
    return (GATED if experts.has_gate else FIRST), LAST


def expert_matrix(experts: Any, parameter: str, number: int) -> Matrix:
    return Matrix(experts, parameter, number, experts.is_transposed)


def expert_inputs(experts: Any, states_MH: Tensor, chosen_MK: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """(parameter, expert, its inputs) for every expert that a token was sent to: those tokens and nothing else."""
    first, last = expert_parameters(experts)
    for number in range(expert_count(experts)):
        x_MH = states_MH[(chosen_MK == number).any(-1)]
        if not len(x_MH):
            continue
        yield first, number, x_MH
        bias = getattr(experts, f"{first}_bias")[number] if experts.has_bias else None
        inner_MI = F.linear(x_MH, expert_matrix(experts, first, number).weight, bias)
        yield last, number, experts._apply_gate(inner_MI) if experts.has_gate else experts.act_fn(inner_MI)


# Attention


class Heads(NamedTuple):
    """A cache of one layer holds two tensors of (rows, keys_values, tokens, size)."""

    queries: int
    keys_values: int
    size: int  # of one head, whose product with their number is not always the hidden size


def heads(config: "PreTrainedConfig") -> Heads:
    """Of a network that attends; some configs leave out what follows from the rest."""
    own: Any = config.get_text_config()
    queries = own.num_attention_heads
    keys_values = getattr(own, "num_key_value_heads", None) or queries
    return Heads(queries, keys_values, getattr(own, "head_dim", None) or own.hidden_size // queries)


def latent(model: "PreTrainedModel") -> bool:
    """Whether keys and values come from a common latent, in which case they are of unlike width."""
    return getattr(model.config, "kv_lora_rank", None) is not None


def attends(model: nn.Module) -> bool:
    """Whether every block has attention, so keys and values; others keep a state."""
    return all(any(name in ATTENTION for name, _ in block.named_children()) for block in blocks(model))


def boundless(model: "PreTrainedModel") -> bool:
    """Whether every layer looks back over the whole text: none has a window."""
    config = model.config
    if kinds := getattr(config, "layer_types", None):
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None and getattr(config, "attention_chunk_size", None) is None


def recurrent(model: "PreTrainedModel") -> bool:
    """Whether something passes from token to token that no mask stops: a state, a convolution."""
    return model._is_stateful or bool(set(getattr(model.config, "layer_types", None) or ()) - ATTENDING)


# Fewer blocks


def shorten(model: "PreTrainedModel", kept: list[int]) -> None:
    """Leave these blocks alone, in place: the list, what the config says layer by layer, and places in the cache."""
    found, config = named_blocks(model), model.config.get_text_config()
    names, stay = list(found), [list(found.values())[number] for number in kept]
    fields = layer_fields(config, model, kept)
    for position, block in enumerate(stay):
        for module in block.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = position  # its place in the key-value cache
    model.set_submodule(names[0].rsplit(".", 1)[0], nn.ModuleList(stay))
    for name, value in fields.items():
        setattr(config, name, value)


def layer_fields(config: Any, model: nn.Module, kept: list[int]) -> dict[str, Any]:
    """What the config of the network with these blocks alone says of its layers, where a config says such a thing."""
    fields: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name, value in config.to_dict().items():
        if name in LISTED_LAYERS and value is not None:
            fields[name] = [position for position, number in enumerate(kept) if number in value]
        elif name in LEADING_LAYERS and value is not None:
            fields[name] = sum(number < value for number in kept)
        elif isinstance(value, list) and len(value) == config.num_hidden_layers and not name.endswith("token_id"):
            fields[name] = [value[number] for number in kept]
    if "mlp_only_layers" in fields:  # decoder_sparse_step counts on, so without it
        every = blocks(model)
        fields["mlp_only_layers"] = [new for new, number in enumerate(kept) if not routers_of(every[number])]
        fields["decoder_sparse_step"] = 1
    return fields


def obstacle(model: "PreTrainedModel", kept: list[int]) -> str | None:
    """Why no config describes the network with these blocks alone; none if one does.

    The network that would be loaded is built without weights, and compared: shapes, and every number, name and switch
    of every module in the blocks. So a rule like "every fourth layer has a window" that no list overrides is found.
    """
    whole, every = copy.deepcopy(model.config), blocks(model)
    config = whole.get_text_config()
    for name, value in layer_fields(config, model, kept).items():
        setattr(config, name, value)
    with torch.device("meta"):
        loaded = type(model)(whole)
    for position, twin in enumerate(blocks(loaded)):
        block = every[kept[position]]
        if changed := difference(settings(block), settings(twin)):
            return f"block {kept[position]} would be loaded with another {changed}"
    outside = [{n: w.shape for n, w in each.state_dict().items() if not in_block(n, each)} for each in (model, loaded)]
    changed = difference(*outside)
    return f"{changed} has something of every block" if changed else None


def settings(block: nn.Module) -> dict[str, Any]:
    """Shapes of the weights, and what each module remembers of the config; not its place in the cache."""
    found: dict[str, Any] = {name: weight.shape for name, weight in block.state_dict().items()}
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | None) and not name.startswith("_"):
                found[join(path, name)] = value
    return {name: value for name, value in found.items() if name.rsplit(".", 1)[-1] not in ("layer_idx", "training")}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first name under which they differ."""
    missing = object()
    return next((name for name in [*one, *other] if one.get(name, missing) != other.get(name, missing)), None)


def in_block(parameter: str, model: nn.Module) -> bool:
    return any(parameter.startswith(f"{name}.") for name in named_blocks(model))


# Channels that may be scaled: by 1 / s in what writes them, by s in all that reads them

Feeds = tuple[tuple[str, tuple[str, ...]], ...]  # (a norm or matrix of a block, all that reads behind it)
ATTENTION_INPUTS, MLP_INPUTS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
LINEAR_FEEDS: Feeds = (("v_proj", ("o_proj",)), ("up_proj", ("down_proj",)))
SANDWICHED: Feeds = (("input_layernorm", ATTENTION_INPUTS), ("pre_feedforward_layernorm", MLP_INPUTS), *LINEAR_FEEDS)
FUSED: Feeds = (("input_layernorm", ("qkv_proj",)), ("post_attention_layernorm", ("gate_up_proj",)))
FEEDS: dict[str, Feeds] = {
    "gemma2": SANDWICHED,
    "gemma3_text": SANDWICHED,
    "phi3": (*FUSED, ("gate_up_proj", ("down_proj",))),
    "olmo2": LINEAR_FEEDS,  # its norms stand behind
    "cohere2": (("input_layernorm", (*ATTENTION_INPUTS, *MLP_INPUTS)), *LINEAR_FEEDS),
    "gpt_neox": (("input_layernorm", ("query_key_value",)), ("post_attention_layernorm", ("dense_h_to_4h",))),
}


def feeds(model: "PreTrainedModel") -> Feeds:
    """None where this file does not know them."""
    plain = (*((norm, readers) for norm, readers in READERS.items()), *LINEAR_FEEDS)
    return plain if is_plain(model) else FEEDS.get(model.config.model_type, ())


# A plain decoder

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite")
"""Model types whose blocks are x + c attention(norm(x)), then x + c mlp(norm(x)), with RMS norms, a gated MLP and
constants c, and that compute nothing besides: no gain of 1 + w, no third norm, no matrix for two things."""

READERS = {"input_layernorm": ATTENTION_INPUTS, "post_attention_layernorm": MLP_INPUTS}
FINAL_NORM = "norm"


def is_plain(model: "PreTrainedModel") -> bool:
    return model.config.model_type in PLAIN


# What rows and columns stand for

Space = Literal["vocabulary", "positions", "hidden", "queries", "keys", "values", "triples", "mixed", "ffn", "head"]
Spaces = tuple[Space, ...]  # one after another in one dimension: a matrix for several things
EVERYWHERE = ("vocabulary", "positions", "hidden")  # of no single block


class Axis(NamedTuple):
    """What a row or a column stands for: a channel of the residual stream (`hidden`), or of a space of one block.

    `queries` and `mixed`, the values as attention has mixed them, have a place for each channel of each query head;
    `keys` and `values` for each channel of each key-value head; `triples` for each head's query, key and value, head by
    head; `head` for the channels of one head.
    """

    space: Space
    block: int | None = None


class Part(NamedTuple):
    """A run of places along a dimension."""

    axis: Axis
    size: int


Table = dict[str, tuple[Spaces, ...]]  # a parameter's rows, its columns, as a Linear has them
LLAMA: Table = {
    "embed_tokens": (("vocabulary",), ("hidden",)),
    "input_layernorm": (("hidden",),),
    "q_proj": (("queries",), ("hidden",)),
    "k_proj": (("keys",), ("hidden",)),
    "v_proj": (("values",), ("hidden",)),
    "q_norm": (("head",),),
    "k_norm": (("head",),),
    "o_proj": (("hidden",), ("mixed",)),
    "post_attention_layernorm": (("hidden",),),
    "pre_feedforward_layernorm": (("hidden",),),
    "post_feedforward_layernorm": (("hidden",),),
    "gate_proj": (("ffn",), ("hidden",)),
    "up_proj": (("ffn",), ("hidden",)),
    "down_proj": (("hidden",), ("ffn",)),
    "norm": (("hidden",),),
    "lm_head": (("vocabulary",), ("hidden",)),
}
OLMO2: Table = {"q_norm": (("queries",),), "k_norm": (("keys",),)}
PHI3: Table = {
    "qkv_proj": (("queries", "keys", "values"), ("hidden",)),
    "gate_up_proj": (("ffn", "ffn"), ("hidden",)),
}
GPT2: Table = {
    "wte": (("vocabulary",), ("hidden",)),
    "wpe": (("positions",), ("hidden",)),
    "ln_1": (("hidden",),),
    "c_attn": (("queries", "keys", "values"), ("hidden",)),
    "attn.c_proj": (("hidden",), ("mixed",)),
    "ln_2": (("hidden",),),
    "c_fc": (("ffn",), ("hidden",)),
    "mlp.c_proj": (("hidden",), ("ffn",)),
    "ln_f": (("hidden",),),
    "lm_head": (("vocabulary",), ("hidden",)),
}
GPT_NEOX: Table = {
    "embed_in": (("vocabulary",), ("hidden",)),
    "input_layernorm": (("hidden",),),
    "query_key_value": (("triples",), ("hidden",)),
    "attention.dense": (("hidden",), ("mixed",)),
    "post_attention_layernorm": (("hidden",),),
    "dense_h_to_4h": (("ffn",), ("hidden",)),
    "dense_4h_to_h": (("hidden",), ("ffn",)),
    "final_layer_norm": (("hidden",),),
    "lm_head": (("vocabulary",), ("hidden",)),
}
AXES: dict[str, Table] = {
    **dict.fromkeys((*PLAIN, "gemma2", "gemma3_text", "cohere2"), LLAMA),
    "olmo2": LLAMA | OLMO2,
    "phi3": LLAMA | PHI3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
}
HEADS_FILL_HIDDEN = ("gpt2", "gpt_neox")  # no config gives their heads another width than hidden / heads
GROWING = ("gemma2", "gemma3_text")  # embeddings are multiplied by the root of the hidden size
BEYOND_ONE = ("gemma2", "gemma3_text")  # a norm's gain is 1 + weight
FFN = ("n_inner", "intermediate_size")  # what a config calls the width of a feed-forward network


def axes(model: "PreTrainedModel") -> dict[str, tuple[tuple[Part, ...], ...]]:
    """For every parameter of a known decoder what each of its dimensions stands for, as it is stored."""
    return {name: parts if linear else parts[::-1] for name, parts, linear in described(model)}


def reading(model: "PreTrainedModel") -> dict[Axis, str]:
    """The matrix, by its module's name, that reads each of these spaces of a block: what attention has mixed, and the
    feed-forward channels."""
    columns = {parts[1][0].axis: name for name, parts, _ in described(model) if len(parts) == 2}
    return {axis: name.removesuffix(".weight") for axis, name in columns.items() if axis.space in ("mixed", "ffn")}


def described(model: "PreTrainedModel") -> Iterator[tuple[str, tuple[tuple[Part, ...], ...], bool]]:
    """Each parameter, what its rows and, unless it is a bias, its columns are, and whether it is stored so, (O, I)."""
    table, shape = AXES[model.config.model_type], heads(model.config)
    sizes = {"queries": shape.queries * shape.size} | dict.fromkeys(("keys", "values"), shape.keys_values * shape.size)
    numbers = {f"{name}.": number for number, name in enumerate(named_blocks(model))}
    for name, weight in model.state_dict().items():
        block = next((number for prefix, number in numbers.items() if name.startswith(prefix)), None)
        path = name.split(".")[:-1]
        known, module = table.get(".".join(path[-2:])) or table[path[-1]], model.get_submodule(".".join(path))
        linear = isinstance(module, nn.Linear) or not multiplies(module)
        parts = []
        for spaces, length in zip(known, weight.shape if linear else weight.shape[::-1], strict=False):
            own = [Axis(space, None if space in EVERYWHERE else block) for space in spaces]
            even = len(set(spaces)) == 1
            parts.append(tuple(Part(axis, length // len(own) if even else sizes[axis.space]) for axis in own))
        yield name, tuple(parts), linear


def take(weight: Tensor, named: tuple[tuple[Part, ...], ...], places: Mapping[Axis, Tensor]) -> Tensor:
    """The weight with these places of these axes alone, in this order; other axes stay whole."""
    for dimension, parts in enumerate(named):
        if not any(part.axis in places for part in parts):
            continue
        chosen, first = [], 0
        for axis, size in parts:
            own = places[axis].to(weight.device) if axis in places else torch.arange(size, device=weight.device)
            chosen.append(first + own)
            first += size
        weight = weight.index_select(dimension, torch.cat(chosen))
    return weight


def ffn(config: Any) -> int:
    """Channels of a feed-forward network; GPT-2's config may leave out that they are four times the hidden ones."""
    return next((size for name in FFN if (size := getattr(config, name, None))), 4 * config.hidden_size)


def resize(config: Any, hidden: int, ffn: int, heads: Heads) -> None:
    """Write these widths into the config of a known decoder."""
    config.hidden_size, config.num_attention_heads = hidden, heads.queries
    setattr(config, next(name for name in FFN if hasattr(config, name)), ffn)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = heads.keys_values
    if config.model_type not in HEADS_FILL_HIDDEN:
        config.head_dim = heads.size


def rescale_embedding(model: "PreTrainedModel", small: "PreTrainedModel", weights: dict[str, Tensor]) -> None:
    """Where the embedding is multiplied by the root of the hidden size, which is smaller now, enlarge it by as much;
    where it is the head too, its norm hands on as much less."""
    if model.config.model_type not in GROWING:
        return
    grown = (model.config.hidden_size / small.config.hidden_size) ** 0.5
    names = {id(module): name for name, module in model.named_modules()}
    weights[f"{names[id(model.get_input_embeddings())]}.weight"] *= grown
    if model.config.tie_word_embeddings:
        weights[f"{names[id(model.get_output_embeddings())]}.weight"] *= grown
        norm = next(norm for norm in reversed(scales(model)) if not in_block(norm.gain, model))
        weights[norm.gain] = (weights[norm.gain] + norm.offset) / grown - norm.offset


class Scale(NamedTuple):
    """A norm over the channels of one axis."""

    name: str
    module: nn.Module
    axis: Axis
    offset: float  # the gain is weight + offset
    centred: bool  # it takes the mean off

    @property
    def gain(self) -> str:
        return f"{self.name}.weight"


def scales(model: "PreTrainedModel") -> list[Scale]:
    """Every norm of a known decoder, but those within a head."""
    offset = float(model.config.model_type in BEYOND_ONE)
    found = []
    for name, parts in axes(model).items():
        path, _, kind = name.rpartition(".")
        if kind == "weight" and len(parts) == 1 and parts[0][0].axis.space != "head":
            module = model.get_submodule(path)
            found.append(Scale(path, module, parts[0][0].axis, offset, "LayerNorm" in type(module).__name__))
    return found


class Norm(NamedTuple):
    name: str
    module: nn.Module
    readers: list[nn.Linear]  # all that reads behind it

    @property
    def gain(self) -> nn.Parameter:
        return self.module.get_parameter("weight")


def norms(model: "PreTrainedModel") -> list[Norm]:
    """Every norm of a plain decoder's residual stream, in the order of computation."""
    found = []
    for prefix, block in named_blocks(model).items():
        linears = {name.rsplit(".", 1)[-1]: each for name, each in block.named_modules() if isinstance(each, nn.Linear)}
        for name, readers in READERS.items():
            found.append(Norm(join(prefix, name), block.get_submodule(name), [linears[reader] for reader in readers]))
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    name = next(name for name, each in model.named_modules() if each is decoder)
    return [*found, Norm(join(name, FINAL_NORM), decoder.get_submodule(FINAL_NORM), [head])]
