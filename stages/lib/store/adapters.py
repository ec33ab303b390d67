"""Low-rank adapters: train a few per cent of the weights, then fold them into the model. arXiv:2106.09685, by peft.

An adapter is a folder in peft's own layout. Its adapter_config.json names the base it was trained on: inside the house
the folder, as dvc.yaml gave it, and in `revision` the folder's sha256; once it is published "sha256:..." alone, which
`load` looks for among the artefacts beside it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.store import folders, loading, models, nf4
from stages.lib.store.hub import External, fetch

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

FOLDER = "adapter"  # inside the folder of the model that was trained with it
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHA256 = "sha256:"
ALL = "all-linear"
EXPERTS = ("gate_proj", "up_proj", "down_proj")  # by these names peft means the matrices inside of fused experts


class LoRA(Params):
    """Adapters on every linear layer but the head, or on those of these names."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    rslora: bool = False  # alpha is divided by the root of the rank: high ranks learn as fast, arXiv:2312.03732
    dora: bool = False  # the length of every output's weights is learnt apart from their direction, arXiv:2402.09353
    nf4: bool = False  # beside weights in 4 bits, a quarter of the memory (QLoRA): arXiv:2305.14314, section 3
    targets: Literal["all-linear"] | list[str] = ALL


def wrap(model: "PreTrainedModel", p: LoRA | None, sha256: str | None = None) -> "PreTrainedModel | PeftModel":
    """The model itself, or with fresh adapters as its only trainable weights; `sha256` of the folder it came from."""
    if p is None:
        return model
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    known = linear_layers(model)
    names = sorted(set(known)) if p.targets == ALL else p.targets
    if wrong := [name for name in names if name not in known]:
        kind = f"this {model.config.model_type}"
        allowed = f"{ALL}, or some of {params.names(sorted(set(known)))}"
        raise UserError(f"params.yaml: lora.targets names {wrong[0]!r}, no linear layer of {kind}; allowed: {allowed}")
    if left_out := fused_experts(model):
        print(f"lora: fused experts ({left_out:,} weights) and {', '.join(EXPERTS)} get no adapters")
    config = LoraConfig(
        r=p.rank,
        lora_alpha=p.alpha,
        lora_dropout=p.dropout,
        use_rslora=p.rslora,
        use_dora=p.dora,
        target_modules=names,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores W transposed
    )
    if p.nf4:
        pack(model)
    return get_peft_model(model, config, revision=sha256)


def pack(model: Any) -> None:
    """Every linear layer but the head in 4 bits, in place."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear | Conv1D)]
    for name, layer in found:
        if layer is model.get_output_embeddings():
            continue
        if isinstance(layer, Conv1D) or layer.in_features % nf4.BLOCK:
            said = f"params.yaml: lora.nf4 wants linear layers of whole blocks of {nf4.BLOCK} inputs"
            raise UserError(f"{said}; {name} of this {model.config.model_type} is none")
        model.set_submodule(name, nf4.packed(layer.weight, layer.bias, double=True))
    model.is_loaded_in_4bit = True  # where peft looks


def linear_layers(model: Any) -> list[str]:
    """Last names of the layers that can be adapted. Not the head; nor the last matrix of a Mamba block, whose fused
    kernel reads the weight and never calls the layer; nor, beside fused experts, what peft takes for theirs."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    mamba = [name for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")]
    fused = {f"{name}.out_proj" for name in mamba}
    names = [name.split(".")[-1] for name, module in found.items() if module is not head and name not in fused]
    return [name for name in names if not (name in EXPERTS and fused_experts(model))]


def fused_experts(model: Any) -> int:
    """Weights in tensors that hold the matrices of many experts."""
    return sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)


