"""OpenStack as Rackspace has it (Keystone 2, Nova 2): mimic, with what it lacks.

Where there is no room Nova accepts all the same, and the server goes to ERROR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from .ledger import ERROR, STARTING, Machine
from .rest import plain, stamp
from .upstream import BIN, Upstream
from .vendor import TOKEN, Refusal, Settings, Vendor
from .wire import Ask, Reply, Request, View

_PATH: Final = re.compile(r"/mimicking/NovaApi-[0-9a-f]+/(?P<region>[A-Z]+)/v2/[^/]+(?P<rest>/.*)")

#: Method and rest of the path, and the operation.
ROUTES: Final = tuple(
    (method, re.compile(path), operation)
    for method, path, operation in (
        ("POST", "/servers", "create"),
        ("GET", "/servers(/detail)?", "list"),
        ("GET", "/servers/(?P<id>[^/]+)", "one"),
        ("DELETE", "/servers/(?P<id>[^/]+)", "delete"),
        ("POST", "/servers/(?P<id>[^/]+)/action", "freeze"),
        ("GET", "/flavors(/detail)?", "sizes"),
        ("GET", "/images(/.*)?", "images"),
        ("GET", "/limits", "limits"),
    )
)

#: Regions of three continents; mimic alone has the American ones.
REGIONS: Final = ("ORD", "DFW", "IAD", "LON", "SYD", "HKG")

#: Images of mimic, which is of 2016, and what they are called here.
NAMES: Final = {
    "Debian 7 (Wheezy) (PVHVM)": "Debian 12 (Bookworm) (PVHVM)",
    "Debian 8 (Jessie) (PVHVM)": "Debian 13 (Trixie) (PVHVM)",
    "Ubuntu 12.04 LTS (Precise Pangolin) (PVHVM)": "Ubuntu 22.04 LTS (Jammy Jellyfish) (PVHVM)",
    "Ubuntu 14.04 LTS (Trusty Tahr) (PVHVM)": "Ubuntu 24.04 LTS (Noble Numbat) (PVHVM)",
}

#: Starts mimic, as its program `twistd` does, with these regions and images.
START: Final = f"""
from mimic.model import rackspace_images
from mimic.plugins import nova_plugin
from twisted.scripts.twistd import run
nova_plugin.nova._regions = {[*REGIONS]!r}
for kind in (rackspace_images.RackspaceDebianImage, rackspace_images.RackspaceUbuntuPVHMImage):
    kind.images = {{{NAMES!r}.get(name, name): image for name, image in kind.images.items()}}
