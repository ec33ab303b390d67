"""What a model's config says of its tokenizer."""

from typing import TYPE_CHECKING, Any

from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def vocabulary(tokenizer: "PreTrainedTokenizerFast", rows: int | None) -> dict[str, Any]:
    """`rows` of embedding; None: one for every token."""
    if rows is not None and rows < len(tokenizer):
        raise UserError(f"params.yaml: vocab_size is {rows:,}, but the tokenizer has {len(tokenizer):,} tokens")
    return {
        "vocab_size": rows or len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
