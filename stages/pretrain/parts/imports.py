"""What is checked and said of a model that somebody else trained."""

from typing import TYPE_CHECKING, Any

import torch

from stages.lib.frame.errors import UserError
from stages.lib.text import chat, templates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.inference_mode()
def require_sound(model: "PreTrainedModel", source: str) -> None:
    """Refuse what gives no numbers, and what looks at later tokens: encoders load as if they were decoders."""
    ids_BT = torch.arange(1, 17).repeat(2, 1)
    ids_BT[1, -1] = 0  # the two differ in the last token alone
    one_TV, other_TV = model(ids_BT, use_cache=False).logits.float()
    if not one_TV.isfinite().all():
        raise UserError(f"{source} computes no numbers in {model.dtype}: try the other dtype, or another file")
    if (one_TV[:-1] - other_TV[:-1]).abs().max() > 0.1 * one_TV.std():
        raise UserError(f"{source} looks at later tokens: this {model.config.model_type} is no causal language model")


def rows(model: Any) -> int:
    """Of the embedding: how many tokens it can tell apart."""
    return model.get_input_embeddings().weight.shape[0]


def summary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> str:
    """One line for a person who wants to see that it is the model they meant."""
    config: Any = model.config
    context = getattr(config, "max_position_embeddings", None)
    stops = " or ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in chat.stops(tokenizer))
    ours = [name for name in templates.NAMED if tokenizer.chat_template == templates.write(tokenizer, name)]
    return ", ".join(
        [
            f"{config.model_type} of {model.num_parameters():,} parameters",
            f"{rows(model):,} rows for {len(tokenizer):,} tokens",
            f"a head that is {'the embedding' if config.tie_word_embeddings else 'apart'}",
            f"chat template {f'Orchard {ours[0]}' if ours else 'of its tokenizer'}, answers end at {stops}",
            str(model.dtype).removeprefix("torch."),
            f"context {context:,}" if context else "context without end",
        ]
    )
