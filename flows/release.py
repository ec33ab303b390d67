"""A model that leaves the house: its files, its card and what this machine measured, an SBOM of the environment that
made it, a manifest, and a signature.

python -m flows.release                      every export that an eval variant measures
python -m flows.release export/gguf-q8_0     these

Writes releases/NAME/model. Speed and energy are numbers of one machine, and no two signatures are alike, so neither
may lie in a DVC output: they join the export here. ORCHARD_SIGNING_KEY names the private key; without it nothing is
signed. The tool that writes the SBOM (CycloneDX) comes with `make release`.
"""

import shutil
from pathlib import Path
from typing import Any

from flows import audit
from flows.promote import ARTIFACTS, evaluated
from flows.versions import RELEASES
from stages.lib.frame import files, gates, params
from stages.lib.frame.errors import UserError, command
from stages.lib.store import manifest, signature

SBOM = RELEASES / "sbom.json"
ROWS = {  # what is measured of one machine -> how the card says it
    "prefill_tokens_per_second": ("prefill, one stream", "{:,.0f} tokens/s"),
    "decode_tokens_per_second": ("decode, one stream", "{:,.0f} tokens/s"),
    "peak_memory_bytes": ("memory at its peak", "{:,} bytes"),
    "joules_per_token": ("energy", "{:.4f} J/token"),
}


def release(model: str, tree: dict[str, Any]) -> Path:
    name = gates.measured(tree).get(model)
    if name is None:
        raise UserError(f"{params.PARAMS_FILE}: no eval variant measures {model}, so its card would promise nothing")
    source, target = ARTIFACTS / model / "model", RELEASES / model.split("/", 1)[1] / "model"
    if found := manifest.problems(source):
        raise UserError("\n".join(f"{source}: {problem}; run dvc repro" for problem in found))
    card = ARTIFACTS / "report" / "cards" / f"{target.parent.name}.md"
    if not card.is_file():
        raise UserError(f"{card} is missing: run dvc repro report")
    text = card.read_text(encoding="utf-8") + table(tree, name)
    with files.writing(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if SBOM.is_file():
            shutil.copy(SBOM, folder)
        manifest.write(folder)
        if key := signature.configured():
            signature.sign(folder, key)
    return target


def table(tree: dict[str, Any], name: str) -> str:
    timings = evaluated(tree, name, "timings.json")
    rows = [f"| {label} | {shape.format(timings[key])} |" for key, (label, shape) in ROWS.items() if key in timings]
    metered = "measured" if timings.get("energy_measured") else "estimated from the load of the CPU"
    notes = f"Speed and memory are of the machine that released it; energy is {metered} (codecarbon)."
    return "\n".join(["", "## Measured on one machine", "", "| | |", "|---|---|", *rows, "", notes, ""])


def main(*models: str) -> None:
    tree = params.read()
    params.check(tree)
    files.remove(SBOM)
    if not audit.write_sbom(SBOM):
        print("without an SBOM: make release installs what writes it")
    for model in models or gates.measured(tree):
        target = release(model, tree)
        signed = "signed" if (target / manifest.SIGNATURE).exists() else f"not signed: {signature.KEY} is not set"
        print(f"{target}: {len(manifest.read(target))} files, {signed}")


if __name__ == "__main__":
    command(main)
