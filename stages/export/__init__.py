"""Export: a model artefact in, the same model in the file format of a runtime out.

In   model artefact (dense, pruned or quantized), token artefact (held-out rows)
Out  model: what the format needs, the tokenizer, README.md (model card), MANIFEST.json (sha256 of every file);
     metrics: kl (source || export), same_top (share of positions), loss_before (source's),
     loss_after (nats/token), parameters, bytes (of the model file), bits_per_weight (scales counted)

A technique is one file here. It defines `Params`, `load(folder) -> model` (`dense.load`: 32-bit floats;
`dense.stored`: as it is stored) and `write(model, tokenizer, folder, params)`, which writes that model into an
existing folder; if its params ask for calibration, the rows (N, T) come last. `NAME` and `RUN` are its lines in the
card. The stage reads the folder back with `open_runtime` and refuses what strays from its source by more than
`max_kl` or is larger than it.
`python -m apps.verify FOLDER` checks an export that went through other hands.
"""

from pydantic import PositiveFloat, PositiveInt

from stages.lib.frame.params import Parent, Variant


class Export(Variant):
    """What every technique's variants share."""

    model: Parent
    tokens: Parent
    rows: PositiveInt = 32  # held-out rows to compare on
    max_kl: PositiveFloat = 0.2  # nats/token; more is a wrong file, not a lossy one
