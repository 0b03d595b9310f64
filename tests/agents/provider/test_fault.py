"""What refusals mean, told from the exceptions that libcloud's own parsers raise."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from libcloud.common import exceptions, google, vultr
from libcloud.common.types import InvalidCredsError, LibcloudError, MalformedResponseError
from libcloud.compute.providers import get_driver

from spinal.agents.provider import wire
from spinal.agents.provider.fault import MAX_SAID, Fault, Impossible, classify
from spinal.agents.provider.wire import Answer

#: Untyped in libcloud.
BaseHTTPError: Any = exceptions.BaseHTTPError
RateLimitReachedError: Any = exceptions.RateLimitReachedError
GoogleBaseError: Any = google.GoogleBaseError
VultrException: Any = vultr.VultrException


class _Canned(BaseHTTPRequestHandler):
    status, body, headers_ = 500, b"", dict[str, str]()

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        for key, value in {"Content-Length": str(len(self.body)), **self.headers_}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def answering(status: int, body: str, **headers: str) -> Generator[int]:
    """Answer everything with this; gives the port."""
    fixed = {key.replace("_", "-"): value for key, value in headers.items()}
    handler = type(
        "Handler", (_Canned,), {"status": status, "body": body.encode(), "headers_": fixed}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def driver(name: str, port: int) -> Any:
    at: dict[str, Any] = {"host": "127.0.0.1", "port": port, "secure": False}
    match name:
        case "ec2":
            return get_driver("ec2")("KEY", "geheim", signature_version="4", **at)
        case "linode":
            return get_driver("linode")("geheim", api_version="4.0", **at)
        case "vultr":
            return get_driver("vultr")("geheim", api_version="2", **at)
        case _:
            made: Any = get_driver("digitalocean")("geheim")
            made.connection.host, made.connection.port, made.connection.secure = (
                "127.0.0.1",
                port,
                0,
            )
            made.connection.connect()
            return made


def fault_of(vendor: str, status: int, body: Any, **headers: str) -> Fault:
    """Ask a vendor that answers with this, and say what it means."""
    wire.install()
    text = body if isinstance(body, str) else json.dumps(body)
    with answering(status, text, **headers) as port:
        wire.begin(5.0)
        asked = driver(vendor, port)
        with pytest.raises(Exception) as caught:
            asked.list_nodes()
        fault = classify(caught.value, wire.last(), ["geheim"])
        asked.connection.connection.session.close()
    return fault


def ec2(code: str, words: str) -> str:
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{words}</Message></Error></Errors>"
        "<RequestID>x</RequestID></Response>"
    )


@pytest.mark.parametrize(
    "status, code, words, kind",
    [
        (500, "InsufficientInstanceCapacity", "We currently do not have sufficient", "capacity"),
        (
            400,
            "Unsupported",
            "Your requested instance type is not available in this region",
            "capacity",
        ),
        (400, "VcpuLimitExceeded", "You have requested more vCPU capacity than", "quota"),
        (400, "InstanceLimitExceeded", "Your quota allows for 0 more", "quota"),
        (400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded", "quota"),
        (503, "RequestLimitExceeded", "Request limit exceeded.", "rate"),
        (401, "AuthFailure", "AWS was not able to validate the provided access", "auth"),
        (403, "SignatureDoesNotMatch", "The request signature we calculated", "auth"),
        (403, "UnauthorizedOperation", "You are not authorized to perform this", "auth"),
        (400, "InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", "invalid"),
        (400, "InvalidParameterValue", "User data is limited to 16384 bytes", "invalid"),
        (400, "IdempotentParameterMismatch", "Arguments on this idempotent request", "invalid"),
        (500, "InternalError", "An internal error has occurred", "transient"),
        (503, "Unavailable", "The server is overloaded", "transient"),
    ],
)
def test_errors_of_ec2(status: int, code: str, words: str, kind: str) -> None:
    fault = fault_of("ec2", status, ec2(code, words))

    assert (fault.kind, fault.code) == (kind, status)
    assert fault.said.startswith(f"{code}: {words}")


@pytest.mark.parametrize(
    "code, words",
    [
        ("RequestExpired", "Request has expired."),
        ("SignatureDoesNotMatch", "Signature expired: 20261128T1 is now earlier than 20261128T2"),
        ("SignatureDoesNotMatch", "Signature not yet current: 20261128T3 is still later than"),
        ("AuthFailure", "Timestamp is in the future, check your clock"),
    ],
)
def test_a_signature_that_a_wrong_clock_breaks_has_a_hint(code: str, words: str) -> None:
    fault = fault_of("ec2", 400, ec2(code, words))
    far = fault_of("ec2", 400, ec2(code, words), Date=formatdate(time.time() - 900, usegmt=True))

    assert fault.kind == far.kind == "auth"
    assert fault.said.endswith("check the clock of this machine")
    assert "900 s ahead of the vendor's: set it" in far.said.replace("901", "900").replace(
        "899", "900"
    )


@pytest.mark.parametrize(
    "status, words, kind",
    [
        (422, "size is not available in this region", "capacity"),
        (422, "Size is currently unavailable; sold out", "capacity"),
        (422, "creating this/these droplet(s) will exceed your droplet limit", "quota"),
        (401, "Unable to authenticate you", "auth"),
        (403, "You do not have access for the attempted action.", "auth"),
        (429, "API Rate limit exceeded.", "rate"),
        (422, "You specified an invalid image for Droplet creation.", "invalid"),
        (500, "Server was unable to give you a response", "transient"),
        (503, "Service unavailable", "transient"),
    ],
)
def test_errors_of_digitalocean(status: int, words: str, kind: str) -> None:
    fault = fault_of("digitalocean", status, {"id": "x", "message": words})

    assert (fault.kind, fault.code) == (kind, status)
    # libcloud has no words of a 429, nor has it here.
    assert words in fault.said or status == 429


@pytest.mark.parametrize(
    "status, words, kind",
    [
        (400, "The selected plan is not available in the selected region.", "capacity"),
        (400, "Account Limit reached. Please open a support ticket.", "quota"),
        (401, "Invalid Token", "auth"),
        (403, "Unauthorized", "auth"),
        (429, "Too many requests", "rate"),
        (400, "Label must be unique among your linodes", "invalid"),
        (500, "Internal server error", "transient"),
    ],
)
def test_errors_of_linode(status: int, words: str, kind: str) -> None:
    fault = fault_of("linode", status, {"errors": [{"reason": words}]}, Retry_After="9")

    assert (fault.kind, fault.code, fault.after) == (kind, status, 9.0)
    assert words in fault.said


@pytest.mark.parametrize(
    "status, words, kind",
    [
        (400, "Plan is not available in the selected region.", "capacity"),
        (400, "You have reached the maximum number of instances on your account", "quota"),
        (401, "Invalid API token.", "auth"),
        (429, "Rate limit hit", "rate"),
        (404, "Invalid instance.", "invalid"),
        (500, "Internal Server Error", "transient"),
    ],
)
def test_errors_of_vultr(status: int, words: str, kind: str) -> None:
    fault = fault_of("vultr", status, {"error": words, "status": status}, Retry_After="3")

    assert (fault.kind, fault.code, fault.after) == (kind, status, 3.0)
    assert words in fault.said


@pytest.mark.parametrize(
    "error, kind",
    [
        (BaseHTTPError(403, "403 Forbidden Quota exceeded for instances: Requested 1"), "quota"),
        (BaseHTTPError(403, "403 Forbidden Policy doesn't allow os_compute_api"), "auth"),
        (BaseHTTPError(413, "413 OverLimit: too many requests, rate limit"), "rate"),
        (BaseHTTPError(500, "No valid host was found. There are not enough hosts"), "capacity"),
        (BaseHTTPError(409, "Multiple possible networks found"), "invalid"),
        (RateLimitReachedError(), "rate"),
        (InvalidCredsError(), "auth"),
        (GoogleBaseError("exhausted", 503, "ZONE_RESOURCE_POOL_EXHAUSTED"), "transient"),
        (GoogleBaseError("ZONE_RESOURCE_POOL_EXHAUSTED", 503, "x"), "capacity"),
        (VultrException(503, "try again"), "transient"),
        (LibcloudError("Nope Status code: 400."), "invalid"),
        (LibcloudError("something"), "unknown"),
        (ConnectionRefusedError("Connection refused"), "transient"),
        (TimeoutError(), "transient"),
        (Impossible("no image"), "invalid"),
    ],
)
def test_errors_of_others(error: Exception, kind: str) -> None:
    assert classify(error).kind == kind


def test_an_answer_that_is_none_keeps_its_beginning() -> None:
    fault = fault_of("digitalocean", 502, "<html><h1>Bad\n gateway</h1>" + "x" * 9000)

    assert (fault.kind, fault.code) == ("transient", 502)
    assert fault.said.startswith("the answer is not what it should be: <html><h1>Bad gateway")
    assert len(fault.said) <= MAX_SAID


def test_an_answer_without_what_it_should_have_is_told() -> None:
    fault = fault_of("digitalocean", 200, {"droplets": [{"id": 1}]})

    assert fault.kind == "unknown"
    assert fault.said == "the answer cannot be understood: KeyError: 'created_at'"


def test_secrets_are_masked_in_the_vendors_words() -> None:
    fault = fault_of("vultr", 400, {"error": "no such key geheim\nin here"})

    assert fault.said == "no such key *** in here"


def test_what_never_left_is_told_from_what_may_have() -> None:
    wire.install()
    with answering(200, "") as port:
        pass
    wire.begin(1.0)
    asked = driver("vultr", port)
    with pytest.raises(Exception) as caught:
        asked.list_nodes()
    asked.connection.connection.session.close()

    assert not classify(caught.value, wire.last()).sent
    assert classify(MalformedResponseError("x", "y"), Answer(500)).sent
    assert classify(TimeoutError("read timed out")).sent
