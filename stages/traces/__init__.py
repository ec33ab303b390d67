"""Traces: what a teacher knows, written down once for every student.

In   model artefact (the teacher), problems (or another recording of distributions), tokens
Out  records: solutions as train.jsonl, or distributions as safetensors shards with about.json (stages/lib/store/traces.py);
     metrics: what was kept; of distributions bytes_per_token, kl_to_full, kl_of_code (nats/token, read back from what
     was written, if one teacher said it all); of an endpoint what was spent

A technique is one file here. It defines `Params` and `record(teacher, tokenizer, problems, rows, params)`, a stream of
records or of tensors, one a shard, that the stage writes as they come. Where the parent `problems` is a recording of
distributions, `problems` is its folder, of the same tokenizer and rows. The teacher is the model in transformers,
unless the technique opens another by `open_teacher(model folder, folder that outlives a kill, params)`.
"""

from stages.lib.frame.params import Parent, Variant


class Recording(Variant):
    """What every technique's variants share."""

    model: Parent
    problems: Parent
    tokens: Parent
    seed: int = 0
