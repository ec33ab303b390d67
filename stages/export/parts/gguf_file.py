"""What all GGUF files have in common: how a model becomes one of 32-bit floats, and how its matrices are rounded."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.export.parts import converter, gguf_families, gguf_vocabulary
from stages.export.parts.modelfile import modelfile
from stages.lib.text import labels

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

RUN = """\
    llama-cli -m model.gguf                            # llama.cpp
    ollama create orchard -f Modelfile && ollama run orchard
    python -m apps.chat --model model.gguf             # from an Orchard checkout
"""
# What llama.cpp computes in 32 bits: norms, biases, routers, convolutions, learnt positions
EXACT = re.compile(
    r"_norm\.weight|ffn_gate_inp|position_embd|ssm_conv1d|shortconv\.conv|time_mix_(first|w[12]|decay|lerp)|altup|"
    r"(?<!weight)$"
)


def write(model: Any, tokenizer: Any, target: Path) -> "tuple[GGUFReader, dict[str, list[str]]]":
    """The model as a file of 32-bit floats, which llama.cpp opens; what each weight of transformers is called there."""
    import gguf

    size = model.get_input_embeddings().weight.shape[0]
    vocabulary, task = gguf_vocabulary.read(tokenizer, size), labels.task_of(model.config)
    beside = {labels.GGUF: json.dumps(task._asdict(), ensure_ascii=False)} if task else {}
    names = converter.convert(model, vocabulary, about(model, tokenizer), beside, target)
    gguf_vocabulary.check(tokenizer, target)
    return gguf.GGUFReader(target), names


def about(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Name and licence, and the model that it was made from where that was somebody else's; GGUF's own keys."""
    base = dict(getattr(model.config, "origin", {}))
    own = {"name": name(model, tokenizer), "license": base.pop("license", None)}
    return own | {"base_models": [base]} if base else own


def name(model: Any, tokenizer: Any) -> str:
    """Family and size. llama.cpp strips spaces behind control tokens where it reads Phi-3, and nowhere else."""
    import gguf

    strips = any(token.rstrip for token in tokenizer.added_tokens_decoder.values())
    family = re.sub("ForCausalLM|LMHeadModel", "", type(model).__name__)
    family = re.sub(r"(?<=[a-z])(?=\d)", "-" if strips else " ", family)
    return f"{family} {gguf.size_label(model.num_parameters(), 0, 0, 0)}"


def write_beside(tokenizer: Any, config: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "Modelfile").write_text(modelfile(tokenizer, gguf_families.context(config)))


def widths(file: "GGUFReader") -> dict[str, int]:
    """The matrices that may be rounded, and how many weights their rows hold."""
    return {each.name: int(each.shape[0]) for each in file.tensors if not stays(each)}


def exact_bytes(file: "GGUFReader") -> int:
    """Of what is not rounded."""
    return sum(int(each.n_bytes) for each in file.tensors if stays(each))


def layers(names: Iterable[str]) -> int:
    """How many blocks there are, by the names of their matrices."""
    return 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blk."))


def stays(tensor: "ReaderTensor") -> bool:
    return len(tensor.shape) < 2 or bool(EXACT.search(tensor.name))


def quantize(
    source: "GGUFReader", target: Path, kind: str, types: Mapping[str, str], importance: Mapping[str, np.ndarray]
) -> None:
    """A file of `kind` from one of 32-bit floats: each matrix that `types` names in that ggml type.

    `importance` is what each column of a matrix weighs, (I,), or (E, I) of experts; a tensor at a time is in memory.
    """
    import gguf

    writer = gguf.GGUFWriter(target, source.fields["general.architecture"].contents())
    for field in source.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], element)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    chosen = [gguf.GGMLQuantizationType[types.get(each.name, "F32")] for each in source.tensors]
    for tensor, type in zip(source.tensors, chosen, strict=True):
        shape = gguf.quant_shape_to_byte_shape(tensor.data.shape, type)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, type in zip(source.tensors, chosen, strict=True):
        writer.write_tensor_data(rounded(tensor.data, type, importance.get(tensor.name)))
    writer.close()


def rounded(weight: np.ndarray, type: int, importance: np.ndarray | None) -> np.ndarray:
    """As llama.cpp rounds it, (..., bytes of a row) uint8."""
    from stages.lib.runtimes import libllama

    if importance is None or importance.ndim == 1:
        return libllama.quantize(weight, type, importance)
    return np.stack([libllama.quantize(*each) for each in zip(weight, [type] * len(weight), importance, strict=True)])


def form(weight_OI: np.ndarray, type: str, importance_I: np.ndarray | None) -> np.ndarray:
    """What a matrix is after it was rounded, as floats."""
    import gguf

    kind = gguf.GGMLQuantizationType[type]
    return gguf.dequantize(rounded(weight_OI, kind, importance_I), kind)
