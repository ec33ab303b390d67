"""A parameter that changes nothing is a lie: every field of every technique changes what its stage writes.

Each stage runs as dvc.yaml says, in this process, on models of some ten thousand weights (parameters.yaml). What counts
as written are the outputs and metrics that DVC keeps, so that a field may act on the artefact or on what is measured.
"""

import copy
import hashlib
import json
import lzma
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import cyclopts
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from stages.lib.frame import code, files, params
from stages.lib.frame.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
TREE = YAML(typ="safe").load(Path(__file__).with_name("parameters.yaml"))
ORDER = (
    "data",
    "tokenize",
    "pretrain",
    "align",
    "quantize",
    "export",
    "traces",
    "endpoints",
    "prune",
    "distill",
    "eval",
)
LATER = {"align/process_reward": "traces"}  # variants that learn from what a later section makes
ONE_LOOP = ("pretrain/teacher", "align/sft", "align/dpo", "distill/solutions", "prune/lottery")  # each calls it itself
MORE = ("align/lora", "distill/logits")  # variants of a technique that had one already, for fields which need them
REPEATED = ("technique", "format")  # keys of JSON files that name parameters
Written = dict[tuple[str, str], dict[str, str]]

# What a field becomes where its type alone doesn't tell. Keys are ends of "section/variant.field"; the longest counts.
OTHER: dict[str, Any] = {
    "data/corpus.source": "more",
    "data/problems.source": "stages/data/parts/clean.py",  # without a function for any family: answers alone
    "chats.source": "said-more",
    "preferences.source": "said-more",
    "extract.source": "said-more",
    "classify.source": "said-more",
    ".hub": {"revision": "0" * 40},
    "classify.text_field": "question",
    "classify.label_field": "kind",
    "classify.names": {"good": "fine"},
    "classify.labels": ["good", "bad"],
    "extract.text_field": "question",
    "extract.template": "{text}?",
    "classify.template": "{text}?",
    ".fields": ["answer"],
    ".prompt_field": "question",
    ".reply_field": "answer",
    ".pattern_field": "pattern",
    "instructions.source": "artifacts/data/more-corpus/records",
    "pairs.source": "artifacts/data/more-problems/records",
    ".families": {"chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}},
    ".licence": "another",
    ".text_field": "body",
    ".min_records": 10_000,
    ".min_characters": 0,
    ".split_characters": 500,
    ".documents": "data/more-corpus",
    "bits_per_byte.documents": 2,
    ".problems": "data/more-problems",
    "accuracy.records": "data/more-problems",
    ".records": "data/more-corpus",
    ".external.source": "given/other",
    ".external.sha256": "0" * 64,
    ".sample_bytes": 20_000,
    ".train_tokens": 8192,
    ".held_out_tokens": 2048,
    ".hidden": 128,
    "width.hidden": 32,
    ".ffn": 64,
    "width.heads": 2,
    "width.kv_heads": 1,
    "decoder.heads": 2,
    "teacher.heads": 2,
    "teacher.kv_heads": 1,
    ".head_dim": 64,
    ".groups": 2,
    ".shuffle": 1,
    ".tokens": "tokenize/same",
    ".model": "pretrain/other",
    ".teacher": "pretrain/other",
    "gguf.model": "pretrain/wider",
    "gguf_mixed.model": "pretrain/wider",
    "adapter.model": "align/more-lora",
    "depth.model": "pretrain/deeper",
    "multi_teacher.model": "pretrain/teacher",
    "cross_tokenizer.model": "pretrain/foreign-other",
    "state-space.layers": 2,
    "compressed.model": "quantize/rtn",
    "bitnet.model": "pretrain/ternary-other",
    "llama_cpp.model": "export/wider-gguf",
    "foreign.tokens": "tokenize/bpe",
    ".examples": 3,
    "sft.examples": "data/problems",
    "lora.examples": "data/problems",
    **{f"{name}.examples": "data/more-pairs" for name in ("dpo", "orpo", "simpo", "kto", "reward")},
    **{
        f"{name}.lora": {"rank": 2, "alpha": 4}
        for name in ("sft", "dpo", "orpo", "simpo", "kto", "reinforce", "grpo", "ppo", "reward", "process_reward")
    },
    **{
        f"{name}.model": "align/more-speaks" for name in ("reinforce", "grpo", "ppo", "traces/rollouts", "traces/steps")
    },
    ".group": 2,
    "traces/rollouts.batch_size": 16,
    "rewarded.source": "traces/more-rollouts",
    "traces/steps.source": "traces/more-rollouts",
    "traces/steps.max_new_tokens": 1,
    ".rewards.model": 0.5,
    ".rewards.judge": 0.5,
    "kto.liked_share": 0.01,
    "process_reward.examples": "traces/more-steps",
    ".clip_low": 1e-6,
    "ppo.clip": 1e-6,
    ".clip_high": 1e-6,
    ".lora.dropout": 0.5,
    ".lora.targets": ["q_proj"],
    ".chat_template": "plain",
    "pretrain/teacher.vocab_size": 640,
    "state-space.vocab_size": 640,
    "given.base": {"source": "given/other"},
    ".training.steps": 3,
    ".training.batch_size": 8,
    ".training.accumulation": 2,
    ".training.clip": 0.01,
    ".training.decay": 0.9,
    ".training.lr_floor": 0.5,
    ".training.warmup": 0.9,
    ".training.weight_decay": 30.0,
    ".training.precision": "bfloat16",
    ".training.fake_quantize": {"weights": "int4", "group_size": 32},
    ".traces": "data/more-problems",
    "distill/logits.traces": "traces/fewer-logits",
    "distill/logits.teacher": "pretrain/other",
    "traces/labels.precision": "bfloat16",
    "traces/labels.source": "data/more-classify",
    "distill/labels.traces": "data/classify",
    "solutions.context": 48,
    **{f"{name}.context": 48 for name in ("dpo", "orpo", "simpo", "kto", "reward", "process_reward")},
    "cross_tokenizer.context": 52,
    ".context": 56,
    "tokenize/bpe.context": 32,
    "tokenize/unigram.context": 32,
    "tokenize/same.context": 32,
    "decoder.context": 256,
    "teacher.context": 256,
    "bits_per_byte.context": 16,
    ".max_kl": 1e-12,
    ".pattern": "2of4",
    ".measured_rows": 1,
    ".on_policy": 0.0,
    ".share": 1.0,
    ".prompt_words": 3,
    ".principles": ["Be kind."],
    "constitution.count": 4,
    ".preference_loss": "hinge",
    ".warm_up": 0.5,
    ".top_k": 4,
    ".label_smoothing": 0.3,
    "multi_teacher.source": "traces/other-logits",
    "logits.source": "tokenize/same",
    ".source": "data/more-problems",
    ".choose": "self_consistency",
    ".text_rows": 1,
    ".layers": 1,
    "depth.layers": 2,
    "hidden.layers": [[1, 1]],
    "task_specific.layers": [[1, 1]],
    "hints.layers": [[1, 1]],
    "hints.first": 0.9,
    ".calibration": {"rows": 2},
    ".calibration.rows": 2,
    "mixed.model": "pretrain/deeper",
    "vocabulary.count": 40,
    "vocabulary.size": 320,
    "vocabulary.multiple": 50,
    ".sparsity": 0.25,
    ".types": ["Q4_K", "Q6_K", "Q8_0"],
    ".widths": [2, 8],
    ".bits": 3,
    "mixed.bits": 6.0,
    "gguf_mixed.bits": 8.0,
    ".group_size": 32,
    ".dtype": "float32",
    "gguf.type": "F16",
    ".training": {"steps": 1, "batch_size": 2, "precision": "float32"},
    ".name": "another",
    ".evolve": 1,
    ".revision": "a commit",
}
# Fields that change nothing DVC keeps, and why that is right. Keys are ends as above.
WITHOUT = {
    ".method": "it is another technique",
    ".training.devices": "more processes sum in another order at most; tests/test_devices.py",
    ".training.parallel": "the same",
    ".training.checkpoint_activations": "the same numbers in less memory; tests/lib/test_distributed.py",
    ".training.compile": "the same numbers but for rounding; the same",
    ".training.checkpoint_seconds": "how often a training is saved: a resumed one ends in the same weights",
    ".concurrency": "how fast an endpoint is asked",
    ".requests_per_second": "how fast an endpoint is asked",
    ".retries": "how long an endpoint that fails is waited for; tests/traces/test_endpoint.py counts them",
    ".timeout": "the same",
    "speed.records": "speed belongs to this machine; tests/eval/test_speed.py counts tokens",
    "speed.prompt_tokens": "the same",
    "speed.new_tokens": "the same",
    "speed.repeats": "the same",
    "speed.energy_seconds": "the same",
    "teacher.training.keep_zeros": "weights that were just drawn hold no zeros",
    "lottery.training.keep_zeros": "a ticket keeps its zeros, whatever is asked",
    "depth.calibration.rows": "they may choose the same blocks, and do; tests/prune/test_depth.py has the scores",
    "depth.calibration.seed": "the same",
    "given.dtype": "the given model is stored in 32 bits; tests/lib/test_loading.py has others",
    "rewarded.batch_size": "rows that are read at a time",
    "rewarded.context": "longer replies are refused; tests/traces/test_rewarded.py",
    "traces/labels.batch_size": "rows that are read at a time",
    "solutions.attempts": "counts where a reply is wrong or empty; tests/traces/test_techniques.py",
    "llama_cpp.attempts": "the same",
    "endpoint.attempts": "the same",
    "reinforce.examples": "it learns from its own replies",
    "grpo.examples": "the same",
    "ppo.examples": "the same",
    ".rewards.short": "right replies fill their room here; tests/lib/test_rewards.py has shorter ones",
    ".forecast": "tried before the training, or refused; tests/align/test_online.py",
    ".patience": "ends a training; the same",
    "chats.tools": "no row here has any; tests/data/test_chats.py has",
    "preferences.tools": "the same",
    ".reward_model": "stands under `rlhf`; tests/align/test_stage.py",
    ".judge": "an endpoint; the same",
    "compressed.max_kl": "a copy never strays",
    "onnx.max_kl": "a graph in the same 32-bit floats strays by nothing that can be measured",
    "adapter.max_kl": "a copy never strays",
}
# Fields whose other value the stage must refuse, with a word of the message.
REFUSED = {
    ".min_records": "min_records",
    ".hub": "hub",
    "chats.scorer": "is no number",
    ".external.source": "sha256",
    "given.base": "sha256",
    ".external.sha256": "sha256",
    ".external.revision": "revision",
    ".max_kl": "max_kl",
    ".rewards.model": "reward model|reward_model",
    ".rewards.judge": "judge",
    "multi_teacher.temperature": "temperature",
    "distill/logits.teacher": "recorded with teacher",
    "distill/logits.tokens": "recorded with tokens",
    "distill/logits.examples": "examples",
    "distill/logits.text_rows": "text_rows",
    "distill/labels.text_rows": "text_rows",
    "distill/logits.context": "context",
    "distill/logits.temperature": "temperature",
    "cross_tokenizer.tokens": "vocabularies differ",
    "cross_tokenizer.text_rows": "text_rows",
    "task_specific.text_rows": "text_rows",
}
# What else must be so before a field can do something: on both sides of the comparison.
WITH: dict[str, dict[str, Any]] = {
    ".training.decay": {"training.schedule": "wsd", "training.steps": 4},
    ".training.keep_zeros": {"model": "prune/magnitude"},
    ".label_smoothing": {"preference_loss": "robust", "label_smoothing": 0.1},
    "gguf.calibration": {"type": "Q4_K_M"},
    ".prompt_words": {"evolve": 1},
    **{f"grpo.{name}": {"updates": 2} for name in ("ratio", "clip", "clip_low", "clip_high")},
    "ppo.clip": {"updates": 2},
    ".kl_over": {"kl": 1.0},
    "on_policy.text_rows": {"on_policy": 0.0, "max_new_tokens": 64},
    "on_policy.context": {"on_policy": 0.5},
    "on_policy.cut_off": {"model": "align/speaks", "max_new_tokens": 12, "training.batch_size": 16},
    "on_policy.temperature": {"on_policy": 1.0},
    "on_policy.max_new_tokens": {"on_policy": 1.0},
}
# What must change together with a field.
TOGETHER: dict[str, dict[str, Any]] = {
    ".pattern": {"sparsity": None},
    ".prompt_field": {"reply_field": "completion"},
    ".reply_field": {"prompt_field": "prompt"},
    "width.kv_heads": {"heads": 2},
    "on_policy.on_policy": {"max_new_tokens": 64},
    "gguf.fallback": {"type": "Q4_K_M", "model": "pretrain/student"},
}


def longest(table: dict[str, Any], key: str) -> str | None:
    return max((end for end in table if key.endswith(end)), key=len, default=None)


def fields(value: BaseModel, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, annotation, present value) of all fields, those of nested params too where they are given."""
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from fields(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", field.annotation, inner


def variants() -> Iterator[tuple[str, str, params.Technique]]:
    for section in ORDER:
        stage = params.SECTIONS.get(section, section)
        every = [f"{section}/{variant}" for variant in params.variants({section: TREE[section]}, stage)]
        later = [name for name, after in LATER.items() if after == section]
        for name in [*(name for name in every if name not in LATER), *later]:
            here, variant = name.split("/")
            yield here, variant, params.technique(params.SECTIONS.get(here, here), variant, TREE[here][variant])


def cases() -> Iterator[tuple[str, str, str]]:
    """Every field of the first variant of every technique; those of the training where a stage's own loop is meant."""
    shown = set()
    for section, variant, technique in variants():
        name = f"{section}/{variant}"
        if type(technique) in shown and name not in MORE:
            continue
        shown.add(type(technique))
        for field, kind, _ in fields(technique):
            left_out = kind is NoneType or longest(WITHOUT, f"{name}.{field}")
            if not left_out and (not field.startswith("training.") or name in ONE_LOOP):
                yield section, variant, field


def other(section: str, variant: str, name: str) -> Any:
    """Another value that the field may have."""
    if end := longest(OTHER, f"{section}/{variant}.{name}"):
        return OTHER[end]
    technique = params.technique(params.SECTIONS.get(section, section), variant, TREE[section][variant])
    annotation, value = next((kind, value) for field, kind, value in fields(technique) if field == name)
    choices = [annotation, *get_args(annotation)]
    if literal := next((kind for kind in choices if get_origin(kind) is Literal), None):
        return next(choice for choice in get_args(literal) if choice != value)
    if bool in choices:
        return not value
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, int):
        return value + 1
    raise AssertionError(f"say in OTHER what {section}/{variant}.{name} may become; it is {value!r}")


