"""A model of any other format, run by the runtime that it ships for; every token is handed over as it comes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, TextStreamer

from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import choose
from stages.lib.runtimes.open import open_runtime
from stages.lib.runtimes.stepwise import Stepwise
from stages.lib.runtimes.transformers import Transformers
from stages.lib.text import chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Local:
    def __init__(self, folder: Path):
        self.folder, self.runtime = folder, open_runtime(folder)
        self.tokenizer: PreTrainedTokenizerFast = self.runtime.tokenizer
        ours = self.runtime
        config: Any = (
            ours.model.config
            if isinstance(ours, Transformers)
            else AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
        self.context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.random = np.random.default_rng()

    def require_template(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.folder} has no chat template, so it can complete texts, but not chat")

    def count(self, messages: list[chat.Message]) -> int:
        """Tokens of a conversation up to where the model begins to write."""
        return len(chat.prompt_ids(self.tokenizer, messages))

    def write(
        self, messages: list[chat.Message], temperature: float, max_tokens: int, say: Callable[[str], None]
    ) -> None:
        """Hand the answer over word by word."""
        ids, stops = chat.prompt_ids(self.tokenizer, messages), chat.stops(self.tokenizer)
        words = Words(self.tokenizer, say)
        if isinstance(self.runtime, Transformers):
            model = self.runtime.model
            sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
            settings = {"max_new_tokens": max_tokens, "eos_token_id": stops or [-1], "do_sample": False} | sampling
            asked = torch.tensor([ids], device=model.device)
            model.generate(asked, attention_mask=torch.ones_like(asked), streamer=words, pad_token_id=0, **settings)
            return
        assert isinstance(self.runtime, Stepwise)

        def pick(logits_TV: np.ndarray) -> int:
            [token] = choose(logits_TV[-1:], temperature, self.random)
            if token not in stops:
                words.put(torch.tensor([token]))
            return token

        words.put(torch.tensor(ids))
        self.runtime.answer(ids, max_tokens, stops, pick)
        words.end()


class Words(TextStreamer):
    """transformers' way from tokens to whole words, without the prompt and control tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", say: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # pyright: ignore[reportArgumentType]
        self.say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.say(text)
