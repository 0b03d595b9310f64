"""A web page that hands its work to whoever is on the bus: ``uvicorn app:app``."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from html import escape
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from spinal.bus import Blob, CallError, Client
from spinal.protocols import SpinalError

#: Most bytes of an upload; what a web page takes from strangers has to have an end.
MOST: Final = 16_000_000
LABEL: Final = "webapp"
UNKNOWN: Final = "There is no such photograph."
FORM: Final = """<form method=post enctype=multipart/form-data>
<input type=file name=photo accept="image/*" required> <button>Make a thumbnail</button></form>"""
HEAD: Final = '<!doctype html><html lang=en><meta name=viewport content="width=device-width">'
STYLE: Final = (
    "body{font:1.1em/1.5 system-ui,sans-serif;max-width:36em;margin:3em auto;padding:0 1em}"
)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[Mapping[str, Any]]:
    async with Client() as bus:
        yield {"bus": bus}


def page(title: str, body: str, status: int = 200, again: bool = False) -> HTMLResponse:
    refresh = "<meta http-equiv=refresh content=1>" if again else ""
    head = f"{HEAD}<title>{title}</title><style>{STYLE}</style>{refresh}"
    return HTMLResponse(f"{head}<h1>{title}</h1>{body}", status)


async def form(request: Request) -> Response:
    return page("Thumbnails", FORM)


async def upload(request: Request) -> Response:
    if not 0 < int(request.headers.get("content-length", 0)) <= MOST:
        raise HTTPException(413, f"A photograph may have at most {MOST:,} bytes.")
    async with request.form(max_files=1, max_fields=1) as fields:
        photo = fields.get("photo")
        if not isinstance(photo, UploadFile) or not photo.size:
            raise HTTPException(400, "Choose a photograph first.")
        blob = Blob.of(await photo.read(), photo.content_type)
    bus = request.state.bus.options(label=LABEL, deadline="10m", max_run="1m", retry=2)
    job = await bus.submit("/image/thumbnail", photo=blob, size=320)
    return RedirectResponse(f"/jobs/{job.id}", 303)


async def row(request: Request) -> dict[str, Any]:
    """What is known of the job in the address; of other programs' jobs nothing is."""
    try:
        job = request.state.bus.job(request.path_params["id"])
    except ValueError as exc:
        raise HTTPException(404, UNKNOWN) from exc
    found: dict[str, Any] = await job.wait(0)
    if LABEL not in found.get("labels", ()):
        raise HTTPException(404, UNKNOWN)
    return found


async def show(request: Request) -> Response:
    match await row(request):
        case {"state": "done", "id": id}:
            image, download = f"/jobs/{id}/thumbnail", f"download=thumbnail-{id}"
            links = f'<a href="{image}" {download}>Download</a> · <a href="/">Another one</a>'
            return page("Your thumbnail", f'<p><img src="{image}" alt="your thumbnail"><p>{links}')
        case {"state": "error" | "killed", "problem": problem}:
            return failed(request, HTTPException(422, problem["text"]))
        case {"state": state}:
            return page("At work on it", f"<p>The job is {state}: one moment.", again=True)
        case _:
            raise AssertionError("a row has a state")


async def thumbnail(request: Request) -> Response:
    blob = (await row(request)).get("value")
    if not isinstance(blob, Blob):
        raise HTTPException(404, "The thumbnail is not there yet.")
    return Response(await blob.read(), media_type=blob.media_type)


def failed(request: Request, error: Exception) -> Response:
    """Every error is a page that says what is wrong, and 503 looks again by itself."""
    status, text = 503, str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    elif isinstance(error, CallError) and error.reason == "unknown-job":
        status, text = 404, UNKNOWN
    body = f'<p>{escape(text)}<p><a href="/">Try another one</a>'
    return page("That did not work", body, status, again=status == 503 and request.method == "GET")


app = Starlette(
    routes=[
        Route("/", form),
        Route("/", upload, methods=["POST"]),
        Route("/jobs/{id}", show),
        Route("/jobs/{id}/thumbnail", thumbnail),
    ],
    exception_handlers={HTTPException: failed, SpinalError: failed},
    lifespan=lifespan,
)
