"""Model folders that the tools of others read as they are meant.

transformers 5 writes names of its own: `dtype`, `rope_parameters`, the tokenizer class TokenizersBackend. Whoever reads
with version 4 takes defaults instead, without a word, and a model says something else there. So the old names are
written beside the new ones, and both versions must give the same logits (tests/lib/test_folders.py).
"""

from pathlib import Path
from typing import Any

from stages.lib.frame import files

LARGEST = 65504.0  # of a 16-bit float: for a step in time as good as infinity, for which JSON has no number
MIXERS = {"linear_attention": "mamba", "full_attention": "attention"}


def finish(folder: Path) -> None:
    """Put the old names into what was written, and let others than its writer read it."""
    for name, change in {"config.json": config, "tokenizer_config.json": tokenizer}.items():
        if (folder / name).is_file():
            files.write_json(folder / name, change(files.read_json(folder / name)))
    if (template := folder / "chat_template.jinja").is_file():  # transformers.js looks among the settings alone
        settings = folder / "tokenizer_config.json"
        files.write_json(settings, files.read_json(settings) | {"chat_template": template.read_text(encoding="utf-8")})
    for file in (file for file in folder.rglob("*") if file.is_file()):
        file.chmod(0o644)  # weights are written as temporary files, which are private


def config(about: dict[str, Any]) -> dict[str, Any]:
    """config.json of transformers 5, which version 4 understands too."""
    about = {name: finite(value) for name, value in about.items()}
    if "dtype" in about:
        about["torch_dtype"] = about["dtype"]
    if rope := about.get("rope_parameters"):
        about |= old_rope(rope)
        if about["model_type"] == "gpt_neox":
            about |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    if about["model_type"] == "qwen3_moe":
        about["num_experts"] = about["num_local_experts"]
    if about["model_type"] == "granitemoehybrid":
        about["layer_types"] = [MIXERS.get(kind, kind) for kind in about["layer_types"]]
    return about


def finite(value: Any) -> Any:
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return {"Infinity": LARGEST, "-Infinity": -LARGEST}[value["__float__"]]
    return value


def old_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions in the names of version 4; `rope` is of all layers, or one for each kind of them."""
    if "full_attention" in rope:
        local = rope["sliding_attention"]["rope_theta"]
        return old_rope(rope["full_attention"]) | {"rope_local_base_freq": local}
    about = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    stretched = {name: value for name, value in rope.items() if name not in about}
    if rope["rope_type"] == "longrope":  # whose three fields are all that version 4 allows
        stretched = {"type": "longrope", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    about["rope_scaling"] = None if rope["rope_type"] == "default" else stretched
    return about


def tokenizer(about: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json that leaves everything to tokenizer.json, as it is."""
    about = {name: value for name, value in about.items() if name not in ("backend", "is_local", "local_files_only")}
    if isinstance(more := about.pop("extra_special_tokens", None), list):
        about["additional_special_tokens"] = more
    return about | {"tokenizer_class": "PreTrainedTokenizerFast"}
