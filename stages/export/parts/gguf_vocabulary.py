"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2"), or SentencePiece's BPE with bytes for what it has no token
for ("llama"). What is written is held to transformers' ids on hard texts, by llama.cpp itself.
"""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

from stages.lib.frame.errors import UserError
from stages.lib.text import chat, splittings

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's token types
SPACE = "▁"  # SentencePiece's
UNREACHED = -1e6  # the score of a token that no merge leads to


def read(tokenizer: Any, size: int) -> dict[str, Any]:
    """Everything llama.cpp needs to split and number text exactly as `tokenizer` does; `size` rows of embeddings."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, special = state["model"], [tokenizer.bos_token_id, tokenizer.eos_token_id]
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in dict(model["vocab"]).items() if model["type"] == "BPE" else ():
        tokens[index], types[index] = token, NORMAL
    kind = sentence_piece(state, types) if model.get("byte_fallback") else byte_level(tokenizer, state)
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if kind["model"] == "llama" and model["unk_token"]:
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    framed, stops = tokenizer("a").input_ids, chat.stops(tokenizer)
    template = tokenizer.chat_template
    return kind | {
        "tokens": tokens,
        "types": types,
        "special": {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
        | {"eot": stops[0] if stops else None},
        "add_bos": framed[0] == special[0],
        "add_eos": framed[-1] == special[1],
        "chat_template": template.get("default") if isinstance(template, dict) else template,
    }


def byte_level(tokenizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp knows ways to cut text by name only, so only the known ones can be written."""
    model, own = state["model"], tokenizer.backend_tokenizer.pre_tokenizer
    composed = (state["normalizer"] or {}).get("type") in (None, "NFC")
    name = None
    if own is not None and model["type"] == "BPE" and composed:
        name = next(splittings.named(own, model["ignore_merges"]), None)
    if name is None:
        names = ", ".join(splittings.SPLITTINGS)
        raise UserError(
            f"GGUF knows byte-level BPE that cuts text as {names}, and SentencePiece BPE with bytes; not the tokenizer "
            f"{kinds(state)}: choose safetensors"
        )
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in model["merges"]]}


def sentence_piece(state: dict[str, Any], types: list[int]) -> dict[str, Any]:
    """llama.cpp joins the two neighbours whose token has the highest score: the earlier its merge, the higher."""
    model = state["model"]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(model["merges"]):
        ranks.setdefault(left + right, rank)
    scores = [UNREACHED] * len(types)
    for token, index in model["vocab"].items():
        scores[index] = -float(ranks[token]) if token in ranks else UNREACHED
        if token.startswith("<0x") and len(token) == 6:
            types[index] = BYTE
    prefixed = any(step.get("prepend") == SPACE or step.get("prepend_scheme") == "always" for step in steps(state))
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefixed}


def steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the normalizer and of the pre-tokenizer."""
    found = []
    for part in (state["normalizer"], state["pre_tokenizer"]):
        found += (part or {}).get("normalizers") or (part or {}).get("pretokenizers") or [part or {}]
    return found


def kinds(state: dict[str, Any]) -> str:
    return " + ".join([state["model"]["type"], *(step["type"] for step in steps(state) if step)])


def add(writer: Any, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if vocabulary["model"] == "gpt2":
        writer.add_token_merges(vocabulary["merges"])
    else:
        writer.add_token_scores(vocabulary["scores"])
        writer.add_add_space_prefix(vocabulary["add_space_prefix"])
    for key, index in vocabulary["special"].items():
        if index is not None:
            getattr(writer, f"add_{key}_token_id")(index)
    writer.add_add_bos_token(vocabulary["add_bos"])
    writer.add_add_eos_token(vocabulary["add_eos"])
    if vocabulary["chat_template"]:
        writer.add_chat_template(vocabulary["chat_template"])


def check(tokenizer: Any, file: Path) -> None:
    """Refuse a file in which llama.cpp numbers a text otherwise than transformers."""
    from stages.lib.runtimes import libllama

    composes = "NFC" in [step.get("type") for step in steps(json.loads(tokenizer.backend_tokenizer.to_str()))]
    model = libllama.Model(str(file))
    try:
        for text in (*splittings.HARD, *quoting(tokenizer)):
            if composes:  # llama.cpp takes text as it comes, and nearly all comes composed
                text = normalize("NFC", text)
            here, there = tokenizer.encode(text, add_special_tokens=False), model.tokenize(text)
            if here != there:
                raise UserError(
                    f"llama.cpp would read {text!r} otherwise than the tokenizer: {shown(tokenizer, there)}, not "
                    f"{shown(tokenizer, here)}: choose safetensors"
                )
    finally:
        model.close()


def quoting(tokenizer: Any) -> list[str]:
    """Texts around tokens that are no words: control tokens, and those that were added."""
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    picked = added[:16] + added[-16:]
    return ["x " + token + "y " + token + " z" + token + "\n" for token in picked] + ["".join(picked) + "?"]


def shown(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids[:12]))
