"""Ollama's recipe for a GGUF. Its chat template is one of Go; one of Jinja that is more than a loop over messages is
left out, and Ollama takes what it finds in the GGUF.
"""

import re
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.text import chat

RANGE, END = "{{ range .Messages }}", "{{ end }}"
FIELDS = {"role": "{{ .Role }}", "content": "{{ .Content }}"}


class Unsure(Exception):
    """Go may not say what this part of a template says."""


def modelfile(tokenizer: Any, context: int | None) -> str:
    lines = ["FROM ./model.gguf"]
    if template := translated(tokenizer):
        lines.append(f'TEMPLATE """{template}"""')
    if context:
        lines.append(f"PARAMETER num_ctx {context}")
    lines += [f"PARAMETER stop {quoted(tokenizer.convert_ids_to_tokens(stop))}" for stop in chat.stops(tokenizer)]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Refused where Ollama would read on behind it: the next line could be ADAPTER or FROM."""
    if '"""' in text or text.endswith('"'):
        raise UserError(f"a token that ends replies is {text!r}, which no Modelfile can say: choose safetensors")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def translated(tokenizer: Any) -> str | None:
    """The chat template in Go; none if it can't be said for sure."""
    import jinja2

    if not isinstance(tokenizer.chat_template, str):
        return None
    words = {f"{name}_token": getattr(tokenizer, f"{name}_token") or "" for name in ("bos", "eos")}
    try:
        parsed = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).parse(tokenizer.chat_template)
        template = "".join(go(node, words) for node in parsed.body)
    except (Unsure, jinja2.TemplateError):
        return None
    text = re.sub("|".join(map(re.escape, (RANGE, END, *FIELDS.values()))), "", template)
    return None if "{{" in text or '"""' in text else template  # text that would be more than text


def go(node: Any, words: dict[str, str], message: str = "") -> str:
    """One node of a template: text, a field of a message, tokens, sums of them, the loop, what asks for an answer."""
    from jinja2 import nodes

    match node:
        case nodes.Output(nodes=parts):
            return "".join(go(part, words, message) for part in parts)
        case nodes.TemplateData(data=str(text)) | nodes.Const(value=str(text)):
            return text
        case nodes.Name(name=name) if name in words:
            return words[name]
        case nodes.Getattr(node=nodes.Name(name=name), attr=field) if name == message and field in FIELDS:
            return FIELDS[field]
        case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=field)) if (
            name == message and field in FIELDS
        ):
            return FIELDS[field]
        case nodes.Add(left=left, right=right):
            return go(left, words, message) + go(right, words, message)
        case nodes.Concat(nodes=parts):
            return "".join(go(part, words, message) for part in parts)
        case nodes.For(target=nodes.Name(name=each), iter=nodes.Name(name="messages"), body=body, else_=[], test=None):
            return RANGE + "".join(go(part, words, each) for part in body) + END
        case nodes.If(test=nodes.Name(name="add_generation_prompt"), body=body, elif_=[], else_=[]) if not message:
            return "".join(go(part, words) for part in body)  # Ollama always asks for the next answer
    raise Unsure(type(node).__name__)
