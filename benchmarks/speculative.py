"""Speculative decoding in llama.cpp, the teacher as target and its student as draft: how much faster, the same text?

python -m benchmarks.speculative --teacher A.gguf --student B.gguf

Leviathan et al. 2022, arXiv:2211.17192. Both sides are llama.cpp's server in this process, greedy, on problems of
the families in params.yaml; the peer is the teacher alone. The first round is warm-up: it compares the tokens. Only the
time of writing counts, as llama.cpp reports it; acceptance is the share of drafted tokens that the teacher took.
"""

import statistics
from pathlib import Path
from typing import Any

import cyclopts

from benchmarks import _result
from stages.data import Dataset
from stages.lib.frame import params

RESULT = Path("benchmarks/results/speculative.json")


def serve(teacher: Path, student: Path | None, drafted: int, threads: int) -> Any:
    from xllamacpp import CommonParams, Server, common_speculative_type  # pyright: ignore[reportAttributeAccessIssue]

    settings = CommonParams()
    settings.model.path = str(teacher)
    settings.n_ctx, settings.n_parallel, settings.verbosity = 0, 1, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    if student:
        draft = settings.speculative.draft
        draft.mparams.path, draft.n_max = str(student), drafted
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads
        settings.speculative.types = [common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    return Server(settings)


def write(server: Any, prompt: str, tokens: int, **more: Any) -> Any:
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
    reply = server.handle_chat_completions(request | {"cache_prompt": False} | more)
    if "error" in reply:
        raise SystemExit(f"llama.cpp: {reply['error']['message']}")
    return reply


def ids(server: Any, prompt: str, tokens: int) -> list[int]:
    content = write(server, prompt, tokens, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    return [each["id"] for each in content]


def questions(count: int) -> list[str]:
    """Problems of the families in params.yaml, by another seed than the ones that were learnt."""
    technique = params.load(Dataset, "problems")
    other = technique.model_copy(update={"per_family": count, "seed": technique.seed + 1000})
    rows = list(other.records(Path(technique.source)))
    return [row["prompt"] for row in rows[:: max(1, len(rows) // count)][:count]]


def main(
    *,
    teacher: Path,
    student: Path,
    prompts: int = 20,
    tokens: int = 64,
    drafted: int = 4,
    rounds: int = 3,
    threads: int = 1,
    out: Path = RESULT,
) -> None:
    for file in (teacher, student):
        if not file.is_file():
            raise SystemExit(f"{file} is missing: export it first")
    texts = questions(prompts)
    servers = {"ours": serve(teacher, student, drafted, threads), "peer": serve(teacher, None, drafted, threads)}
    same = sum(ids(servers["ours"], text, tokens) == ids(servers["peer"], text, tokens) for text in texts)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    made = accepted = written = 0
    for _ in range(rounds):
        for name, server in servers.items():
            said = [write(server, text, tokens)["timings"] for text in texts]
            seconds[name].append(sum(each["predicted_ms"] for each in said) / 1000)
            written = sum(each["predicted_n"] for each in said)
            made += sum(each.get("draft_n", 0) for each in said)
            accepted += sum(each.get("draft_n_accepted", 0) for each in said)
    if not made:
        raise SystemExit(f"{student} drafted nothing for {teacher}: have they the same vocabulary?")
    speed = {name: written / statistics.median(each) for name, each in seconds.items()}
    result = {
        "ours_tokens_per_s": round(speed["ours"], 1),
        "peer_tokens_per_s": round(speed["peer"], 1),
        "ratio": round(speed["ours"] / speed["peer"], 2),
        "acceptance": round(accepted / made, 3),
        "identical_outputs": f"{same} of {prompts}",
        "drafted": drafted,
        "threads": threads,
        "peer": "the teacher alone",
        "teacher_bytes": teacher.stat().st_size,
        "student_bytes": student.stat().st_size,
        "rounds": rounds,
    }
    _result.save(out, result, "xllamacpp")
    print(f"acceptance {result['acceptance']}, speed-up {result['ratio']}, identical {result['identical_outputs']}")


if __name__ == "__main__":
    cyclopts.run(main)
