"""A runtime as lm-evaluation-harness sees a model, and its tasks run on it. github.com/EleutherAI/lm-evaluation-harness

Prompts become tokens as in lm-eval's own `hf` model (tests hold the two equal): special tokens where the tokenizer
adds them, none where a text already begins with BOS. Imports lm-eval, an extra. Shapes: T = tokens, V = vocabulary.
"""

import os
from collections.abc import Iterator
from itertools import groupby
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import BaseLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import evaluator, utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import metric_registry  # pyright: ignore[reportMissingImports]
from lm_eval.defaults import DEFAULT_OTHER_SEED  # pyright: ignore[reportMissingImports]
from lm_eval.models import utils as generation  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from scipy.special import log_softmax

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import names
from stages.lib.runtimes.base import Ids, Runtime
from stages.lib.store.hub import go_online
from stages.lib.text import chat as chats

RESAMPLES = 1000  # of a bootstrap, where the standard error has no formula
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature")  # what a runtime can be asked for


def evaluate(
    runtime: Runtime, configs: list[dict[str, Any]], hub: list[str], limit: int | None, context: int, chat: bool
) -> dict[str, Any]:
    """lm-eval's results of these tasks, and of those of its own that `hub` names."""
    if chat and not runtime.tokenizer.chat_template:
        raise UserError("eval.harness.tasks.chat is true, but the model's tokenizer has no chat template")
    os.environ["DISABLE_MULTIPROC"] = "1"  # for its bootstrap lm-eval would fork a process that holds a model
    with TemporaryDirectory() as cache:  # a cached copy of data that changed would be found by its path
        loaded = load([with_cache(config, cache) for config in configs], hub)
        model = OnRuntime(runtime, context)
        results: Any = evaluator.evaluate(
            model, loaded, limit, bootstrap_iters=RESAMPLES, apply_chat_template=chat, fewshot_as_multiturn=chat
        )
        return results


def with_cache(config: dict[str, Any], folder: str) -> dict[str, Any]:
    return config | {"dataset_kwargs": config["dataset_kwargs"] | {"cache_dir": folder}}


def load(configs: list[dict[str, Any]], hub: list[str]) -> dict[str, Any]:
    """The tasks as lm-eval's objects, their templates in a sandbox: plain Jinja reaches any Python function."""
    sandbox = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= utils.env.filters
    utils.env = sandbox
    if hub:
        go_online()
    manager = TaskManager(include_defaults=bool(hub))
    if unknown := [name for name in hub if name not in manager.all_tasks]:
        raise UserError(f"eval.harness.tasks.hub: lm-eval has no task {names(unknown)}; `lm-eval ls tasks` tells all")
    for config in configs:
        check_metrics(config)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for spec in [*configs, *hub]:
        try:
            found = manager.load([spec])
        except Exception as error:  # lm-eval has no one base class for what can be wrong with a task
            name = spec if isinstance(spec, str) else spec["task"]
            raise UserError(f"task {name}: lm-eval can't load it: {type(error).__name__}: {error}") from error
        for kind, entries in loaded.items():
            entries |= found.get(kind, {})
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"eval.harness.tasks.hub: {name} runs what the model writes, or shows it pictures")
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return loaded


def check_metrics(config: dict[str, Any]) -> None:
    """Refuse a metric that lm-eval doesn't have: it would load a program of that name, from the hub or a folder."""
    wanted = [entry["metric"] for entry in config.get("metric_list", [])]
    if unknown := [metric for metric in wanted if metric not in metric_registry]:
        raise UserError(f"task {config['task']}: metric {names(unknown)} is none of: {names(sorted(metric_registry))}")


class OnRuntime(TemplateLM):
    """lm-eval's model: texts in; log-likelihoods in nats, or texts, out."""

    def __init__(self, runtime: Runtime, context: int):
        super().__init__()
        self.runtime, self.tokenizer, self.context = runtime, runtime.tokenizer, context

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return chats.start(self.tokenizer)[0]

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Ids:
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As text; without a generation prompt the last turn is the beginning of an answer."""
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                strftime_now=chats.DAY.strftime,
            )
        except TemplateError as error:
            said = names(turn["role"] for turn in chat_history)
            raise UserError(f"eval.harness.tasks.chat: the chat template can't write {said}: {error}") from error

    def _loglikelihood_tokens(self, requests: list[tuple[Any, Ids, Ids]], **_: Any) -> list[tuple[float, bool]]:
        """Of every (_, prompt, answer) the nats of the answer, and whether it is what the model writes greedily."""
        return [pair for ids, group in groupby(requests, self.input_ids) for pair in self.read(ids, list(group))]

    def input_ids(self, request: tuple[Any, Ids, Ids]) -> Ids:
        """What the model reads: all but the answer's last token; too long, its end. One for all answers of a token."""
        _, prompt, answer = request
        if not 0 < len(answer) <= self.context:
            raise UserError(f"eval.harness: an answer has {len(answer)} tokens; 1 to `context`, {self.context}, can be")
        return (prompt + answer)[-self.context - 1 : -1]

    def read(self, ids: Ids, requests: list[tuple[Any, Ids, Ids]]) -> Iterator[tuple[float, bool]]:
        logits_TV = self.runtime.logits(ids)
        for _, _, answer in requests:
            last_TV = log_softmax(logits_TV[-len(answer) :].astype(np.float64), axis=-1)
            nats = last_TV[np.arange(len(answer)), answer].sum()
            yield float(nats), last_TV.argmax(-1).tolist() == answer

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts: each token counts once, and sees as much of the text before it as the context holds."""
        return [self.text_nats(self.tok_encode(request.args[0])) for request in requests]

    def text_nats(self, ids: Ids) -> float:
        windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.context, context_len=1)
        disjoint = [(None, *utils.make_disjoint_window(window)) for window in windows]
        return sum(nats for nats, _ in self._loglikelihood_tokens(disjoint))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to one of the task's stops and without it."""
        asked = [(request.args[0], wanted(request.args[1])) for request in requests]
        return [
            answer
            for kwargs, group in groupby(asked, lambda pair: pair[1])
            for answer in self.write([prompt for prompt, _ in group], **kwargs)
        ]

    def write(self, prompts: list[str], until: list[str], max_gen_toks: int, temperature: float) -> list[str]:
        if (room := self.context - max_gen_toks) <= 0:
            raise UserError(f"eval.harness.tasks.context is {self.context}; a task's answers take {max_gen_toks}")
        coded = [self.tokenizer.encode(text, add_special_tokens=False) for text in until]
        stops = {*chats.stops(self.tokenizer), *(ids[0] for ids in coded if len(ids) == 1)}  # others are cut off below
        ids = [self.tok_encode(prompt)[-room:] for prompt in prompts]
        answers = self.runtime.generate(ids, max_gen_toks, stops, temperature)
        texts = [self.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        return [generation.postprocess_generated_text(text, until, None) for text in texts]


def wanted(given: dict[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs, as far as runtimes know them; greedy unless it samples."""
    kwargs: dict[str, Any] = {**generation.normalize_gen_kwargs(given)}
    sampled = kwargs.pop("do_sample")
    if sampled and (unknown := [key for key in kwargs if key not in GENERATION]):
        raise UserError(f"eval.harness: a task samples with {names(unknown)}; there are: {names(GENERATION)}")
    temperature = kwargs.get("temperature", 0.0) if sampled else 0.0
    return {"until": kwargs["until"], "max_gen_toks": kwargs["max_gen_toks"], "temperature": temperature}
