"""A client of OpenAI-compatible endpoints: openai's, which retries and waits as it should, with pacing before it and a
journal behind it, so that every answer is written down the moment it comes.

The journal is keyed by a hash of the request, so a run that was killed asks for nothing twice, and neither does one
that only changes what is kept. It lies outside the pipeline's outputs and stays there: answers may have been paid for.
Nothing goes anywhere but to the one url, and of headers only what HTTP and the endpoint need.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.store import records

if TYPE_CHECKING:
    from httpx2 import Request, Response
    from openai import OpenAI

KEY = "ORCHARD_API_KEY"  # environment variable; a key is never in params, journal or message
LIMIT = 16 * 2**20  # bytes of an answer; the longest context that models have is a tenth of that
LOCAL = ("127.0.0.1", "localhost", "::1")
RAW = "x-stainless-raw-response"  # by it openai knows later that the body was asked for as it came
HEADERS = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length", RAW}


class Service(Params):
    """An endpoint, and how it is asked."""

    url: str = Field("http://127.0.0.1:8080/v1", pattern=r"^https?://[^\s@?]+$")  # no password, no key
    name: str = "default"  # of the model, as the endpoint calls it
    concurrency: PositiveInt = 4  # requests at a time
    requests_per_second: PositiveFloat | None = None
    retries: NonNegativeInt = 5  # of a request, each after twice the pause of the one before, or as the endpoint says
    timeout: PositiveFloat = 120.0  # seconds, for a whole answer


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

    def drop(self, keys: set[str]) -> None:
        with self.lock:
            self.answers = {key: answer for key, answer in self.answers.items() if key not in keys}
            lines = [json.dumps(answer, sort_keys=True) + "\n" for answer in self.answers.values()]
            with files.writing(self.path) as file:
                file.write_text("".join(lines), encoding="utf-8")


class Client:
    """`ask` gives an answer to each prompt; `spent` counts what this client's answers took, whenever they came."""

    def __init__(self, service: Service, folder: Path):
        self.url, self.name, self.retries = service.url, service.name, service.retries
        identity = hashlib.sha256(f"{self.url}\0{self.name}".encode()).hexdigest()[:16]
        self.journal, self.used = Journal(folder / f"answers-{identity}.jsonl"), set[str]()
        self.concurrency = service.concurrency
        self.pause = 1 / service.requests_per_second if service.requests_per_second else 0.0
        self.lock, self.turn = Lock(), 0.0
        self.key = os.environ.get(KEY, "")
        hooks = {"request": [self.before_request], "response": [self.before_body]}
        self.openai = connect(self.url, self.key, service.timeout, self.retries, hooks)

    def ask(self, prompts: list[str], **sampling: float) -> list[dict[str, Any]]:
        """Each with "text", "finish", "prompt_tokens" and "completion_tokens": from the journal what it knows, the rest
        from the endpoint."""
        requests = {prompt: self.request(prompt, sampling) for prompt in prompts}
        keys = {prompt: self.identity(request) for prompt, request in requests.items()}
        self.used |= set(keys.values())
        self.fetch({keys[prompt]: requests[prompt] for prompt in prompts if keys[prompt] not in self.journal.answers})
        return [self.journal.answers[keys[prompt]] for prompt in prompts]

    def forget(self, prompts: list[str], **sampling: float) -> None:
        """What was said to these: it is of no use to anybody, so that the next run asks again."""
        self.journal.drop({self.identity(self.request(prompt, sampling)) for prompt in prompts})

    def request(self, prompt: str, sampling: dict[str, float]) -> dict[str, Any]:
        return {"model": self.name, "messages": [{"role": "user", "content": prompt}], **sampling}

    def identity(self, request: dict[str, Any]) -> str:
        return hashlib.sha256((self.url + json.dumps(request, sort_keys=True)).encode()).hexdigest()

    def fetch(self, requests: dict[str, dict[str, Any]]) -> None:
        """All at once, `concurrency` at a time; after the first that fails for good none is begun."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            for future in as_completed([pool.submit(self.fetch_one, *item) for item in requests.items()]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def fetch_one(self, key: str, request: dict[str, Any]) -> None:
        """What answers but is no chat completion is asked again too."""
        content = ""
        for _ in range(self.retries + 1):
            content = self.post(request)
            if answer := parse(content):
                return self.journal.add({"key": key} | answer)
        raise self.gave_up(f"no chat completion: status 200, {self.without_key(content)!r}")

    def post(self, request: dict[str, Any]) -> str:
        """The body of the response; openai asks again, at most `retries` times, where that may help."""
        import httpx2
        import openai

        try:  # the body as it came: what is no chat completion is for `parse` to say
            return self.openai.post("/chat/completions", cast_to=httpx2.Response, body=request).text
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self.gave_up(f"{type(cause).__name__} {cause}".strip()) from error
        except openai.APIStatusError as error:
            found = f"status {error.status_code}, {self.without_key(error.response.text)!r}"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise self.gave_up(found) from error
            text = f"{self.url} refuses: {found}. Look at url, name and the environment variable {KEY}"
            raise UserError(text) from error

    def gave_up(self, complaint: str) -> UserError:
        return UserError(
            f"{self.url} gave no answer in {self.retries + 1} attempts: {complaint}. "
            f"{len(self.journal.answers)} answers are kept in {self.journal.path}; run again to go on"
        )

    def without_key(self, text: str) -> str:
        return text[:200].replace(self.key or "\0", f"<{KEY}>")

    def before_request(self, request: "Request") -> None:
        """Every attempt waits for its turn, at least 1 / requests_per_second after the one before, and takes no headers
        along that describe this machine or come from an environment meant for somebody else."""
        for name in set(request.headers) - HEADERS - ({"authorization"} if self.key else set()):
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"  # a small answer must not unpack to a large one
        with self.lock:
            self.turn = max(self.turn, monotonic())
            begin = self.turn
            self.turn += self.pause
        sleep(max(0.0, begin - monotonic()))

    def before_body(self, response: "Response") -> None:
        import httpx2

        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("it is packed, which was not asked for")

    def spent(self) -> dict[str, float]:
        answers = [self.journal.answers[key] for key in self.used]
        tokens = {name: sum(answer[name] for answer in answers) for name in ("prompt_tokens", "completion_tokens")}
        return {"requests": len(answers), **tokens}


def connect(url: str, key: str, timeout: float, retries: int, hooks: dict[str, list[Callable[..., None]]]) -> "OpenAI":
    import openai

    from stages.lib.sampling import bounds

    client = openai.DefaultHttpxClient(
        timeout=timeout,
        follow_redirects=False,
        trust_env=urlsplit(url).hostname not in LOCAL,  # no proxy to itself
        event_hooks=hooks,
    )
    for transport in filter(None, [client._transport, *client._mounts.values()]):
        pool = transport._pool  # pyright: ignore[reportAttributeAccessIssue]  (of the client's own kinds of transport)
        pool._network_backend = bounds.Backend(pool._network_backend, timeout, LIMIT)
    return openai.OpenAI(
        base_url=url,
        api_key=key or "none",  # it wants one; without a key the header is taken off again
        timeout=timeout,
        max_retries=retries,
        http_client=client,
    )


def parse(content: str) -> dict[str, Any] | None:
    """The first choice of a chat completion; None if it is anything else."""
    try:
        completion = json.loads(content)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        counts = {name: int(usage.get(name, 0)) for name in ("prompt_tokens", "completion_tokens")}
        answer = {"text": choice["message"]["content"], "finish": choice.get("finish_reason")} | counts
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return answer if isinstance(answer["text"], str) else None