def merge(model: "PreTrainedModel | PeftModel", p: LoRA | None) -> "PreTrainedModel":
    """The plain model, adapters added into its weights; weights in 4 bits come back as what the codes say."""
    if p is None:
        return model  # type: ignore[return-value]
    if p.nf4:
        learnt: Any = {name: w for name, w in model.named_parameters() if w.requires_grad}
        base: Any = model.unload()  # type: ignore[operator]
        nf4.unpack(base)
        base.is_loaded_in_4bit = False
        model = wrap(base, p.model_copy(update={"nf4": False}))
        model.load_state_dict(learnt, strict=False)
    return model.merge_and_unload()  # type: ignore[return-value]


def save(model: Any, folder: Path) -> None:
    """The adapter alone; the same weights give the same bytes."""
    model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form
    about = files.read_json(folder / CONFIG)
    about["target_modules"].sort()  # a set, in another order in every process
    files.write_json(folder / CONFIG, about)
    folders.finish(folder)


def publish(folder: Path) -> None:
    """Name the base by its content: its place in this house means nothing elsewhere."""
    about = files.read_json(folder / CONFIG)
    files.write_json(folder / CONFIG, about | {"base_model_name_or_path": SHA256 + about["revision"], "revision": None})


def load(folder: Path) -> "PeftModel":
    """The base that the adapter names, with the adapter beside its weights."""
    from peft import PeftConfig

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no adapter: {CONFIG} is missing; align writes one where `lora` is set")
    config = PeftConfig.from_pretrained(str(folder))
    return adapted(models.load(find_base(folder, config)), folder, folder, config)


def find_base(folder: Path, config: "PeftConfig") -> Path:
    name = str(config.base_model_name_or_path)
    if name.startswith(SHA256):
        for base in sorted(folder.absolute().parents[2].glob("*/*/model")):  # stage/variant/model, as this one
            if SHA256 + files.digest(base) == name:
                return base
        raise UserError(f"{folder} was trained on the model {name[:19]}..., which is no artefact beside it")
    if files.digest(base := Path(name)) != config.revision:
        raise UserError(f"{base} is not what {folder} was trained on: its sha256 is not {config.revision}")
    return base


def adapted(base: Any, folder: Path, source: object, config: "PeftConfig") -> "PeftModel":
    """The base with an adapter of which every weight found its place."""
    from peft import get_peft_model

    with loading.opening(source):
        config.base_model_name_or_path = base.name_or_path
        model: Any = get_peft_model(base, config)
        found = model.load_adapter(str(folder), "default")
    if lost := [*found.missing_keys, *found.unexpected_keys]:
        raise UserError(f"{source} is no adapter of its base: {loading.listed(lost)} have no place or no weights")
    return model.eval()


def merged(folder: Path, source: str, given: External | None, dtype: str) -> "PreTrainedModel":
    """Somebody else's adapter, added into its base: the given one, or the pinned one that it names."""
    from peft import PeftConfig

    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{source} is an adapter without {WEIGHTS}: pickled weights are never opened")
    if whole := sorted(file.name for file in folder.glob("model*.safetensors")):
        raise UserError(f"{source} holds both an adapter and a model ({whole[0]}): keep one of them in a folder")
    with loading.opening(source):
        config = PeftConfig.from_pretrained(str(folder))
    base = given or pinned_base(source, config)
    place, arguments = fetch(base)
    model: Any = adapted(loading.load(place, base.source, dtype, **arguments), folder, source, config)
    if not hasattr(model.base_model, "merge_and_unload"):
        raise UserError(f"{source} is a {config.peft_type}, which can't be merged into its base's weights")
    return model.merge_and_unload(safe_merge=True)


def pinned_base(source: str, config: "PeftConfig") -> External:
    name, revision = str(config.base_model_name_or_path), config.revision
    if not revision or len(revision) not in (40, 64):  # a commit, a sha256
        raise UserError(f"{source} is an adapter of {name!r}, of no fixed revision: name and pin it as `base`")
    with loading.opening(source):
        return External(source=name, **{"sha256" if Path(name).exists() else "revision": revision})
