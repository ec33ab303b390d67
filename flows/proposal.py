"""The profile that init proposes: which stages with which numbers, for a model of this shape and rows of these lengths.

The numbers are starting points that have worked on a model of a hundred million weights, no more: the user's to change.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

RANK = 16  # of LoRA
STEPS, STUDENT_STEPS = 30, 200  # at least: of a model that knows a language, and of what pruning has left of one
CHAT_LR = 0.0002  # of LoRA on replies: Dettmers et al. 2023, arXiv:2305.14314, table 9


class Shape(NamedTuple):
    """What a model's file says of its size."""

    kind: str  # llama, ...
    parameters: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    positions: int  # tokens that it can read
    body: int  # parameters in its blocks
    adapted: int  # rows and columns of all matrices there: LoRA's weights at rank 1


SMOLLM2 = Shape("llama", 134_515_008, 30, 576, 1536, 9, 3, 8192, 106_203_456 - 576, 305_280)


class Work(NamedTuple):
    """One training: how many weights take part, how many of them move, on how many tokens."""

    parameters: int
    trained: int
    tokens: int
    beside: int = 0  # weights of a teacher in memory
    read: int = 0  # tokens that it reads

    @property
    def reading(self) -> float:
        """FLOPs of a teacher: 2 a weight and token, forward alone (Kaplan et al. 2020, arXiv:2001.08361, table 1)."""
        return 2.0 * self.beside * self.read

    @property
    def flops(self) -> float:
        """Those, and 6 a weight and token that learn, forward and backward."""
        return 6.0 * self.parameters * self.tokens + self.reading

    @property
    def bytes(self) -> int:
        """Weights, gradients and two moments in 32 bits; weights that stay are in memory only once."""
        frozen = self.parameters if self.trained < self.parameters else 0
        return 16 * self.trained + 4 * (frozen + self.beside)


class Lengths(NamedTuple):
    """Tokens of every row that is trained on, and of what is packed of the held-out ones."""

    train: list[int]
    held_out: int
    different: int  # tokens of the vocabulary that the rows use


def shape_of(model: Path) -> Shape:
    """Of a GGUF or of a folder in Hugging Face's layout, no weight read."""
    if not model.exists():
        return SMOLLM2
    if model.is_file():
        import gguf

        reader = gguf.GGUFReader(model)
        kind = str(reader.fields["general.architecture"].contents())
        names = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
        names += ("attention.head_count_kv", "context_length")
        said = [reader.fields[f"{kind}.{name}"].contents() for name in names]
        sizes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    else:
        from safetensors import safe_open

        from stages.lib.store import loading

        loading.require_weights(model, model)
        config: Any = loading.read_config(model, model).get_text_config(decoder=True)
        kind, heads = config.model_type, config.num_attention_heads
        said = [config.num_hidden_layers, config.hidden_size, config.intermediate_size, heads]
        said += [getattr(config, "num_key_value_heads", None) or heads, config.max_position_embeddings]
        sizes = {}
        for file in model.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                names = opened.keys()  # it has no iterator
                sizes |= {name: opened.get_slice(name).get_shape() for name in names}
    blocks = [size for name, size in sizes.items() if re.search(r"\.\d+\.", name)]
    whole, body = (sum(map(math.prod, some)) for some in (sizes.values(), blocks))
    return Shape(kind, whole, *said, body=body, adapted=sum(sum(size) for size in blocks if len(size) == 2))


def plan(
    method: str,
    shape: Shape,
    lengths: Mapping[str, Lengths],
    context: int,
    external: dict[str, str],
    cut: bool,
    liked: list[bool],
) -> tuple[dict[str, Any], list[Work]]:
    mine = lengths["mine"]
    match method:
        case "classify":
            return classifier(shape, mine, context, lengths.get("unlabelled"), cut)
        case "documents":
            return reader(shape, mine, context, external)
        case "preferences":
            return preferrer(shape, mine, context, liked)
        case _:
            return chatter(shape, mine, context)


