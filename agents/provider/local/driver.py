"""A libcloud driver whose machines are processes of this machine.

A machine is there as soon as its record is on disk, and that is before it has a process; so nothing
runs that nobody knows of, whenever we are killed.  It outlives us, and whoever opens the same folder
next finds it again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

import structlog
from libcloud.common.types import ProviderError
from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.types import NodeState

from ...deployment.logs import LogFile
from ...errors import one_line
from ...process import kill_marked
from . import warden
from .identity import Identity
from .isolation import IDLE, PATH, Bubblewrap, Isolation, Plain, Plan, packing
from .nspawn import Nspawn
from .size import SIZES, LocalSize, arch
from .store import IMAGE, MACHINE, Image, Record, Store, new_id

log = structlog.get_logger()

#: How machines are kept apart; ``auto`` is bubblewrap where that works, and else process.
IsolationName = Literal["auto", "process", "bubblewrap", "nspawn"]

#: Bytes of user-data; as much as the most generous vendor takes.
MAX_USER_DATA: Final = 64 * 1024
#: Bytes of a machine's console log that are kept.
MAX_CONSOLE: Final = 4 * 1024 * 1024
#: Seconds that a warden may take beyond its machine's time to end.
WARDEN_WITHIN: Final = 3.0
#: Machines that are ended at once.
AT_ONCE: Final = 8

#: Nothing is reached through it but this machine itself, as the network is shared.
ADDRESS: Final = "127.0.0.1"

_MIB: Final = 1024**2
_GIB: Final = 1024**3
#: A label of a host name (RFC 1123, 2.1).
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class LocalNodeDriver(NodeDriver):
    """Machines that are groups of processes here.  Linux 5.3 or later.

    Its methods block; it may be used by several threads, and several drivers, also in several
    processes, may share one folder.  Errors are :class:`~libcloud.common.types.ProviderError` with
    the ``http_code`` that a vendor would give: 400 for what can never be, 409 for a name that is
    taken, 503 with ``InsufficientCapacity`` in its text when there is no room.

    A machine's user-data is a ``#!/bin/sh`` script, which is run in the machine's own folder and is
    both its boot and its main process: the machine ends when the script does, so at its end it
    execs what is to keep running.  It is given ``SPINAL_MACHINE_ID``, ``SPINAL_MACHINE_NAME``,
    ``SPINAL_MACHINE_DIR`` (the folder, also ``HOME``), ``SPINAL_PYTHON`` (an interpreter that has
    the Spinal that is here), ``PATH``, ``LANG`` and ``environment``; nothing else of ours.
    A machine with a system of its own (nspawn) has what that has, and no ``SPINAL_PYTHON``; its
    script is run by cloud-init, and may end without the machine.

    A machine that ends with an exit code from 1 to 127 has state ``ERROR``, else ``STOPPED``; it is
    listed until it is destroyed.

    A size's memory is the most that one process of the machine may have (RLIMIT_DATA).  Nothing
    limits what they have together, nor processors or disk: put the provider agent into a cgroup
    where that matters.  Machines are in it as well, so what ends a whole cgroup ends them, as systemd
    does with a service that it stops unless it says ``KillMode=process``.

    Args:
        folder: where machines and images are.
        sizes: what there is to rent, by name.
        currency: of their prices.
        limit: most machines at a time, also those that have ended and are not destroyed.
        isolation: how machines are kept apart.
        regions: names of locations; the first is used where none is given.
        environment: variables for every machine.
        root: system that nspawn machines begin with (:mod:`.image`).
        capacity: most machines of ``REGION/SIZE``; those that are not named have no limit of their own.
        boot_delay: seconds before a machine begins.
        hidden: folders that bubblewrap machines do not see.
        console: bytes of each console log that are kept.

    Raises:
        ValueError: a setting cannot be right, or its isolation cannot be used here.
    """

    name = "Local machine"
    website = "https://libcloud.apache.org/"
    type = "local"
    api_name = "local"
    features = {"create_node": []}  # noqa: RUF012 - as in libcloud

    def __init__(
        self,
        folder: Path,
        *,
        sizes: Mapping[str, LocalSize] = SIZES,
        currency: str = "EUR",
        limit: int = 8,
        isolation: IsolationName = "auto",
        regions: Sequence[str] = ("local",),
        environment: Mapping[str, str] = MappingProxyType({}),
        root: Path | None = None,
        capacity: Mapping[str, int] = MappingProxyType({}),
        boot_delay: float = 0.0,
        hidden: Sequence[Path] = (),
        console: int = MAX_CONSOLE,
    ) -> None:
        # Not NodeDriver's: that opens an HTTP connection.
        if not sizes or not regions:
            raise ValueError("it takes at least one size and one region")
        if limit < 1:
            raise ValueError("limit must be at least 1")
        known = {f"{region}/{size}" for region in regions for size in sizes}
        if strange := sorted(set(capacity) - known):
            raise ValueError(f"capacity of {strange[0]!r}: there are {', '.join(sorted(known))}")
        self.key = ""
        self.secret = None
        self.region = regions[0]
        self._store = Store(Path(folder).resolve())
        self._sizes = dict(sizes)
        self._currency = currency
        self._limit = limit
        self._regions = tuple(regions)
        self._environment = dict(environment)
        self._capacity = dict(capacity)
        self._boot_delay = boot_delay
        self._console = console
        self._isolation = _chosen(isolation, root, hidden)

    # -- what there is

    def list_locations(self) -> list[NodeLocation]:
        """Give the regions."""
        return [NodeLocation(id=name, name=name, country="", driver=self) for name in self._regions]

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """Give the sizes, which are the same everywhere; prices are of an hour."""
        return [self._size(name) for name in self._sizes]

    def list_images(self, location: NodeLocation | None = None) -> list[NodeImage]:
        """Give what machines can begin with: nothing but a system, and the images that were made."""
        name = self._isolation.image
        return [NodeImage(id=name, name=name, driver=self), *map(self._image, self._images())]

    def list_nodes(self) -> list[Node]:
        """Give all machines, also those that have ended, oldest first."""
        with self._store.locked(shared=True):
            return [self._node(record) for record in self._store.records()]

    # -- machines

    def create_node(  # type: ignore[override]  # as all drivers, with arguments of its own
        self,
        name: str,
        size: NodeSize,
        image: NodeImage,
        location: NodeLocation | None = None,
        auth: None = None,
        ex_userdata: str | bytes | None = None,
        ex_metadata: Mapping[str, str] | None = None,
    ) -> Node:
        """Start a machine; one without user-data idles.

        Raises:
            ProviderError: see the class; there is no machine then.
        """
        region = self._regions[0] if location is None else location.id
        data = ex_userdata.encode() if isinstance(ex_userdata, str) else ex_userdata or IDLE
        self._check(name, size.id, image.id, region, data)
        now = _now()
        record = Record(
            id=new_id(MACHINE),
            name=name,
            region=region,
            size=size.id,
            image=image.id,
            isolation=self._isolation.name,
            created=now,
            begins=now + round(self._boot_delay * 1000),
            metadata=dict(ex_metadata or {}),
        )
        with self._store.locked():
            self._store.sweep()
            self._check_room(record, self._store.records())
            try:
                self._store.add(record, data)
                record = self._start(record)
            except OSError as exc:
                self._end(record)
                self._store.remove(record.id)
                raise ProviderError(f"InternalError: cannot start it: {exc}", 500, self) from exc
            return self._node(record)

    def destroy_node(self, node: Node) -> bool:
        """End a machine with all that it has started, and delete what it left.

        Blocks until that is done, at most a few seconds.  One that is gone already is no mistake.
        """
        # With the lock, so that one that is being started by others has a process.
        with self._store.locked(shared=True):
            record = self._find(str(node.id))
        if record is not None:
            self._end(record)
            self._store.remove(record.id)
        return True

    def end_all(self) -> None:
        """Destroy every machine."""
        nodes = self.list_nodes()
        if nodes:
            with ThreadPoolExecutor(min(AT_ONCE, len(nodes))) as pool:
                list(pool.map(self.destroy_node, nodes))

    def ex_get_console_output(self, node: Node, lines: int = 200) -> str:
        """Give the last lines that a machine wrote; empty if there is no such one."""
        place = self._store.at(str(node.id))
        return "\n".join(LogFile(place / "console.log", self._console).tail(lines))

    # -- images

    def create_image(self, node: Node, name: str, description: str | None = None) -> NodeImage:  # type: ignore[override]  # libcloud's says a list, and means one
        """Keep a machine's own folder (of an nspawn machine, all that it changed) as an image.

        The machine goes on meanwhile: what it writes just then may be in it or not.

        Raises:
            ProviderError: 404 if there is no such machine; 500 if it cannot be written.
        """
        with self._store.locked(shared=True):
            record = self._find(str(node.id))
        if record is None:
            raise ProviderError(f"NotFound: there is no machine {node.id!r}", 404, self)
        image = Image(
            id=new_id(IMAGE),
            name=name,
            description=description or "",
            kept=KINDS[record.isolation].kept,
            created=_now(),
        )
        argv = packing(self._store.at(record.id), image.kept)
        try:
            with self._store.draft(image) as file:
                done = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False
                )
                if done.returncode not in (0, 1):
                    raise OSError(one_line(done.stderr.decode(errors="replace"), 300))
        except OSError as exc:
            raise ProviderError(f"InternalError: cannot keep it: {exc}", 500, self) from exc
        return self._image(image)

    def delete_image(self, node_image: NodeImage) -> bool:
        """Delete an image that was made; machines that were made from it are none the worse.

        Raises:
            ProviderError: 400 if it is the system that is there from the beginning.
        """
        if not node_image.id.startswith(IMAGE):
            raise ProviderError(f"InvalidParameter: {node_image.id!r} cannot be deleted", 400, self)
        self._store.delete(self.get_image(node_image.id).id)
        return True

    def get_image(self, image_id: str) -> NodeImage:
        """Give one image.

        Raises:
            ProviderError: 404 if there is no such one.
        """
        for image in self.list_images():
            if image.id == image_id:
                return image
        raise ProviderError(f"NotFound: there is no image {image_id!r}", 404, self)

    def _images(self) -> list[Image]:
        """Give those that fit to our isolation."""
        return [image for image in self._store.images() if image.kept == self._isolation.kept]

    def _image(self, image: Image) -> NodeImage:
        extra = {"description": image.description, "created": image.created}
        return NodeImage(id=image.id, name=image.name, driver=self, extra=extra)

    # -- starting

    def _check(self, name: str, size: str, image: str, region: str, data: bytes) -> None:
        """Refuse what can never be."""
        images = [one.id for one in self.list_images()]
        long = f"user-data has {len(data)} bytes, and may have {MAX_USER_DATA}"
        for wrong, said in (
            (not _NAME.fullmatch(name), f"name {name!r:.80} is not a host name's label"),
            (size not in self._sizes, f"size {size!r}: there are {', '.join(self._sizes)}"),
            (image not in images, f"image {image!r}: there are {', '.join(images)}"),
            (
                region not in self._regions,
                f"region {region!r}: there are {', '.join(self._regions)}",
            ),
            (len(data) > MAX_USER_DATA, long),
            (self._isolation.refuses(data), self._isolation.refuses(data)),
        ):
            if wrong:
                raise ProviderError(f"InvalidParameter: {said}", 400, self)

    def _check_room(self, record: Record, others: Sequence[Record]) -> None:
        """Refuse what cannot be now."""
        if any(other.name == record.name for other in others):
            raise ProviderError(f"NameExists: there is a machine {record.name!r}", 409, self)
        kind = f"{record.region}/{record.size}"
        alike = sum(f"{other.region}/{other.size}" == kind for other in others)
        for what, there, most in (
            ("machines", len(others), self._limit),
            (kind, alike, self._capacity.get(kind, self._limit)),
        ):
            if there >= most:
                said = f"InsufficientCapacity: {there} of {most} {what} are taken"
                raise ProviderError(said, 503, self)

    def _start(self, record: Record) -> Record:
        """Start the warden, write down which it is, and only then let it begin."""
        plan = self._plan(record)
        orders = self._isolation.orders(plan, self._boot_delay, self._console)
        argv = [*self._isolation.wrapper, sys.executable, "-I", "-S", warden.__file__, record.id]
        # What it says itself are errors of ours, which are best read beside what the machine says.
        with (plan.place / "console.log").open("ab") as said:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                cwd="/",
                env={"PATH": plan.path, "SPINAL_MACHINE_ID": record.id},
                start_new_session=True,
            )
        threading.Thread(target=process.wait, name=f"reaps {record.id}", daemon=True).start()
        assert process.stdin is not None, "asked for"
        with suppress(BrokenPipeError), process.stdin as pipe:  # It has died, which will be seen.
            identity = Identity.of(process.pid)
            record = replace(record, pid=identity.pid, start=identity.start, boot=identity.boot)
            self._store.put(record)
            pipe.write(json.dumps(orders).encode() + b"\n")
        return record

    def _plan(self, record: Record) -> Plan:
        return Plan(
            id=record.id,
            name=record.name,
            place=self._store.at(record.id),
            folder=self._store.folder,
            ram=self._sizes[record.size].ram,
            environment=self._environment,
            path=os.environ.get("PATH", PATH),
            archive=self._store.archive(record.image) if record.image.startswith(IMAGE) else None,
        )

    # -- looking

    def _find(self, id: str) -> Record | None:
        """Give a machine that there is; hold the lock."""
        return next((record for record in self._store.records() if record.id == id), None)

    def _node(self, record: Record) -> Node:
        state, said = self._state(record)
        return Node(
            id=record.id,
            name=record.name,
            state=state,
            public_ips=[ADDRESS],
            private_ips=[ADDRESS],
            driver=self,
            size=self._size(record.size) if record.size in self._sizes else None,
            image=NodeImage(id=record.image, name=record.image, driver=self),
            extra={
                "region": record.region,
                "size": record.size,
                "metadata": dict(record.metadata),
                "isolation": record.isolation,
                "pid": record.pid,
                "created": record.created,
                "said": said,
                # Its own, as it is seen from here.
                "folder": str(self._store.at(record.id) / KINDS[record.isolation].kept),
            },
            created_at=datetime.fromtimestamp(record.created / 1000, UTC),
        )

    def _state(self, record: Record) -> tuple[NodeState, str]:
        """Tell how a machine is, and why if it is not well."""
        identity = record.warden
        if identity is None:
            return NodeState.ERROR, "it was never started: whoever was about to was killed"
        if identity.lives():
            return (NodeState.PENDING if _now() < record.begins else NodeState.RUNNING), ""
        ended = self._store.ended(record.id)
        if ended is None:
            # Its warden was killed.  What is called stopped must not go on without one.
            kill_marked(_mark(record.id))
            return NodeState.STOPPED, "it was killed"
        code = ended["code"]
        if code == 0:
            return NodeState.STOPPED, "its user-data came to an end"
        # A shell, and bubblewrap, tell of a signal by 128 and more.
        if not 0 < code < 128:
            return NodeState.STOPPED, f"it was killed by signal {abs(code) % 128}"
        last = LogFile(self._store.at(record.id) / "console.log", self._console).tail(1)
        return NodeState.ERROR, one_line(f"ended with exit code {code}: {' '.join(last)}", 300)

    def _size(self, name: str) -> NodeSize:
        size = self._sizes[name]
        return NodeSize(
            id=name,
            name=name,
            ram=size.ram // _MIB,
            disk=size.disk // _GIB,
            bandwidth=None,
            price=size.price,
            driver=self,
            extra={"vcpus": size.cpu, "currency": self._currency, "arch": arch()},
        )

    # -- ending

    def _end(self, record: Record) -> None:
        identity = record.warden
        if identity is not None:
            identity.signal(signal.SIGTERM)
            if not identity.gone(KINDS[record.isolation].grace + WARDEN_WITHIN):
                log.warning("warden_hangs", machine=record.id, pid=identity.pid)
                identity.signal(signal.SIGKILL)
                identity.gone(WARDEN_WITHIN)
        # If the warden was killed, it could not see to the rest.
        kill_marked(_mark(record.id))
        KINDS[record.isolation].clear(record.id)


def _mark(id: str) -> str:
    """Give the variable that every process of a machine has."""
    return f"SPINAL_MACHINE_ID={id}"


def _now() -> int:
    return round(time.time() * 1000)


#: All ways to keep machines apart: the settings may have named another one when one was started.
KINDS: Final[Mapping[str, type[Isolation]]] = {
    kind.name: kind for kind in (Plain, Bubblewrap, Nspawn)
}


def _chosen(name: IsolationName, root: Path | None, hidden: Sequence[Path]) -> Isolation:
    """Give the isolation that is asked for.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        best = Bubblewrap(hidden)
        why = best.missing()
        if not why:
            return best
        log.info("machines_not_isolated", why=why)
        name = "process"
    table: dict[str, Callable[[], Isolation]] = {
        "process": Plain,
        "bubblewrap": lambda: Bubblewrap(hidden),
        "nspawn": lambda: Nspawn(root),
    }
    if name not in table:
        raise ValueError(f"isolation {name!r}: one of {', '.join(get_args(IsolationName))}")
    isolation = table[name]()
    if why := isolation.missing():
        raise ValueError(f"isolation {name!r} cannot be used: {why}")
    return isolation
