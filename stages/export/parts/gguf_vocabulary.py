"""The tokenizer inside a GGUF file, and the chat template in the language of Ollama's Modelfile."""

import json
from typing import Any

from stages.lib.frame.errors import UserError

DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PRE_TOKENIZERS = {"gpt-2": [BYTES], "smollm": [DIGITS, BYTES]}  # llama.cpp's name of a splitting -> the splitting
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types

GO = {
    "{% for message in messages %}": "{{ range .Messages }}",
    "{{ message['role'] }}": "{{ .Role }}",
    "{{ message['content'] }}": "{{ .Content }}",
    "{% endfor %}": "{{ end }}",
    "{% if add_generation_prompt %}": "",  # Ollama always asks for the next answer
    "{% endif %}": "",
}


def read(tokenizer: Any, size: int) -> dict[str, Any]:
    """Everything llama.cpp needs to split and number text exactly as `tokenizer` does; `size` rows of embeddings."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    name = splitting(state)
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, index in state["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return {
        "pre": name,
        "tokens": tokens,
        "types": types,
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "special": {key: getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")},
        "chat_template": tokenizer.chat_template,
    }


def splitting(state: dict[str, Any]) -> str:
    """llama.cpp knows pre-tokenizers by name only, so only the known ones can be written."""
    pre = state["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    for name, known in PRE_TOKENIZERS.items():
        if state["model"]["type"] == "BPE" and state["normalizer"] is None and same(steps, known):
            return name
    kind = " + ".join([state["model"]["type"], *(step.get("type", "no splitting") for step in steps)])
    raise UserError(f"GGUF export knows byte-level BPE, with or without single digits (bpe), not the tokenizer {kind}")


def same(steps: list[dict[str, Any]], known: list[dict[str, Any]]) -> bool:
    return len(steps) == len(known) and all(k.items() <= s.items() for s, k in zip(steps, known, strict=True))


def add(writer: Any, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    for key, index in vocabulary["special"].items():
        if index is not None:
            getattr(writer, f"add_{key}_token_id")(index)
    writer.add_add_bos_token(False)  # the chat template and our token rows write it themselves
    if vocabulary["chat_template"]:
        writer.add_chat_template(vocabulary["chat_template"])


def modelfile(tokenizer: Any, context: int) -> str:
    """Ollama's recipe; a chat template beyond a plain loop over messages is left to what Ollama finds in the GGUF."""
    lines = ["FROM ./model.gguf", f"PARAMETER num_ctx {context}", f'PARAMETER stop "{tokenizer.eos_token}"']
    template = (tokenizer.chat_template or "{%").replace("{{ bos_token }}", tokenizer.bos_token or "")
    for jinja, go in GO.items():
        template = template.replace(jinja, go)
    if "{%" not in template:
        lines.insert(1, f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n"