def classifier(
    shape: Shape, lengths: Lengths, context: int, unlabelled: Lengths | None, cuttable: bool
) -> tuple[dict[str, Any], list[Work]]:
    """Teacher by LoRA on the labels, student of a seventh of its blocks, and of its tokens those that are used."""
    teaching = steps(3, sum(lengths.train), context, 4)
    learning = max(STUDENT_STEPS, steps(10, sum((unlabelled or lengths).train), context, 8))
    model, prune = "align/mine", {}
    layers, narrow = max(1, shape.layers // 7), smaller(shape)
    calibration = {"calibration": {"rows": 16}, "held_out_rows": 4}
    planned: dict[str, tuple[bool, dict[str, Any]]] = {
        "vocabulary": (cuttable, {"held_out_rows": 4}),
        "depth": (layers < shape.layers, {"layers": layers} | calibration),
        "width": (narrow is not None, (narrow or {}) | calibration),
    }
    for method, (possible, p) in planned.items():
        if possible:
            prune[method] = {"method": method, "model": model, "tokens": "tokenize/theirs"} | p
            model = f"prune/{method}"
    labelling = {"method": "labels", "model": "align/mine", "source": "data/unlabelled"}
    measured = {"teacher": "align/mine", "student": "distill/student", "before": "pretrain/teacher", "q4_k_m": None}
    tree = {
        "align": {"mine": sft(context, teaching, 4, 0.0005)},
        "traces": {"labels": labelling | {"context": context}},
        "prune": prune,
        "distill": {
            "student": {
                "method": "labels",
                "model": model,
                "teacher": "prune/vocabulary" if "vocabulary" in prune else "align/mine",  # who reads the same tokens
                "traces": "traces/labels" if unlabelled else "data/mine",
                "tokens": "tokenize/theirs",
                "context": context,
                "hints": {},
                "held_out_rows": 4,
                "training": {"steps": learning, "batch_size": 8, "lr": 0.001, "optimizer": "adamw"},
            }
        },
        "export": {"q8_0": {"model": "distill/student"}, "q4_k_m": None},
        "eval": {
            "models": measured,
            "accuracy": {"records": "data/mine", "per_family": 1000},
            "bits_per_byte": {"records": "data/texts"},
            "speed": {"records": "data/texts", "prompt_tokens": 40, "new_tokens": 2},
        },
        "gates": {"model": "export/q8_0", "student": "q8_0", "accuracy_kept": 0.9},
    }  # fmt: skip
    if not unlabelled:
        del tree["traces"]
    wide = (narrow["hidden"] if narrow else shape.hidden) / shape.hidden
    body = shape.body * min(layers / shape.layers, 1) * wide**2
    words = lengths.different * shape.hidden if cuttable else shape.parameters - shape.body
    student = int(body + words * wide)
    return tree, [
        lora(shape, teaching * 4 * context),
        Work(
            student, student, learning * 8 * context, beside=shape.parameters, read=sum((unlabelled or lengths).train)
        ),
    ]


def chatter(shape: Shape, lengths: Lengths, context: int) -> tuple[dict[str, Any], list[Work]]:
    """The model itself, by LoRA on every reply, three times; few rows make small steps, not more rounds."""
    tokens = sum(lengths.train)
    size = next((size for size in (4, 2) if 3 * tokens >= STEPS * context * size), 1)
    count = math.ceil(3 * tokens / context / size)
    tree = {
        "align": {"mine": sft(context, count, size, CHAT_LR)},
        "export": ships("align/mine"),
        "eval": {"models": {"mine": "align/mine"}, "accuracy": {"records": "data/mine"}},
    }
    return tree, [lora(shape, count * size * context)]


def preferrer(shape: Shape, lengths: Lengths, context: int, liked: list[bool]) -> tuple[dict[str, Any], list[Work]]:
    """The model itself, by DPO with LoRA, or by KTO where single replies were `liked` or not; what it could before, the
    base's problems measure."""
    count = math.ceil(len(lengths.train) / 4)
    parts = 2 if liked else 4  # long replies and a large vocabulary fill the memory; kto compares two at least
    training = {"steps": count, "batch_size": 4, "accumulation": parts, "lr": 0.0001, "optimizer": "adamw"}
    entry = aligned("kto" if liked else "dpo", context, training)
    if 0 < sum(liked) < len(liked):  # the rarer kind counts for as much as the other
        share = sum(liked) / (len(liked) - sum(liked))
        entry |= {"undesirable": round(share, 2)} if share > 1 else {"desirable": round(1 / share, 2)}
    tree = {
        "align": {"mine": entry},
        "export": ships("align/mine"),
        "eval": {"models": {"mine": "align/mine"}},
    }
    return tree, [lora(shape, 2 * sum(lengths.train))]


def reader(shape: Shape, lengths: Lengths, context: int, external: dict[str, str]) -> tuple[dict[str, Any], list[Work]]:
    """All weights go on with the texts; what else the model could, the base's problems measure and keep awake."""
    tokens = max(2000, math.ceil(sum(lengths.train) / 0.8))
    count = steps(2, tokens, context, 8)
    training = {"steps": count, "batch_size": 8, "lr": 0.00005, "optimizer": "adamw"}
    mine = {"method": "pretrained", "tokens": "tokenize/theirs", "held_out_rows": 8, "training": training}
    tree = {
        "tokenize": {"theirs": {"train_tokens": tokens, "problem_share": 0.2}},
        "pretrain": {"mine": mine | {"external": external}},
        "export": ships("pretrain/mine"),
        "eval": {
            "models": {"mine": "pretrain/mine"},
            "bits_per_byte": {"records": "data/mine"},
            "speed": {"records": "data/mine"},
        },
    }
    return tree, [Work(shape.parameters, shape.parameters, count * 8 * context)]


def share_of(works: list[Work], flops: float) -> float:
    """How much of the trainings that many FLOPs allow, after what teachers read; under 0 nothing."""
    reading = sum(work.reading for work in works)
    return (flops - reading) / (sum(work.flops for work in works) - reading)


def shorter(tree: dict[str, Any], works: list[Work], share: float) -> tuple[dict[str, Any], list[Work]]:
    """With that share of every training's steps; what a teacher reads it still reads."""

    def cut(entry: Any) -> Any:
        if not isinstance(entry, dict) or "training" not in entry:
            return entry
        steps = max(1, int(entry["training"]["steps"] * share))
        return entry | {"training": entry["training"] | {"steps": steps}}

    kept = {stage: {name: cut(entry) for name, entry in some.items()} for stage, some in tree.items()}
    return kept, [work._replace(tokens=int(work.tokens * share)) for work in works]


def parents(method: str) -> dict[str, str]:
    """What rows of tokens are made of: the user's own, and the base's of the other kind."""
    found = {} if method == "documents" else {"problems": "data/mine"}
    return found | {"classify": {"documents": "data/texts"}, "documents": {"documents": "data/mine"}}.get(method, {})


def replaced(method: str) -> list[str]:
    """The base's data that nothing uses any more."""
    return {
        "classify": ["corpus", "problems"],
        "chats": ["problems"],
        "extract": ["problems"],
        "documents": ["corpus"],
    }.get(method, [])


def steps(epochs: int, tokens: int, context: int, batch_size: int) -> int:
    return max(STEPS, math.ceil(epochs * tokens / context / batch_size))


def smaller(shape: Shape) -> dict[str, int] | None:
    """Two thirds of the heads and channels, whole groups of heads, in blocks of 32 that every export can round; none
    where that does not come out even, or where nobody knows how to narrow the network."""
    from stages.lib.nets import anatomy

    kv_heads = max(1, shape.kv_heads * 2 // 3)
    heads, hidden = (size * kv_heads // shape.kv_heads for size in (shape.heads, shape.hidden))
    ffn = shape.ffn * kv_heads // shape.kv_heads // 32 * 32
    even = shape.heads % shape.kv_heads == 0 and hidden % 32 == 0 and hidden % heads == 0 and ffn
    if shape.kind not in anatomy.AXES or not even or kv_heads == shape.kv_heads:
        return None
    return {"hidden": hidden, "ffn": ffn, "heads": heads, "kv_heads": kv_heads}


def sft(context: int, count: int, size: int, lr: float) -> dict[str, Any]:
    training = {"steps": count, "batch_size": size, "lr": lr, "optimizer": "adamw"}
    return aligned("sft", context, training)


def aligned(method: str, context: int, training: dict[str, Any]) -> dict[str, Any]:
    parents = {"model": "pretrain/teacher", "problems": "data/mine", "examples": "data/mine"}
    rest = {"lora": {"rank": RANK, "alpha": 2 * RANK}, "context": context, "held_out_rows": 8, "training": training}
    return {"method": method, **parents, **rest}


def lora(shape: Shape, tokens: int) -> Work:
    return Work(shape.parameters, RANK * shape.adapted, tokens)


def ships(model: str) -> dict[str, Any]:
    return {name: {"model": model} for name in ("q8_0", "q4_k_m")}
