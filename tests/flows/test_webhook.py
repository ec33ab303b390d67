"""The webhook against a real receiver of this machine."""

import base64
import hashlib
import hmac
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flows import webhook
from stages.lib.frame.errors import UserError


@pytest.fixture
def receiver(monkeypatch):
    """Answers with the statuses in `statuses` one after another, then 204; what came is in `seen`."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            server.seen.append((dict(self.headers), body))
            self.send_response(server.statuses.pop(0) if server.statuses else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.statuses, server.seen = [], []
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ORCHARD_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/hook")
    monkeypatch.setenv("ORCHARD_WEBHOOK_SECRET", "planted-secret")
    yield server
    server.shutdown()


def test_it_is_signed_so_that_the_receiver_can_check_it(receiver):
    assert webhook.send("model.champion", "orchard-x@1-champion", {"reasons": ["größer"]}) is None
    [(headers, body)] = receiver.seen
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    wanted = hmac.digest(b"planted-secret", signed, hashlib.sha256)
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(wanted).decode()}"
    assert json.loads(body) == {"type": "model.champion", "data": {"reasons": ["größer"]}}
    assert "planted-secret" not in body + str(headers)


def test_a_receiver_that_is_busy_is_asked_again_with_the_same_id(receiver):
    receiver.statuses = [503, 429]
    assert webhook.send("model.refused", "a", {}, pause=0.01) is None
    assert [headers["webhook-id"] for headers, _ in receiver.seen] == ["a", "a", "a"]


def test_what_refuses_or_never_answers_is_one_line(receiver, monkeypatch):
    receiver.statuses = [401]
    assert webhook.send("model.champion", "a", {}, pause=0.01) == "the webhook did not take model.champion: status 401"
    assert len(receiver.seen) == 1
    receiver.statuses = [500] * 9
    assert webhook.send("model.champion", "a", {}, pause=0.01) == "the webhook did not take model.champion: status 500"
    assert len(receiver.seen) == 5
    monkeypatch.setenv("ORCHARD_WEBHOOK_URL", "http://127.0.0.1:9/")
    assert "ConnectError" in webhook.send("model.champion", "a", {}, pause=0.01)


def test_it_must_be_signed_and_private(monkeypatch):
    webhook.check()
    monkeypatch.setenv("ORCHARD_WEBHOOK_URL", "https://example.org/hook")
    with pytest.raises(UserError, match="ORCHARD_WEBHOOK_SECRET must be"):
        webhook.check()
    monkeypatch.setenv("ORCHARD_WEBHOOK_SECRET", "x")
    webhook.check()
    monkeypatch.setenv("ORCHARD_WEBHOOK_URL", "http://example.org/hook")
    with pytest.raises(UserError, match="must begin with https://"):
        webhook.check()
