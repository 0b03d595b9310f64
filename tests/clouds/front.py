"""A vendor on a port: faults, the control API, and else what the vendor answers.

==========================  ==================================================================
``GET /__sim/state``        all machines that ever were, create requests by name, faults
``POST /__sim/fault``       let something go wrong (:class:`~tests.clouds.faults.Fault`)
``DELETE /__sim/fault``     let nothing go wrong; ``/__sim/fault/ID`` only this one
``POST /__sim/settings``    ``boot`` (seconds), ``limit`` (machines), ``room`` (list of
                            ``{"region", "type", "most"}``)
``POST /__sim/reset``       forget machines, faults and settings
==========================  ==================================================================
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from .faults import Fault, Faults
from .vendor import Settings, Vendor
from .wire import TRUTH, Ask, Reply, Request, View

#: Longest request that is read, in bytes.
BODY: Final = 4 << 20


class Front:
    """One vendor, behind its faults."""

    def __init__(self, vendor: Vendor) -> None:
        self.vendor, self.faults = vendor, Faults()
        self._settings = Settings(vendor.settings.boot, vendor.settings.limit)
        # One machine at a time, so that a limit holds and a token buys once.
        self._making = asyncio.Lock()

    def app(self) -> web.Application:
        """Give it as an application of aiohttp."""
        app = web.Application(client_max_size=BODY)
        app.router.add_get("/__sim/state", self._state)
        app.router.add_post("/__sim/fault", self._fault)
        app.router.add_delete("/__sim/fault", self._mend)
        app.router.add_delete("/__sim/fault/{id:[0-9]+}", self._mend)
        app.router.add_post("/__sim/settings", self._set)
        app.router.add_post("/__sim/reset", self._reset)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    async def _serve(self, raw: web.Request) -> web.StreamResponse:
        request = await _read(raw)
        try:
            ask = self.vendor.read(request)
        except ValueError as error:
            return web.json_response({"message": str(error)}, status=400)
        ledger = self.vendor.ledger
        ledger.requests[ask.operation] += 1
        if ask.operation == "create":
            ledger.creates[ask.name] += 1
        fault = self.faults.take(ask)
        if fault is not None and fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
            # Cut, as a broken line is: no answer of any kind.
            if raw.transport is not None:
                raw.transport.abort()
            return web.Response()
        reply = await self._reply(request, ask, fault)
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.headers))

    async def _reply(self, request: Request, ask: Ask, fault: Fault | None) -> Reply:
        if not self.vendor.knows(request):
            return self._refuse("auth", ask)
        kind = fault.kind if fault is not None else ""
        if ask.operation == "create":
            async with self._making:
                kind = kind or self.vendor.full(ask)
                reply = await self._answer(request, ask, kind, fault)
        else:
            reply = await self._answer(request, ask, kind, fault)
        if kind == "created_error":
            return self._refuse("server", ask, fault)
        if kind == "created_slow" and fault is not None:
            await asyncio.sleep(fault.seconds)
        return reply

    async def _answer(self, request: Request, ask: Ask, kind: str, fault: Fault | None) -> Reply:
        if kind == "delete_fails":
            return self._refuse("server", ask, fault)
        if kind in self.vendor.refusals:
            return self._refuse(kind, ask, fault)
        return await self.vendor.answer(request, ask, self._view(kind, fault))

    def _view(self, kind: str, fault: Fault | None) -> View:
        if kind == "no_price" and fault is not None:
            return View(unpriced=fault.type or "*")
        if kind == "stale" and fault is not None:
            ledger = self.vendor.ledger
            at = ledger.before(fault.changes) if fault.changes else ledger.now() - fault.seconds
            return View(at=at)
        # Without a refusal of its own the vendor accepts, and what it makes never runs.
        return View(broken=kind) if kind in ("capacity", "error_state") else TRUTH

    def _refuse(self, kind: str, ask: Ask, fault: Fault | None = None) -> Reply:
        refusal, headers = self.vendor.refusals[kind], dict[str, str]()
        if fault is not None and fault.status is not None:
            refusal = replace(refusal, status=fault.status)
        if fault is not None and fault.after is not None:
            headers["Retry-After"] = str(fault.after)
        return self.vendor.refuse(refusal, ask, headers)

    async def _state(self, _: web.Request) -> web.StreamResponse:
        state = {"vendor": self.vendor.name, **self.vendor.ledger.row()}
        return web.json_response({**state, "faults": self.faults.rows()})

    async def _fault(self, raw: web.Request) -> web.StreamResponse:
        try:
            fault = Fault(**await _object(raw))
            if fault.kind == "no_price" and not self.vendor.prices:
                raise ValueError(
                    f"{self.vendor.name} lists no prices; libcloud has them in a table"
                )
        except (TypeError, ValueError) as error:
            return _bad(error)
        return web.json_response(self.faults.add(fault).row())

    async def _mend(self, raw: web.Request) -> web.StreamResponse:
        if "id" in raw.match_info:
            self.faults.remove(int(raw.match_info["id"]))
        else:
            self.faults.clear()
        return web.json_response({})

    async def _set(self, raw: web.Request) -> web.StreamResponse:
        try:
            given = await _object(raw)
            room = {(r["region"], r["type"]): int(r["most"]) for r in given.pop("room", [])}
            settings = self.vendor.settings
            new = Settings(
                float(given.pop("boot", settings.boot)), int(given.pop("limit", settings.limit))
            )
            if given:
                raise ValueError(f"no such setting: {', '.join(given)}")
        except (TypeError, KeyError, ValueError) as error:
            return _bad(error)
        new.room = room or settings.room
        self.vendor.settings = new
        return web.json_response({})

    async def _reset(self, _: web.Request) -> web.StreamResponse:
        self.faults.clear()
        self.vendor.settings = Settings(self._settings.boot, self._settings.limit)
        await self.vendor.reset()
        return web.json_response({})


async def _read(raw: web.Request) -> Request:
    headers = {name.lower(): value for name, value in raw.headers.items()}
    return Request(raw.method, raw.path, raw.query, headers, await raw.read(), raw.raw_path)


async def _object(raw: web.Request) -> dict[str, Any]:
    return (await _read(raw)).object()


def _bad(error: Exception) -> web.StreamResponse:
    return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
