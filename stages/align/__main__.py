"""Align, one variant: base model + problems + examples -> model that answers. See stages/align/__init__.py."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from stages.align import SCAFFOLD, Alignment, Given, Reference
from stages.align.parts import pairs, verdicts
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.nets import packed
from stages.lib.store import adapters, models, records
from stages.lib.text import labels, packing
from stages.lib.training import distributed, loop

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def main(
    variant: str,
    *,
    model: Path,
    problems: Path,
    examples: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    reward_model: Path | None = None,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    arguments = dict(locals())
    technique = params.load(Alignment, variant, params_file)
    inputs = [model, problems, examples, *([reward_model] if reward_model else [])]
    with tracking.run("align", variant, technique, out, code, inputs) as run:
        distributed.start(main, arguments, technique.training)
        net, tokenizer, lora = models.load(model), models.load_tokenizer(model), technique.lora
        unseen = records.load(problems, "held_out")
        rows = packing.batches(tokenizer, unseen, technique.context, technique.held_out_rows, seed=0)(0)
        preferences = records.load(examples, "held_out") if (examples / "held_out.jsonl").is_file() else []
        train_problems, train_examples = (records.load(folder, "train") for folder in (problems, examples))

        before = None if lora else models.load(model)

        torch.manual_seed(technique.training.seed)
        policy = cast("PreTrainedModel", adapters.wrap(net, lora, run.digests[model]))  # with lora it wraps that
        reference = unchanged(before) if before else adapters_off(cast("PeftModel", policy))
        scaffold = technique.scaffold(policy)
        if scaffold:
            policy.add_module(SCAFFOLD, scaffold)
        scorer = asked(reward_model, tokenizer) if reward_model else None
        given = Given(tokenizer, train_problems, train_examples, policy, scorer, checkpoints)
        run.timings |= loop.fit(
            policy,
            technique.batches(given),
            lambda batch: technique.loss(policy, reference, batch),
            technique.training,
            run.curve,
            run.place(checkpoints, technique),
            technique.watch,
            technique.cycle(),
            technique.terms,
        )
        if scaffold:
            delattr(policy, SCAFFOLD)

        with files.writing(out / "model") as folder:
            if lora:
                adapters.save(policy, folder / adapters.FOLDER)  # before it is merged
            net, before = adapters.merge(policy, lora), before or models.load(model)
            run.metrics |= compare(before, net, loop.to_device(rows, net.device))
            if preferences and set(pairs.SIDES) <= preferences[0].keys():
                run.metrics |= pairs.compare(before, net, pairs.encode(tokenizer, preferences, technique.context))
            elif preferences and "liked" in preferences[0]:
                run.metrics |= verdicts.compare(before, net, verdicts.encode(tokenizer, preferences, technique.context))
            run.metrics |= technique.compare(before, net, tokenizer, preferences)
            labels.keep(net.config, [*train_problems, *train_examples])
            models.write(net, tokenizer, folder)


def asked(reward_model: Path, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A model that scores what the policy writes, and so reads the same tokens."""
    if models.load_tokenizer(reward_model).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{reward_model} has another vocabulary than the model that it is to score")
    return models.load(reward_model)


def unchanged(model: "PreTrainedModel") -> Reference:
    """A second model, which nobody trains."""
    return lambda: nullcontext(model)


def adapters_off(policy: "PeftModel") -> Reference:
    """The policy itself without what its adapters, and only they, have learnt."""

    @contextmanager
    def reference() -> Iterator["PreTrainedModel"]:
        policy.eval()
        with policy.disable_adapter():
            yield cast("PreTrainedModel", policy)
        policy.train()

    return reference


@torch.no_grad()
def compare(before: "PreTrainedModel", after: "PreTrainedModel", held_out: packing.Batch) -> dict[str, float]:
    """Reply loss of both models and how far the second went from the first, nats/token on reply tokens."""
    p_NV, q_NV = (packed.logits(model, held_out)[0].log_softmax(-1) for model in (before, after))
    return {
        "reply_loss_before": packed.loss(before, held_out).item(),
        "reply_loss_after": packed.loss(after, held_out).item(),
        "kl_reference": (q_NV.exp() * (q_NV - p_NV)).sum(-1).mean().item(),
    }


if __name__ == "__main__":
    command(main)
