"""How byte-level BPE cuts text into words before it merges anything, by llama.cpp's names for the ways: a GGUF holds
nothing but the name. Each is written as tokenizer.json has it.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
MARKED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + SPACES
)


def cut(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = BYTES | {"use_regex": True}  # and GPT-2's expression before


class Splitting(NamedTuple):
    steps: list[dict[str, Any]]
    ignore_merges: bool = False  # is a word that is a token taken whole, whatever merges lead to?


LLAMA3 = [cut(rf"{ENDINGS}|{LETTERS}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}"), BYTES]
SPLITTINGS = {
    "gpt-2": Splitting([WORDS]),
    "smollm": Splitting([DIGITS, WORDS]),
    "llama-bpe": Splitting(LLAMA3, ignore_merges=True),
    "smaug-bpe": Splitting(LLAMA3),
    "qwen2": Splitting([cut(rf"{ENDINGS}|{LETTERS}|\p{{N}}|{SIGNS}|{SPACES}"), BYTES]),
    "qwen35": Splitting(
        [
            cut(
                rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
                rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
            ),
            BYTES,
        ]
    ),
    "gpt-4o": Splitting([cut(rf"{CASED % (f'{ENDINGS}?', f'{ENDINGS}?')}|\p{{N}}{{1,3}}|{SLASHED}|{SPACES}"), BYTES]),
    "tekken": Splitting([cut(rf"{CASED % ('', '')}|\p{{N}}|{SLASHED}|{SPACES}"), BYTES], ignore_merges=True),
    "deepseek-v3": Splitting([cut(r"\p{N}{1,3}"), cut("[一-龥぀-ゟ゠-ヿ]+"), cut(MARKED), BYTES]),
    "deepseek-coder": Splitting(
        [cut(r"[\r\n]"), cut(r"\s?\p{L}+"), cut(r"\s?\p{P}+"), cut("[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES]
    ),
    "falcon": Splitting(
        [
            {"type": "Punctuation", "behavior": "Contiguous"},
            WORDS,
            {"type": "Digits", "individual_digits": False},
            cut("[0-9][0-9][0-9]"),
        ]
    ),
}
SAME = {  # other names that files have for these
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gpt-neox"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("dbrx", "chatglm-bpe", "glm4"), "smaug-bpe"),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2"), "qwen2"),
    **dict.fromkeys(("llama4", "minimax-m2", "kanana2"), "gpt-4o"),
}
HARD = (  # texts on which splittings and vocabularies differ
    "12345 a 1b2 3.14 1,234,567 ½ ² Ⅷ ٣",
    "  two  spaces\n\n\ttab \r\n end  \n \n",
    "naïve café Ångström 日本語のテキスト 한국어 中文。 🙂👩‍👩‍👧 y\u3000z\u00a0x",
    "don't I'll WE'VE it's 'tis camelCase HTTPServer XMLHttpRequest snake_case __init__",
    "def f(x):\n    return {'a': [x**2, -1]}  # ok?\n\n\n\tif a != b: pass",
    "... !!! 100% #### 7\n--- $5.00 <tag/> ``` \\n //",
    "Привет, мир! مرحبا שלום नमस्ते ไทย",
    "The capital of France is Paris.",
    " a",
    " ",
)


def pre_tokenizer(name: str) -> "PreTokenizer":
    from tokenizers import Tokenizer, models

    empty = json.loads(Tokenizer(models.BPE()).to_str())
    steps = {"type": "Sequence", "pretokenizers": SPLITTINGS[name].steps}
    return Tokenizer.from_str(json.dumps(empty | {"pre_tokenizer": steps})).pre_tokenizer  # pyright: ignore


def named(own: "PreTokenizer", ignore_merges: bool) -> Iterator[str]:
    """The names of the ways that cut hard texts as this one does."""
    for name, splitting in SPLITTINGS.items():
        same = all(own.pre_tokenize_str(text) == pre_tokenizer(name).pre_tokenize_str(text) for text in HARD)
        if same and splitting.ignore_merges == ignore_merges:
            yield name
