"""A teacher behind an OpenAI-compatible endpoint: paced, retried, and every answer written down the moment it comes.

The journal is keyed by a hash of the request, so a run that was killed asks for nothing twice, and neither does one
that only changes what is kept. It lies outside the pipeline's outputs and stays there: answers may have been paid for.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.store import records

KEY = "ORCHARD_API_KEY"  # environment variable; a key is never in params, journal or message
AGAIN = {408, 409, 425, 429, *range(500, 600)}  # status codes that may be gone at the next attempt
LONGEST = 60.0  # seconds between two attempts


class Journal:
    """Answers by the hash of their request, one JSON line each."""

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a kill may have cut the last line
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        self.answers = {row["key"]: row for row in (records.parse(path, number, line) for number, line in lines)}

    def add(self, answer: dict[str, Any]) -> None:
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answer, sort_keys=True) + "\n")
            self.answers[answer["key"]] = answer


class Endpoint:
    """`ask` gives a reply to each prompt; `spent` counts tokens and cost of all that this recording asked for."""

    def __init__(self, p: Any, folder: Path):
        import httpx

        name = hashlib.sha256(f"{p.url}\0{p.name}".encode()).hexdigest()[:16]
        self.p, self.journal, self.used = p, Journal(folder / f"answers-{name}.jsonl"), set()
        self.lock, self.turn = Lock(), 0.0
        self.key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        local = httpx.URL(p.url).host in ("127.0.0.1", "localhost", "::1")
        self.client = httpx.Client(headers=headers, timeout=p.timeout, trust_env=not local)  # no proxy to itself

    def ask(self, prompts: list[str], attempt: int) -> list[str]:
        """From the journal what it knows, the rest from the endpoint; a reply that was cut short counts as none."""
        bodies = {prompt: self.request(prompt, attempt) for prompt in prompts}
        keys = {prompt: self.identity(body) for prompt, body in bodies.items()}
        self.used |= set(keys.values())
        self.fetch({keys[prompt]: body for prompt, body in bodies.items() if keys[prompt] not in self.journal.answers})
        answers = [self.journal.answers[keys[prompt]] for prompt in prompts]
        return [answer["text"] if answer["finish"] != "length" else "" for answer in answers]

    def request(self, prompt: str, attempt: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        sampling = {"temperature": self.p.temperature, "seed": self.p.seed + attempt}
        return {"model": self.p.name, "messages": messages, "max_tokens": self.p.max_new_tokens, **sampling}

    def identity(self, body: dict[str, Any]) -> str:
        return hashlib.sha256((self.p.url + json.dumps(body, sort_keys=True)).encode()).hexdigest()

    def fetch(self, bodies: dict[str, dict[str, Any]]) -> None:
        """All at once, `concurrency` at a time; after the first that fails for good none is begun."""
        pool = ThreadPoolExecutor(self.p.concurrency)
        try:
            for future in as_completed([pool.submit(self.one, key, body) for key, body in bodies.items()]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, key: str, body: dict[str, Any]) -> None:
        complaint = ""
        for pause in [0.0, *pauses(self.p.retries, self.p.backoff)]:
            sleep(pause)
            self.await_turn()
            answer, complaint, asked = self.post(body)
            if answer:
                return self.journal.add({"key": key} | answer)
            sleep(asked)
        raise UserError(
            f"{self.p.url} gave no answer in {self.p.retries + 1} attempts: {complaint}. "
            f"{len(self.journal.answers)} answers are kept in {self.journal.path}; run again to go on"
        )

    def post(self, body: dict[str, Any]) -> tuple[dict[str, Any] | None, str, float]:
        """(answer, or None with what was wrong, and the seconds that the endpoint wants us to wait)."""
        import httpx

        try:
            reply = self.client.post(f"{self.p.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TransportError as error:
            return None, f"{type(error).__name__} {error}".strip(), 0.0
        said = f"status {reply.status_code}, {reply.text[:200]!r}".replace(self.key or "\0", f"<{KEY}>")
        if reply.status_code in AGAIN:
            after = reply.headers.get("retry-after", "0")
            return None, said, min(float(after), LONGEST) if after.isdigit() else 0.0
        if reply.status_code != 200:
            raise UserError(f"{self.p.url} refuses: {said}. Look at url, name and the environment variable {KEY}")
        answer = parse(reply.content)
        return answer, "" if answer else f"no chat completion: {said}", 0.0

    def await_turn(self) -> None:
        """Requests begin at least 1 / requests_per_second apart."""
        with self.lock:
            self.turn = max(self.turn, monotonic())
            mine = self.turn
            self.turn += 1 / self.p.requests_per_second if self.p.requests_per_second else 0.0
        sleep(max(0.0, mine - monotonic()))

    @property
    def spent(self) -> dict[str, float]:
        answers = [self.journal.answers[key] for key in self.used]
        tokens = {name: sum(answer[name] for answer in answers) for name in ("prompt_tokens", "completion_tokens")}
        prices = self.p.price_per_million_input, self.p.price_per_million_output
        cost = sum(count * price / 1e6 for count, price in zip(tokens.values(), prices, strict=True))
        return {"requests": len(answers), **tokens, "cost": cost}


def parse(content: bytes) -> dict[str, Any] | None:
    """The first choice of a chat completion; None if it is anything else."""
    try:
        said = json.loads(content)
        choice, usage = said["choices"][0], said.get("usage") or {}
        counts = {name: int(usage.get(name, 0)) for name in ("prompt_tokens", "completion_tokens")}
        answer = {"text": choice["message"]["content"], "finish": choice.get("finish_reason")} | counts
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return answer if isinstance(answer["text"], str) else None


def pauses(retries: int, first: float) -> Iterator[float]:
    """Twice as long after each failure, with jitter, so that many clients don't come back at once."""
    return (min(LONGEST, first * 2**i) * random.uniform(0.5, 1.0) for i in range(retries))
