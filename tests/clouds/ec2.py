"""EC2: moto, with what it lacks.

moto names another namespace than AWS (without the final slash), in which libcloud finds nothing.
It has no faults, no boot delay and no idempotency by ClientToken.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import parse_qsl
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from .ledger import ERROR, STARTING, Machine
from .upstream import BIN, Upstream
from .vendor import TOKEN, Refusal, Settings, Vendor
from .wire import Ask, Reply, Request, View

NAMESPACE: Final = "http://ec2.amazonaws.com/doc/2016-11-15/"
_XMLNS: Final = re.compile(rb'xmlns="http://ec2\.amazonaws\.com/doc/[0-9-]+/?"')
_SCOPE: Final = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/ec2/")

OPERATIONS: Final = {
    "RunInstances": "create",
    "DescribeInstances": "list",
    "TerminateInstances": "delete",
    "DescribeInstanceTypes": "sizes",
    "DescribeImages": "images",
    "CreateImage": "freeze",
    "DescribeAccountAttributes": "limits",
}

#: Images that there are: owner, architecture, name.
#: moto's own are 1,300, of which libcloud takes five seconds to read.
DEBIAN, CANONICAL = "136693071363", "099720109477"
IMAGES: Final = (
    (DEBIAN, "x86_64", "debian-12-amd64-20260112-1990"),
    (DEBIAN, "arm64", "debian-12-arm64-20260112-1990"),
    (DEBIAN, "x86_64", "debian-13-amd64-20260112-1990"),
    (DEBIAN, "arm64", "debian-13-arm64-20260112-1990"),
    (CANONICAL, "x86_64", "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-amd64-server-20260115"),
    (CANONICAL, "arm64", "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-arm64-server-20260115"),
    (CANONICAL, "x86_64", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260115"),
    (CANONICAL, "arm64", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20260115"),
)

#: States of an instance, and their numbers.
PENDING: Final = ("pending", "0")
TERMINATED: Final = ("terminated", "48")
ACTIVE: Final = ("running", "16")


class Ec2(Vendor):
    """The part of AWS that rents machines."""

    name = "ec2"
    prices = False
    refusals: ClassVar[Mapping[str, Refusal]] = {
        "capacity": Refusal(
            500,
            "InsufficientInstanceCapacity",
            "We currently do not have sufficient capacity in the Availability Zone you requested.",
        ),
        "quota": Refusal(
            400,
            "VcpuLimitExceeded",
            "You have requested more vCPU capacity than your current vCPU limit allows for the"
            " instance bucket that the specified instance type belongs to.",
        ),
        "auth": Refusal(
            401, "AuthFailure", "AWS was not able to validate the provided access credentials"
        ),
        "rate": Refusal(503, "RequestLimitExceeded", "Request limit exceeded."),
        "server": Refusal(500, "InternalError", "An internal error has occurred"),
    }

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.upstream = Upstream(
            lambda port, _: [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], _prepare
        )
        #: What each client token bought, by region and token.
        self._tokens: dict[tuple[str, str], tuple[str, Reply]] = {}

    async def reset(self) -> None:
        """Forget everything."""
        await super().reset()
        self._tokens.clear()
        request = Request("POST", "/moto-api/reset", {}, {}, b"", "/moto-api/reset")
        await self.upstream.ask(request)

    def read(self, request: Request) -> Ask:
        """Say what a request is for."""
        given, scope = _parameters(request), _SCOPE.search(request.headers.get("authorization", ""))
        operation = OPERATIONS.get(given.get("Action", ""), "other")
        region = scope[2] if scope is not None else ""
        if operation == "create":
            name = _tags(given).get("Name") or given.get("ClientToken", "")
            return Ask("create", region, given.get("InstanceType", ""), name)
        ids = [value for key, value in given.items() if key.startswith("InstanceId")]
        if operation == "list" and ids:
            operation = "one"
        machine = self.ledger.machines.get(ids[0]) if ids else None
        if machine is None:
            return Ask(operation, region, id=ids[0] if ids else "")
        return Ask(operation, region, machine.type, machine.name, machine.id)

    def knows(self, request: Request) -> bool:
        """Say whether it is signed with the right key; moto does not check the signature."""
        scope = _SCOPE.search(request.headers.get("authorization", ""))
        return scope is not None and scope[1] == TOKEN

    def refuse(self, refusal: Refusal, ask: Ask, headers: Mapping[str, str]) -> Reply:
        """Say an error as AWS does."""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error>'
            f"<Code>{escape(refusal.code)}</Code><Message>{escape(refusal.said)}</Message>"
            "</Error></Errors><RequestID>59dbff89-35bd-4eac-99ed-be587EXAMPLE</RequestID>"
            "</Response>"
        )
        return Reply(
            refusal.status, body.encode(), {"Content-Type": "text/xml;charset=UTF-8", **headers}
        )

    async def answer(self, request: Request, ask: Ask, view: View) -> Reply:
        """Let moto carry it out."""
        given = _parameters(request)
        bought = self._tokens.get((ask.region, given.get("ClientToken", "")))
        if ask.operation == "create" and bought is not None:
            if self.ledger.machines[bought[0]].deleted is None:
                return bought[1]
            gone = Refusal(400, "IdempotentInstanceTerminated", "The instance is terminated.")
            return self.refuse(gone, ask, {})
        reply = await self.upstream.ask(request)
        body = _XMLNS.sub(f'xmlns="{NAMESPACE}"'.encode(), reply.body, count=1)
        reply = Reply(reply.status, body, reply.headers)
        if reply.status != 200:
            return reply
        if ask.operation == "delete":
            for key, id in given.items():
                if key.startswith("InstanceId") and id in self.ledger.machines:
                    self.ledger.delete(self.ledger.machines[id])
        if ask.operation == "create":
            id = self._made(ask, given, view, body)
            reply = self._shown(reply, view)
            if "ClientToken" in given:
                self._tokens[ask.region, given["ClientToken"]] = id, reply
        elif ask.operation in ("list", "one"):
            reply = self._shown(reply, view)
        elif ask.operation == "limits":
            reply = self._limits(reply, given)
        return reply

    def _made(self, ask: Ask, given: Mapping[str, str], view: View, body: bytes) -> str:
        """Write down what moto made."""
        last = ""
        for item in _items(ElementTree.fromstring(body)):
            last = _text(item, "instanceId")
            machine = Machine(
                ask.name, last, ask.type, ask.region, self.ledger.now(), self.ledger.number()
            )
            machine.image, machine.tags = given.get("ImageId", ""), _tags(given)
            machine.user_data = _decoded(given.get("UserData", ""))
            machine.broken = view.broken
            self.ledger.add(machine)
            if machine.broken:
                # EC2 ends it by itself, and asks no money for it.
                self.ledger.delete(machine)
        return last

    def _limits(self, reply: Reply, given: Mapping[str, str]) -> Reply:
        """Leave the attributes that were asked for, with our limit; moto gives all of its own."""
        root = ElementTree.fromstring(reply.body)
        wanted = {value for key, value in given.items() if key.startswith("AttributeName")}
        for holder in [*root.iter(_tag("accountAttributeSet"))]:
            for item in [*holder]:
                name = _text(item, "attributeName")
                if wanted and name not in wanted:
                    holder.remove(item)
                for value in item.iter(_tag("attributeValue")) if name == "max-instances" else ():
                    value.text = str(self.settings.limit)
        return _written(reply, root)

    def _shown(self, reply: Reply, view: View) -> Reply:
        """Show the instances in the states that they are in by our ledger."""
        root = ElementTree.fromstring(reply.body)
        at = self.ledger.now() if view.at is None else view.at
        for holder in [*root.iter(_tag("instancesSet"))]:
            for item in [*holder]:
                machine = self.ledger.machines.get(_text(item, "instanceId"))
                if machine is None:
                    continue
                if machine.created > at:
                    holder.remove(item)
                elif machine.broken:
                    _alter(item, ERROR, machine)
                elif machine.deleted is not None and machine.deleted <= at:
                    continue
                else:
                    _alter(item, machine.state(at, self.settings.boot), machine)
        return _written(reply, root)


def _written(reply: Reply, root: ElementTree.Element) -> Reply:
    ElementTree.register_namespace("", NAMESPACE)
    body = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return Reply(reply.status, body, reply.headers)


def _prepare(folder: Path) -> dict[str, str]:
    """Write the images for moto; it is to refuse what is none, and types that are none."""
    images = [
        {
            "ami_id": f"ami-{number:017x}",
            "state": "available",
            "public": True,
            "owner_id": owner,
            "image_location": f"amazon/{name}",
            "sriov": "simple",
            "root_device_type": "ebs",
            "root_device_name": "/dev/xvda",
            "description": name,
            "image_type": "machine",
            "platform": None,
            "architecture": architecture,
            "name": name,
            "virtualization_type": "hvm",
            "hypervisor": "xen",
            "creation_date": "2026-01-15T10:00:00.000Z",
        }
        for number, (owner, architecture, name) in enumerate(IMAGES, 1)
    ]
    path = folder / "images.json"
    path.write_text(json.dumps(images))
    return {
        "MOTO_AMIS_PATH": str(path),
        "MOTO_ENABLE_AMI_VALIDATION": "1",
        "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "1",
    }


def _alter(item: ElementTree.Element, state: str, machine: Machine) -> None:
    if state == ERROR:
        _state(item, TERMINATED)
        reason = item.find(_tag("stateReason"))
        if reason is None:
            reason = ElementTree.SubElement(item, _tag("stateReason"))
        reason.clear()
        words = {"code": "Server.InternalError", "message": "Server.InternalError: on launch"}
        for key, value in words.items():
            ElementTree.SubElement(reason, _tag(key)).text = value
    elif state == STARTING:
        _state(item, PENDING)
    elif machine.deleted is not None:
        _state(item, ACTIVE)


def _state(item: ElementTree.Element, state: tuple[str, str]) -> None:
    for key, value in zip(("name", "code"), state, strict=True):
        found = item.find(f"{_tag('instanceState')}/{_tag(key)}")
        if found is not None:
            found.text = value


def _items(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [item for holder in root.iter(_tag("instancesSet")) for item in holder]


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _text(item: ElementTree.Element, name: str) -> str:
    return item.findtext(_tag(name), "")


def _parameters(request: Request) -> dict[str, str]:
    given = dict(request.query)
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        given |= dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
    return given


def _tags(given: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, name in given.items():
        if re.fullmatch(r"TagSpecification\.\d+\.Tag\.\d+\.Key", key):
            found[name] = given.get(key.removesuffix("Key") + "Value", "")
    return found


def _decoded(user_data: str) -> str:
    try:
        return base64.b64decode(user_data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return user_data
