"""The types of GGUF files, as their names say them, and which ggml type each matrix gets in one.

Mixes are llama.cpp's (llama-quant.cpp), and ours for small blocks and I-quants, where llama.cpp's would need longer
rows: the head as there, the values one K-quant above the rest.
"""

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType
from typing import Literal, NamedTuple

Where = Callable[[int, int], bool]  # (number of a layer, of how many) -> whether
Mix = Mapping[str, list[tuple[str, Where]]]  # kind of matrix -> type and where, the first that fits counts

KINDS = {"attn_v": "values", "attn_qkv": "values", "attn_kv_b": "values", "attn_output": "outputs", "ffn_down": "down"}
HEAD, EMBEDDING = "output", "token_embd"


def everywhere(layer: int, layers: int) -> bool:
    return True


def some(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def first(count: int = 0, share: int = 0) -> Where:
    return lambda layer, layers: layer < (count or layers // share)


def alike(**types: str) -> Mix:
    return {kind: [(type, everywhere)] for kind, type in types.items()}


class Format(NamedTuple):
    """What is particular about a type of file."""

    type: str  # ggml's, of most matrices
    head: str  # of the head, and of the embedding where it is the head
    calibration: Literal["useless", "useful", "needed"]
    fallback: str | None = None  # type of matrices whose rows hold no whole block; none: they are refused
    mix: Mix = MappingProxyType({})
    loss: float = inf  # nats/token; more is a wrong file
    ternary: bool = False  # holds nothing but -s, 0 and s


SOME_6 = {"values": [("Q6_K", some)], "down": [("Q6_K", some)]}
Q4_K_S: Mix = {"values": [("Q5_K", first(4))], "down": [("Q5_K", first(share=8))]}
Q3_K_M: Mix = {
    "values": [("Q5_K", first(2)), ("Q4_K", everywhere)],
    "down": [("Q5_K", first(share=16)), ("Q4_K", everywhere)],
    "outputs": [("Q4_K", everywhere)],
}
FORMATS = {
    "F16": Format("F16", "F16", "useless", loss=1e-3),
    "BF16": Format("BF16", "BF16", "useless", loss=1e-2),
    "Q8_0": Format("Q8_0", "Q8_0", "useless"),
    "Q5_0": Format("Q5_0", "Q8_0", "useful"),
    "Q4_0": Format("Q4_0", "Q8_0", "useful"),
    "IQ4_NL": Format("IQ4_NL", "Q8_0", "useful"),
    "Q6_K": Format("Q6_K", "Q6_K", "useful", "Q8_0"),
    "Q5_K_M": Format("Q5_K", "Q6_K", "useful", "Q5_0", SOME_6),
    "Q5_K_S": Format("Q5_K", "Q6_K", "useful", "Q5_0"),
    "Q4_K_M": Format("Q4_K", "Q6_K", "useful", "Q5_0", SOME_6),
    "Q4_K_S": Format("Q4_K", "Q6_K", "useful", "Q5_0", Q4_K_S),
    "Q3_K_L": Format("Q3_K", "Q6_K", "useful", "IQ4_NL", alike(values="Q5_K", down="Q5_K", outputs="Q5_K")),
    "Q3_K_M": Format("Q3_K", "Q6_K", "useful", "IQ4_NL", Q3_K_M),
    "Q3_K_S": Format("Q3_K", "Q6_K", "useful", "IQ4_NL"),
    "Q2_K": Format("Q2_K", "Q6_K", "useful", "IQ4_NL", alike(values="Q4_K", down="Q3_K", outputs="Q3_K")),
    "IQ4_XS": Format("IQ4_XS", "Q6_K", "useful", "IQ4_NL", alike(values="Q5_K")),
    "IQ3_S": Format("IQ3_S", "Q6_K", "useful", "IQ4_NL", alike(values="Q4_K")),
    "IQ3_XXS": Format("IQ3_XXS", "Q5_K", "useful", "IQ4_NL", alike(values="Q4_K")),
    "IQ2_S": Format("IQ2_S", "Q5_K", "needed", "IQ4_NL", alike(values="Q3_K")),
    "IQ2_XS": Format("IQ2_XS", "Q5_K", "needed", "IQ4_NL", alike(values="Q3_K")),
    "IQ2_XXS": Format("IQ2_XXS", "Q5_K", "needed", "IQ4_NL", alike(values="Q3_K")),
    "TQ2_0": Format("TQ2_0", "Q8_0", "useless", ternary=True),
    "TQ1_0": Format("TQ1_0", "Q8_0", "useless", ternary=True),
}


def block(type: str) -> int:
    """Weights that share a scale; a row of a matrix holds whole blocks."""
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]][0]


def bits(type: str, weights: int) -> int:
    """What so many weights take, scales counted."""
    import gguf

    per, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    return 8 * size * weights // per


def type_of(format: Format, name: str, layers: int, headless: bool) -> str:
    """Of the matrix with llama.cpp's name, in a file of so many layers; `headless` where the embedding is the head."""
    if name.startswith(f"{HEAD}.") or (name.startswith(f"{EMBEDDING}.") and embeds(format, headless)):
        return format.head
    part, _, rest = name.removeprefix("blk.").partition(".")
    kind = next((kind for prefix, kind in KINDS.items() if rest.startswith(prefix)), "")
    fits = [type for type, where in format.mix.get(kind, ()) if where(int(part), layers)]
    return fits[0] if fits else format.type


def embeds(format: Format, headless: bool) -> bool:
    """Whether the embedding has the head's type: it is the head, or its own would need calibration or has no scale."""
    return headless or not format.type.endswith("_K")
