"""Tells another program what became of the model that ships: a signed POST to ORCHARD_WEBHOOK_URL, if that is set.

Signed as standardwebhooks.com has it: header `webhook-signature` is "v1," and the base64 of HMAC-SHA256 over
"ID.TIMESTAMP.BODY", keyed with ORCHARD_WEBHOOK_SECRET. The same verdict on the same content has the same id, so that a
receiver can leave out what it knows. A receiver that does not answer costs a line in the log and no run.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from typing import Any

from stages.lib.frame.errors import UserError

URL, SECRET = "ORCHARD_WEBHOOK_URL", "ORCHARD_WEBHOOK_SECRET"
TRIES, PATIENCE = 4, 5  # seconds for an answer


def wanted() -> bool:
    return bool(os.environ.get(URL))


def check() -> None:
    """Before work begins."""
    if not wanted():
        return
    if not os.environ[URL].startswith(("https://", "http://127.0.0.1", "http://localhost")):
        raise UserError(f"{URL} must begin with https:// (http:// only for this machine)")
    if not os.environ.get(SECRET):
        raise UserError(f"{URL} is set, so {SECRET} must be: what is sent is signed with it")


def send(kind: str, identity: str, data: dict[str, Any], pause: float = 1) -> str | None:
    """What went wrong, if anything did. Caller has seen that it is wanted. `pause`: seconds before the second try, then
    twice as many each time."""
    import httpx2 as httpx

    body = json.dumps({"type": kind, "data": data}, sort_keys=True)
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            answer = httpx.post(os.environ[URL], content=body, headers=headers(identity, body), timeout=PATIENCE)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = type(error).__name__
            continue
        if answer.is_success:
            return None
        reason = f"status {answer.status_code}"
        if answer.is_client_error and answer.status_code != 429:  # it would say so again
            break
    return f"the webhook did not take {kind}: {reason}"


def headers(identity: str, body: str) -> dict[str, str]:
    now = str(int(time.time()))
    key = os.environ[SECRET].encode()
    mac = hmac.new(key, f"{identity}.{now}.{body}".encode(), hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    own = {"webhook-id": identity, "webhook-timestamp": now, "webhook-signature": signature}
    return own | {"content-type": "application/json"}
