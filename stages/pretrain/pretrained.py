"""Somebody else's weights instead of training: a hub id, a local folder, or a GGUF file (dequantized).

With `training` they are trained further on the rows. Rows and tokenizer come from the tokenize technique of this name.
"""

from typing import Any, Literal

from torch import Tensor

from stages.lib import losses
from stages.lib.hub import External, fetch
from stages.pretrain import Pretraining


class Params(Pretraining):
    method: Literal["pretrained"]
    external: External


def build(tokenizer: Any, p: Params) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    folder, arguments = fetch(p.external)
    if "gguf_file" in arguments:
        arguments["quantization_config"] = GgufConfig(gguf_file=arguments["gguf_file"], dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True, **arguments)
    if (have := model.config.vocab_size) < len(tokenizer):
        raise SystemExit(f"{p.external.source} knows {have} tokens, the tokenizer of '{p.tokens}' has {len(tokenizer)}")
    return model


def loss(model: Any, ids_BT: Tensor) -> Tensor:
    return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
