"""Chat templates for models that come without one: with the control tokens that their vocabulary already has."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
NAMED = {"chatml": CHATML, "plain": PLAIN}
NEEDS = {"chatml": ("<|im_start|>", "<|im_end|>"), "plain": ()}


def lacking(tokenizer: "PreTrainedTokenizerFast", name: str) -> list[str]:
    """The control tokens of a named template that the tokenizer does not know as such."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return [token for token in NEEDS[name] if token not in known]


def fitting(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The name of the one that is written with the tokens at hand."""
    return "plain" if lacking(tokenizer, "chatml") else "chatml"


def write(tokenizer: "PreTrainedTokenizerFast", name: str) -> str:
    """The template, behind BOS where the model's own texts begin with it."""
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + NAMED[name]
