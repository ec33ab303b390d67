"""One export per GGUF type of the shared model, written once a session."""

from pathlib import Path

import pytest
import torch

from stages.export import gguf
from stages.lib.store import dense, models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}


@pytest.fixture(scope="session")
def export_gguf(model_folder, tmp_path_factory):
    written: dict[str, Path] = {}

    def export(type: str) -> Path:
        if type not in written:
            written[type] = tmp_path_factory.mktemp(type)
            technique, tokenizer = gguf.GGUF(method="gguf", type=type, **PARENTS), models.load_tokenizer(model_folder)
            technique.write(dense.load(model_folder), tokenizer, written[type], torch.empty(0, 0))
        return written[type]

    return export


@pytest.fixture(scope="session")
def source_folder(tokenizer, tmp_path_factory):
    """A model whose norms are not all one and whose feed-forward width is not that of the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=2, head_dim=64,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.05, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("artefacts") / "model"
    models.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def adapted(tokenizer):
    """adapted(folder, target): the model of a folder as the align stage writes it, after LoRA."""
    from stages.lib.frame import files
    from stages.lib.store import adapters

    def adapt(folder: Path, target: Path) -> Path:
        model = adapters.wrap(models.load(folder), adapters.LoRA(rank=4), files.digest(folder))
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        adapters.save(model, target / adapters.FOLDER)
        models.write(adapters.merge(model, adapters.LoRA()), tokenizer, target)
        return target

    return adapt


@pytest.fixture(scope="session")
def packed(tokenizer):
    """packed(folder, target): the model of a folder as the quantize stage writes it, in int8."""
    from stages.quantize import int8
    from stages.quantize.parts import compressed

    def pack(folder: Path, target: Path) -> Path:
        with compressed.quiet():
            model = int8.Int8(method="int8", **PARENTS).quantize(models.load(folder), torch.empty(0, 0))
            compressed.round_rest(model, torch.float16)
            models.save(compressed.pack(model, torch.float16), tokenizer, target)
        return target

    return pack
