"""OpenAI's API and the page. llama.cpp's own server writes every answer; here is added who may ask, which model, and
what an answer cost: `joules` beside the `timings` that llama.cpp ends it with.

One answer at a time, so that its joules are its own.
"""

import asyncio
import hmac
import json
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Send

from apps.parts.llama import Llama
from apps.serve.models import Models
from stages.lib.frame import energy
from stages.lib.frame.errors import UserError

PAGE = Path(__file__).parent / "page.html"
CLOSED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
HEADERS = {"Content-Security-Policy": f"{CLOSED}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"}


def application(models: Models, key: str | None, hosts: list[str]) -> FastAPI:
    """`hosts` are the names under which a browser may know this server: another one is that of a page that had its
    name point here (DNS rebinding)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    turn = asyncio.Lock()

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise HTTPException(401, "this server wants a key: Authorization: Bearer KEY")
        origin = request.headers.get("origin")
        if origin and origin.partition("://")[2] != request.headers["host"]:
            raise HTTPException(403, f"{origin} is another site")

    guarded = [Depends(allowed)]

    @app.get("/")
    def page() -> HTMLResponse:
        """Holds nothing of anybody's, so it needs no key: it asks for one."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=HEADERS)

    @app.get("/v1/models", dependencies=guarded)
    def listed() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "orchard"} for name in models.names]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(request: Request) -> StreamingResponse:
        body = await read(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise HTTPException(400, "messages must be a list of what was said, each with role and content")
        if isinstance(last := messages[-1].get("content"), str) and not last.strip():
            raise HTTPException(400, "the last message is empty")
        return Answer(models, turn, request.url.path, body)

    @app.post("/v1/completions", dependencies=guarded)
    async def complete(request: Request) -> StreamingResponse:
        body = await read(request)
        if not body.get("prompt"):
            raise HTTPException(400, "prompt is empty")
        return Answer(models, turn, request.url.path, body)

    @app.post("/classify", dependencies=guarded)
    async def classify(request: Request) -> dict[str, Any]:
        """Of {"text": ...} its label with the probability, of {"texts": [...]} as `results` those of each."""
        body = await read(request)
        texts: Any = body["texts"] if "texts" in body else [body.get("text")]
        if not isinstance(texts, list) or not texts or not all(map(says_something, texts)):
            raise HTTPException(400, 'give {"text": "..."} or {"texts": ["...", "..."]}, none of them empty')
        async with turn:
            shares = await run_in_threadpool(lambda: models.load(body["model"]).classify(texts))
        results = [likeliest(each) for each in shares]
        return {"model": body["model"]} | ({"results": results} if "texts" in body else results[0])

    async def read(request: Request) -> dict[str, Any]:
        """The body, with the name of a model that there is."""
        try:
            body = json.loads(await request.body())
        except ValueError:
            raise HTTPException(400, "the body is no JSON") from None
        if not isinstance(body, dict):
            raise HTTPException(400, "the body must be a JSON object")
        name = body.get("model") or models.names[0]
        if name not in models.names:
            raise HTTPException(404, f"there is no model {name!r}: GET /v1/models lists them")
        return body | {"model": name}

    @app.exception_handler(HTTPException)
    async def refuse(_request: Request, refusal: HTTPException) -> JSONResponse:
        return JSONResponse(problem(refusal.status_code, refusal.detail), refusal.status_code)

    @app.exception_handler(UserError)
    async def say(_request: Request, error: UserError) -> JSONResponse:
        return JSONResponse(problem(400, str(error)), 400)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        said = f"{type(error).__name__}: {error}"
        print(f"{request.url.path}: {said}", file=sys.stderr)
        return JSONResponse(problem(500, said), 500)

    return app


def says_something(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


def likeliest(shares: dict[str, float]) -> dict[str, Any]:
    label = max(shares, key=lambda each: shares[each])
    return {"label": label, "probability": shares[label], "probabilities": shares}


def problem(status: int, message: str) -> dict[str, Any]:
    """In the shape that OpenAI's clients read."""
    kind = {500: "server_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    return {"error": {"message": message, "type": kind.get(status, "invalid_request_error"), "code": status}}


class Answer(StreamingResponse):
    """What llama.cpp says to a request, passed on as it comes. A client that goes away ends it in llama.cpp too."""

    def __init__(self, models: Models, turn: asyncio.Lock, path: str, asked: dict[str, Any]):
        super().__init__(iter(()))
        self.models, self.turn, self.path, self.asked = models, turn, path, asked

    async def stream_response(self, send: Send) -> None:
        async with self.turn:
            try:
                loaded = await run_in_threadpool(self.models.load, self.asked["model"])
                if "messages" in self.asked:
                    await run_in_threadpool(loaded.llama.require_template)
                    self.asked = await run_in_threadpool(loaded.chat, self.asked)
            except UserError as error:
                await self.pass_on(send, 400, "application/json", once(json.dumps(problem(400, str(error)))))
            else:
                await self.ask(loaded.llama, send)

    async def ask(self, llama: Llama, send: Send) -> None:
        to = {"url": llama.url + self.path, "headers": llama.headers, "content": json.dumps(self.asked)}
        with ExitStack() as meter:
            spent = meter.enter_context(energy.meter())
            async with httpx2.AsyncClient(timeout=None) as client, client.stream("POST", **to) as answer:
                lines = counted(answer.aiter_lines(), meter, spent)
                await self.pass_on(send, answer.status_code, answer.headers["content-type"], lines)

    async def pass_on(self, send: Send, status: int, media_type: str, lines: AsyncIterator[str]) -> None:
        self.status_code, self.media_type, self.body_iterator = status, media_type, lines
        self.init_headers()
        await super().stream_response(send)


async def once(line: str) -> AsyncIterator[str]:
    yield line


async def counted(lines: AsyncIterator[str], meter: ExitStack, spent: dict[str, float]) -> AsyncIterator[str]:
    """The lines; the one with llama.cpp's timings, which is the last that says anything, with the joules besides."""
    async for line in lines:
        if '"timings"' in line:
            meter.close()
            before, brace, after = line.partition("{")
            told = json.loads(brace + after)
            told["timings"] |= spent
            line = before + json.dumps(told)
        yield line + "\n"
