"""A teacher behind a port that fails as it is told to."""

import gzip
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Teacher(ThreadingHTTPServer):
    """Answers "about PROMPT"; first it does, request by request, what the script says."""

    def __init__(self, script=(), delay=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.delay, self.bodies, self.headers, self.times = list(script), delay, [], [], []
        self.lock, self.together, self.most = threading.Lock(), 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.times.append(time.monotonic())
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
            todo = server.script.pop(0) if server.script else "answer"
            server.together += 1
            server.most = max(server.most, server.together)
        time.sleep(1.0 if todo == "hang" else server.delay)
        with server.lock:
            server.together -= 1
        prompt = body["messages"][0]["content"]
        said = {"choices": [{"message": {"content": f"about {prompt}"}, "finish_reason": "stop"}]}
        said["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": 10}
        if todo == "cut":
            said["choices"][0]["finish_reason"] = "length"
        content = {"rubbish": b"<html>", "half": b'{"choices": []}', "null": b"null"}.get(
            todo, json.dumps(said).encode()
        )
        if todo == "endless":  # whitespace, which JSON allows in front
            content = b" " * (2**25) + content
        if todo == "dripping headers":
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, 0.05)
            return
        self.send_response(todo if isinstance(todo, int) else 200)
        if todo == "packed":
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        if todo == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.drip(content, 0.05 if todo == "dripping" else 0)

    def drip(self, content, pause):
        """One byte at a time, if there is a pause after each."""
        with suppress(ConnectionError):  # the client had enough
            for piece in [content[i : i + 1] for i in range(len(content))] if pause else [content]:
                self.wfile.write(piece)
                time.sleep(pause)

    def log_message(self, *_):
        pass