class Project:
    """A folder in which stages run one by one, as dvc.yaml says; what they wrote is told by hashes."""

    def __init__(self, folder: Path):
        self.folder, self.tree = folder, copy.deepcopy(TREE)
        (folder / "stages").symlink_to(ROOT / "stages")
        with lzma.open(ROOT / "stages/data/corpus/moby-dick.jsonl.xz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(100), strict=False)]
        for name, part in {"texts": rows[:50], "more": rows[50:]}.items():
            texts = [{"id": row["id"], "text": row["text"][:1200], "body": row["text"][300:1500]} for row in part]
            texts.append({"id": "short", "text": f"A line of {name}.", "body": "A line."})
            (folder / name).mkdir()
            (folder / name / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
            (folder / name / "b.txt").write_text("\n\n".join(row["text"][1500:3000] for row in part[:5]))
            keys = ("prompt", "completion", "question", "answer", "chosen", "rejected")
            said = [{key: row["text"][40 * n : 40 * n + 40] for n, key in enumerate(keys)} for row in part]
            marks = ({"label": "good", "kind": "x"}, {"label": "bad", "kind": "y"}, {"label": "good", "kind": "y"})
            said = [row | {"pattern": "whale"} | marks[n % 3] for n, row in enumerate(said)]
            (folder / f"said-{name}").mkdir()
            (folder / f"said-{name}/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        code.write(folder / "artifacts/code")

    def give(self, name: str, made: str, section: str, variant: str) -> None:
        """Something of ours as if it came from outside, pinned by its hash; beside it another one."""
        for copied in (name, "other"):
            shutil.copytree(self.folder / "artifacts" / made, self.folder / "given" / copied, dirs_exist_ok=True)
        (self.folder / "given/other/README.md").write_text("another")
        pinned = {"source": f"given/{name}", "sha256": files.digest(self.folder / "given" / name)}
        self.tree[section][variant]["external"] = pinned

    def changed(self, section: str, variant: str, entry: Any) -> dict[str, str]:
        """The same as `run`; but what the variant wrote before stays, for those that read it."""
        stage = params.SECTIONS.get(section, section)
        written = self.folder / "artifacts" / stage / (variant if section != "eval" else "teacher")
        shutil.copytree(written, self.folder / "kept")
        try:
            return self.run(section, variant, entry)
        finally:
            shutil.rmtree(written)
            (self.folder / "kept").rename(written)

    def run(self, section: str, variant: str, entry: Any) -> dict[str, str]:
        """Hashes of the outputs and metrics of one variant with this entry."""
        tree = copy.deepcopy(self.tree)
        tree[section][variant] = entry
        YAML().dump(tree, self.folder / "params.yaml")
        measured = section == "eval"
        key = next(iter(tree["eval"]["models"])) if measured else variant
        names = {"key": key, "item": tree["eval"]["models"][key] if measured else entry, **tree}
        definition = DVC[variant if measured else section]["do"]

        def value(found: re.Match[str]) -> str:
            node: Any = names
            for part in found[1].split("."):
                node = node[part]
            return str(node)

        def fill(text: str) -> str:
            return re.sub(r"\$\{([\w.]+)\}", value, text)

        python, option, module, *arguments = shlex.split(fill(definition["cmd"]))
        assert (python, option) == ("python", "-m")
        main = import_module(f"{module}.__main__").main
        with chdir(self.folder):
            cyclopts.App(default_command=main, result_action="return_value")(arguments, exit_on_error=False)
            outs = [Path(fill(out)) for out in [*definition.get("outs", []), *definition["metrics"]]]
            return {str(out): digest(out) for out in outs}


def digest(out: Path) -> str:
    """Of what is written, but where it only repeats what was asked for."""
    found = sorted(file for file in out.rglob("*") if file.is_file()) if out.is_dir() else [out]
    return " ".join(f"{file.relative_to(out)} {content(file)}" for file in found)


def content(file: Path) -> str:
    if file.suffix != ".json":
        return files.digest(file)
    told = json.loads(file.read_text())
    return str({key: value for key, value in told.items() if key not in REPEATED} if isinstance(told, dict) else told)


class Answers(BaseHTTPRequestHandler):
    """An endpoint whose answer is a function of the request."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        digest = hashlib.sha256(f"{self.server.server_port} {asked}".encode()).hexdigest()
        text = f"{digest} words #### 7"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(asked), "completion_tokens": len(text), "total_tokens": len(asked) + len(text)}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[str]]:
    """The addresses of two endpoints that answer differently."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Answers) for _ in range(2)]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}/v1" for server in servers]
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory, endpoints) -> tuple[Project, Written]:
    """The lifecycle of parameters.yaml, run once, and what each variant wrote."""
    project, written = Project(tmp_path_factory.mktemp("parameters")), {}
    for entry in project.tree["endpoints"].values():
        entry["url"] = endpoints[0]
    for section, variant, _ in variants():
        if (section, variant) == ("tokenize", "same"):
            project.give("tokenizer", "tokenize/bpe/tokenizer", section, variant)
        if (section, variant) == ("pretrain", "given"):
            project.give("model", "pretrain/teacher/model", section, variant)
        written[section, variant] = project.run(section, variant, project.tree[section][variant])
    return project, written


@pytest.mark.parametrize(("section", "variant", "field"), list(cases()), ids=str)
def test_a_changed_field_changes_what_is_written(made, endpoints, section, variant, field):
    project, written = made
    key, base = f"{section}/{variant}.{field}", project.tree[section][variant]
    before = written[section, variant]
    if needed := longest(WITH, key):
        base = replaced(base, WITH[needed])
        before = project.changed(section, variant, base)
    value = endpoints[1] if field == "url" else other(section, variant, field)
    entry = replaced(base, {field: value, **TOGETHER.get(longest(TOGETHER, key) or "", {})})
    if refused := longest(REFUSED, key):
        with pytest.raises(UserError, match=REFUSED[refused]):
            project.changed(section, variant, entry)
    else:
        assert project.changed(section, variant, entry) != before, f"{value!r} makes no difference"


def replaced(entry: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy with these values at these dotted names."""
    entry = copy.deepcopy(entry)
    for name, value in values.items():
        *path, last = name.split(".")
        node = entry
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return entry
