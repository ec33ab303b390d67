"""What is checked and said of a model that somebody else trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import loading
from stages.lib.store.hub import External
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


def origin(external: External, folder: Path, gguf_file: str | None, licence: str | None) -> dict[str, str]:
    """Whose weights these are, as far as it is known; it stays in config.json, so that every export can say it."""
    said = told_by_file(folder / gguf_file, external.source) if gguf_file else told_by_card(folder, external.source)
    if external.revision:
        found = {"name": external.source, "repo_url": f"https://huggingface.co/{external.source}"}
    else:
        found = {"name": said.get("name") or Path(external.source).name.removesuffix(".gguf")}
    licence = licence or said.get("license")
    return found | {"license": licence} if licence else found


def told_by_file(file: Path, source: str) -> dict[str, str]:
    """Name and licence, as far as a GGUF tells them."""
    from gguf import GGUFReader

    with loading.opening(source):
        fields = GGUFReader(file).fields
    return {key: fields[f"general.{key}"].contents() for key in ("name", "license") if f"general.{key}" in fields}


def told_by_card(folder: Path, source: str) -> dict[str, str]:
    """The licence, if there is a model card and it names one, or several."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    card = folder / "README.md"
    try:
        licences = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (YAMLError, ValueError) as error:
        print(f"{source}: the header of its README.md is not read: {loading.first_line(error)}")
        return {}
    return {"license": licences if isinstance(licences, str) else ", ".join(licences)} if licences else {}


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
