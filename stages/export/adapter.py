"""LoRA adapter: the few per cent of the weights that align trained, in peft's layout. Hu et al. 2021, arXiv:2106.09685.

W' = W + alpha / rank * B A for the layers that align chose; what is shipped are A and B, for those who have the base W.
Cost: one copy of a small file. Bytes and bits/weight are the adapter's: the base's are not counted. Shapes: W (O, I),
A (rank, I), B (O, rank).
The base is named by its sha256: a place in this house means nothing elsewhere.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.export import Export
from stages.lib.frame.params import Model
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import adapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Adapted(Model):
    needs = "lora"


class Adapter(Export):
    FORMAT = "LoRA adapter, without its base"
    RUN = """\
    peft.PeftModel.from_pretrained(base, "this folder")    # base: what was aligned, see the lineage
"""

    method: Literal["adapter"]
    model: Adapted

    def load(self, folder: Path) -> Any:
        return adapters.load(folder / adapters.FOLDER)

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        adapters.save(model, folder)
        adapters.publish(folder)
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def open(self, folder: Path) -> Transformers:
        return Transformers(folder)