run()
"""

#: What Nova says of a server that never runs.
WORDS: Final = {
    "capacity": "No valid host was found. There are not enough hosts available.",
    "error_state": "Build of instance aborted: Failed to allocate the network(s), not rescheduling.",
}


class OpenStack(Vendor):
    """Keystone and Nova."""

    name = "openstack"
    prices = False
    #: Without one for capacity: see above.
    refusals: ClassVar[Mapping[str, Refusal]] = {
        "quota": Refusal(
            403,
            "forbidden",
            "Quota exceeded for cores: Requested 2, but already used 20 of 20 cores",
        ),
        "auth": Refusal(401, "unauthorized", "No valid token provided. Please renew your token."),
        "rate": Refusal(429, "overLimit", "This request was rate-limited."),
        "server": Refusal(
            500,
            "computeFault",
            "Unexpected API Error. Please report this at http://bugs.launchpad.net/nova/"
            " and attach the Nova API log if possible.",
        ),
    }

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.upstream = Upstream(
            lambda port, folder: [
                *(str(BIN / "python"), "-c", START, "--nodaemon", f"--pidfile={folder / 'pid'}"),
                *("mimic", "--realtime", "--listen", f"tcp:{port}:interface=127.0.0.1"),
            ]
        )

        #: Requests by which the machines were made, to delete them by.
        self._made_by: dict[str, Request] = {}
        self._frozen = False

    async def reset(self) -> None:
        """Forget everything."""
        living = self.ledger.living(self.ledger.now())
        if self._frozen:
            # mimic deletes no image.
            await self.upstream.stop()
            await self.upstream.start()
        else:
            for machine in living:
                request = self._made_by[machine.id]
                target = f"{request.path}/{machine.id}"
                await self.upstream.ask(request, method="DELETE", target=target, body=b"")
        await super().reset()
        self._made_by.clear()
        self._frozen = False

    def read(self, request: Request) -> Ask:
        """Say what a request is for."""
        path = _PATH.fullmatch(request.path)
        if path is None:
            return Ask("other")
        operation, id = _route(request.method, path["rest"])
        if operation == "create":
            server = request.object().get("server", {})
            flavour, name = str(server.get("flavorRef", "")), str(server.get("name", ""))
            return Ask("create", path["region"], flavour, name)
        machine = self.ledger.machines.get(id)
        if machine is None:
            return Ask(operation, path["region"], id=id)
        return Ask(operation, path["region"], machine.type, machine.name, id)

    def knows(self, request: Request) -> bool:
        """Say whether it has a token, or the password for one."""
        if not request.path.endswith("/v2.0/tokens"):
            return "x-auth-token" in request.headers or _PATH.fullmatch(request.path) is None
        given = request.object().get("auth", {})
        password = given.get("passwordCredentials", {}).get("password")
        return TOKEN in (password, given.get("RAX-KSKEY:apiKeyCredentials", {}).get("apiKey"))

    def refuse(self, refusal: Refusal, ask: Ask, headers: Mapping[str, str]) -> Reply:
        """Say an error as Nova does."""
        said = {"message": refusal.said, "code": refusal.status}
        return Reply.of(refusal.status, {refusal.code: said}, headers)

    async def answer(self, request: Request, ask: Ask, view: View) -> Reply:
        """Let mimic carry it out."""
        machine = self.ledger.machines.get(ask.id)
        if ask.operation == "delete" and machine is not None and machine.deleted is None:
            # As it is now, for lists that are stale later.
            before = await self.upstream.ask(request, method="GET")
            machine.shown = json.loads(before.body).get("server")
        reply = await self.upstream.ask(request)
        if reply.status >= 300:
            return reply
        if ask.operation == "create":
            self._made(request, ask, view, json.loads(reply.body))
        elif ask.operation == "delete" and machine is not None:
            self.ledger.delete(machine)
        elif ask.operation == "freeze" and "createImage" in request.object():
            return await self._froze(request, reply)
        elif ask.operation == "limits":
            value = json.loads(reply.body)
            living = [m for m in self.ledger.living(self.ledger.now()) if m.region == ask.region]
            own = {"maxTotalInstances": self.settings.limit, "totalInstancesUsed": len(living)}
            value["limits"]["absolute"] |= own
            return Reply.of(reply.status, value)
        elif ask.operation == "images":
            # Of a saved image mimic does not tell its times, which libcloud wants.
            value = json.loads(reply.body)
            for image in (*value.get("images", ()), *filter(None, (value.get("image"),))):
                image.setdefault("created", stamp(self.ledger.now()))
                image.setdefault("updated", image["created"])
            return Reply.of(reply.status, value)
        elif ask.operation in ("list", "one"):
            return self._shown(reply, request, ask, view)
        return reply

    def _made(self, request: Request, ask: Ask, view: View, answer: Any) -> None:
        """Write down what mimic made."""
        server: dict[str, Any] = request.object()["server"]
        metadata: dict[str, Any] = server.get("metadata") or {}
        ledger = self.ledger
        machine = Machine(
            ask.name,
            answer["server"]["id"],
            ask.type,
            ask.region,
            ledger.now(),
            ledger.number(),
            image=str(server.get("imageRef", "")),
            tags={str(key): str(value) for key, value in metadata.items()},
            user_data=plain(server.get("user_data") or ""),
            broken=view.broken,
        )
        ledger.add(machine)
        self._made_by[machine.id] = request

    async def _froze(self, request: Request, reply: Reply) -> Reply:
        """Say where the new image is, as Nova does; mimic names a place that is none."""
        self._frozen = True
        base = request.path.partition("/servers/")[0]
        listed = await self.upstream.ask(
            request, method="GET", target=f"{base}/images/detail", body=b""
        )
        name = request.object()["createImage"]["name"]
        ids = [i["id"] for i in json.loads(listed.body)["images"] if i["name"] == name]
        place = f"http://{request.headers['host']}{base}/images/{ids[-1]}"
        return Reply(reply.status, reply.body, {**reply.headers, "Location": place})

    def _shown(self, reply: Reply, request: Request, ask: Ask, view: View) -> Reply:
        """Show the servers in the states that they are in by our ledger."""
        value = json.loads(reply.body)
        at = self.ledger.now() if view.at is None else view.at
        if ask.operation == "one":
            self._alter(value["server"], at)
            return Reply.of(reply.status, value)
        servers = [server for server in value["servers"] if self._there(server, at)]
        if view.at is not None and "name" not in request.query:
            gone = [m for m in self.ledger.living(at) if m.deleted is not None and m.shown]
            servers += [dict(m.shown) for m in gone if m.region == ask.region]
        for server in servers:
            self._alter(server, at)
        return Reply.of(reply.status, {**value, "servers": servers})

    def _there(self, server: Mapping[str, Any], at: float) -> bool:
        machine = self.ledger.machines.get(str(server["id"]))
        return machine is None or machine.created <= at

    def _alter(self, server: dict[str, Any], at: float) -> None:
        machine = self.ledger.machines.get(str(server["id"]))
        if machine is None or "status" not in server:
            return
        state = machine.state(at, self.settings.boot)
        if state == ERROR:
            said = WORDS.get(machine.broken, WORDS["error_state"])
            server |= {"status": "ERROR", "progress": 0, "OS-EXT-STS:vm_state": "error"}
            server["fault"] = {"message": said, "code": 500, "created": server["updated"]}
            server["addresses"] = {}
        elif state == STARTING:
            server |= {"status": "BUILD", "progress": 0, "OS-EXT-STS:vm_state": "building"}
            server["addresses"] = {}


def _route(method: str, rest: str) -> tuple[str, str]:
    for wanted, path, operation in ROUTES:
        match = path.fullmatch(rest)
        if match is not None and method == wanted:
            return operation, match.groupdict().get("id") or ""
    return "other", ""
