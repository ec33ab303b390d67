"""Talk to an exported model in the terminal: python -m apps.chat [--model FILE.gguf]. Ctrl-D ends.

Mainstream llama.cpp reads everything, weights, tokenizer and chat template, from the one file, as it would at a user's.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.lib.frame import gates, params
from stages.lib.frame.errors import UserError, command

Messages = list[dict[str, str]]


def main(*, model: Path | None = None, temperature: float = 0.0, max_tokens: int = 256) -> None:
    """Without --model it is the one that ships, by the gates in params.yaml."""
    server = serve(model or shipped())
    messages: Messages = []
    for text in questions():
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": answer(server, messages, temperature, max_tokens)})


def shipped() -> Path:
    gate = gates.read(params.read())
    if gate is None:
        raise UserError(f"{params.PARAMS_FILE} has no gates that say which model ships: name one with --model")
    return Path("artifacts") / gate.model / "model" / "model.gguf"


def serve(model: Path) -> Any:
    """llama.cpp's server inside this process; nothing listens on a port that anyone is told of."""
    from xllamacpp import CommonParams, Server  # pyright: ignore[reportAttributeAccessIssue]

    if not model.is_file():
        raise UserError(f"{model} is missing: export a GGUF first (make run), or name another with --model")
    settings = CommonParams()
    settings.model.path = str(model)
    settings.n_ctx = 0  # the model's own
    settings.n_parallel = 1
    settings.verbosity = -1
    settings.warmup = False
    try:
        return Server(settings)
    except RuntimeError as error:
        raise UserError(f"{model} is damaged or no GGUF file: llama.cpp can't load it") from error


def questions() -> Iterator[str]:
    """Lines that say something, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


def answer(server: Any, messages: Messages, temperature: float, max_tokens: int) -> str:
    """Print the answer as it grows. A talk that has outgrown the context loses its oldest exchange, in place."""
    pieces: list[str] = []
    errors: list[dict[str, Any]] = []

    def receive(chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            errors.append(chunk["error"])
        else:
            pieces.append("".join(choice["delta"].get("content") or "" for choice in chunk["choices"]))
            print(pieces[-1], end="", flush=True)

    request = {"messages": messages, "temperature": temperature, "max_tokens": max_tokens, "stream": True}
    server.handle_chat_completions(request, receive)
    if errors and errors[0].get("type") == "exceed_context_size_error" and len(messages) > 2:
        del messages[:2]
        return answer(server, messages, temperature, max_tokens)
    print(errors[0]["message"] if errors else "")
    return "".join(pieces)


if __name__ == "__main__":
    command(main)
