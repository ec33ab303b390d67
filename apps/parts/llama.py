"""A GGUF file, served by llama.cpp inside this process: it reads weights, tokenizer and chat template from the file.

Its port is on the loopback and takes only requests with a key that nobody else is told.
"""

import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.runtimes import labels
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.llama_cpp import LlamaCpp
from stages.lib.text.chat import Message

CONTROL = "<|im_start|>"  # of ChatML, which llama.cpp assumes without a word where a file has no template
PATIENCE = 60  # seconds that a request without an answer of tokens may take


class Llama:
    def __init__(self, file: Path):
        from xllamacpp import CommonParams, Server  # pyright: ignore[reportAttributeAccessIssue]

        self.file, self.key = file, secrets.token_urlsafe()
        self.opened: Runtime | None = None
        settings = CommonParams()
        settings.model.path = str(file)
        settings.n_ctx = 0  # the model's own
        settings.n_parallel = 1
        settings.api_keys = [self.key]
        settings.ui = False
        settings.verbosity = -1
        settings.warmup = False
        if file.stat().st_size < LlamaCpp.SMALL:
            settings.cpuparams.n_threads = 1
        try:
            self.server: Any = Server(settings)
        except RuntimeError as error:
            raise UserError(f"{file} is damaged or no GGUF file: llama.cpp can't load it") from error
        self.url: str = self.server.listening_address
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.context: int = self.get("/props")["default_generation_settings"]["n_ctx"]

    def get(self, path: str) -> dict[str, Any]:
        import httpx2

        return httpx2.get(self.url + path, headers=self.headers, timeout=PATIENCE).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        response = httpx2.post(self.url + path, json=body, headers=self.headers, timeout=PATIENCE)
        if response.is_error:
            raise UserError(f"{self.file}: {response.json()['error']['message']}")
        return response.json()

    def require_template(self) -> None:
        if not self.has_template:
            raise UserError(f"{self.file} has no chat template, so it can complete texts, but not chat")

    @cached_property
    def has_template(self) -> bool:
        """Whether it is one of the file, or ChatML with a vocabulary that knows it."""
        prompt = self.post("/apply-template", {"messages": [{"role": "user", "content": "?"}]})["prompt"]
        return CONTROL not in prompt or len(self.post("/tokenize", {"content": CONTROL})["tokens"]) == 1

    @property
    def runtime(self) -> Runtime:
        """The same model, asked for probabilities instead of words; opened when it is."""
        if self.file.name != labels.WEIGHTS:
            raise UserError(f"{self.file} can't classify alone: name the folder that it was exported into")
        if self.opened is None:
            from stages.lib.runtimes.open import open_runtime

            self.opened = open_runtime(self.file.parent)
        return self.opened

    def count(self, messages: list[Message]) -> int:
        """Tokens of a conversation up to where the model begins to write."""
        return self.post("/v1/chat/completions/input_tokens", {"messages": messages})["input_tokens"]

    def write(self, messages: list[Message], temperature: float, max_tokens: int, say: Callable[[str], None]) -> None:
        """Hand the answer over piece by piece; an exception of `say`, or Ctrl-C, ends it in llama.cpp too."""
        import openai

        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)
        request: Any = {"messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        as_written = {"reasoning_format": "none"}  # thoughts are a part of the text
        try:
            with client.chat.completions.create(**request, model="", stream=True, extra_body=as_written) as answer:
                for chunk in answer:
                    say("".join(choice.delta.content or "" for choice in chunk.choices))
        except openai.APIError as error:
            raise UserError(f"{self.file}: {error.message}") from error
