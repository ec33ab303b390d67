"""Eval: a model artefact in, what it can do and what it costs out.

In   model artefact (Hugging Face folder or GGUF), documents, problems (record artefacts, the held-out split)
Out  samples.json; metrics: parameters, bits_per_weight (scales counted), bytes (the weights file that ships), and
     those of every technique;
     timings: peak_memory_bytes (to load it and write the samples), and those of every technique

The techniques are what is measured. Each is one file here and defines `Params` with defaults, whether it is
`REPEATABLE`, and `score(runtime, data, params)`, numbers by name. What the same model answers alike on every run goes
to the metrics, a DVC output; what belongs to this machine goes to the timings; what is itself a dict, item by item, to
samples.json. A variant names no method, it is measured by all of them: the file's name is the key of its params in the
variant.

Relative figures (share of the teacher's accuracy, size ratio) need several models and are the report's:
`python -m stages.report`.
"""

from importlib import import_module
from typing import Any

from pydantic import create_model

from stages.lib.frame import params

TECHNIQUES = {name: import_module(f"{__name__}.{name}") for name in params.techniques("eval")}


class Evaluation(params.Params):
    """What a variant names besides the params of the techniques."""

    model: params.Parent
    documents: params.Parent
    problems: params.Parent


fields: Any = {name: (technique.Params, technique.Params()) for name, technique in TECHNIQUES.items()}
Params = create_model("Params", __base__=Evaluation, **fields)
