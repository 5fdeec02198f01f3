"""What a browser may ask of ``micron serve``.

Any page that is open in the same browser can send requests to 127.0.0.1 too. So every answer is refused whose Host is
a name (a name of theirs may be made to lead here), and everything that changes something needs a token that stands in
the page alone, which other pages cannot read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..commands.answer import to_json
from ..data.clips.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from ..plain_text import visible
from .jobs import Job, Jobs, Refused
from .results import Looking

#: Uploads that wait to be asked for, and for how many seconds; bytes of a request that is no upload.
_UPLOADS, _UNASKED, _SMALL = 8, 600.0, 4096
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What is taken of who asks."""

    megabytes: float = 512.0
    """Of one file."""
    job_minutes: float = 20.0
    """For which one video may be worked on."""


@dataclass(frozen=True)
class _Upload:
    path: Path
    name: str
    """As its owner calls it, made harmless."""
    is_video: bool
    came: float = field(default_factory=time.monotonic)


def _host_of(authority: str) -> str:
    """The host of ``host:port``; empty if it is none."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{authority}").hostname or ""
    return ""


class _Guard:
    """Refuses what another page may have sent, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str]):
        self.app, self.token, self.names = app, token, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        refusal = self._refusal(Request(scope))
        answer = self.app if refusal is None else _sentence(refusal, 403)
        await answer(scope, receive, guarded)

    def _refusal(self, request: Request) -> str | None:
        hosts = request.headers.getlist("host")
        host = _host_of(hosts[0]) if len(hosts) == 1 else ""
        if not (host == "localhost" or host in self.names or _is_address(host)):
            return f"this page is not called {host!r} (micron serve --names allows a name)"
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != hosts[0]:
            return "asked by another page"
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and request.url.path != "/":
            return "asked by another page"
        if request.method not in ("GET", "HEAD"):
            given = request.headers.get("x-micron-token", "")
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return "this page is of an earlier start of micron serve: load it again"
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _sentence(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": visible(text)}, status)


class _App:
    def __init__(self, looking: Looking, limits: Limits, token: str):
        self.looking, self.limits, self.token = looking, limits, token
        self.jobs = Jobs(limits.job_minutes * 60)
        self.folder = Path(tempfile.mkdtemp(prefix="micron-serve-"))
        self.uploads: dict[str, _Upload] = {}
        self.pending = 0

    def close(self) -> None:
        """Stop, and delete all that was uploaded."""
        self.jobs.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def page(self, request: Request) -> Response:
        about = {
            "token": self.token,
            "classes": None if self.looking.recognizer is None else self.looking.recognizer.classes,
            "seconds": self.looking.seconds,
            "megabytes": self.limits.megabytes,
            "videos": sorted(VIDEO_SUFFIXES),
            "images": sorted(IMAGE_SUFFIXES),
        }
        # Within a script element, only "<" could end it.
        text = (files(__package__) / "page.html").read_text("utf-8")
        text = text.replace("{about}", json.dumps(about).replace("<", "\\u003c"))
        return Response(text, media_type="text/html; charset=utf-8")

    async def asset(self, request: Request) -> Response:
        kinds = {"page.js": "text/javascript", "page.css": "text/css"}
        name = request.path_params["name"]
        if name not in kinds:
            return _sentence("there is no such file", 404)
        return Response((files(__package__) / name).read_bytes(), media_type=f"{kinds[name]}; charset=utf-8")

    async def upload(self, request: Request) -> Response:
        """The body is the file; its name, of which the suffix is used, stands in the query."""
        for id, old in list(self.uploads.items()):
            if time.monotonic() - old.came > _UNASKED:
                del self.uploads[id]
                old.path.unlink(missing_ok=True)
        name = visible(Path(request.query_params.get("name", "").replace("\\", "/")).name, 200) or "a file"
        suffix = Path(name).suffix.lower()
        if suffix not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            known = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
            return _sentence(f"{name} is neither a video nor a picture ({known})", 415)
        most = round(self.limits.megabytes * 1e6)
        too_large = _sentence(
            f"{name} is larger than {self.limits.megabytes:g} MB, which are allowed (micron serve --megabytes)",
            413,
        )
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > most:
            return too_large
        if len(self.uploads) + self.pending >= _UPLOADS:
            return _sentence("too many files have come and were not asked for; try again in a while", 503)
        id = secrets.token_urlsafe(16)
        path = self.folder / f"{id}{suffix}"
        self.pending += 1
        try:
            size = 0
            with open(path, "xb") as file:
                async with asyncio.timeout(_UNASKED):
                    async for block in request.stream():
                        size += len(block)
                        if size > most:
                            return too_large
                        await asyncio.to_thread(file.write, block)
            self.uploads[id] = _Upload(path, name, suffix in VIDEO_SUFFIXES)
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            return _sentence(f"{name} did not come within {_UNASKED / 60:g} minutes", 408)
        except OSError as error:
            return _sentence(f"{name} cannot be kept: {error.strerror}", 507)
        finally:
            self.pending -= 1
            if id not in self.uploads:
                path.unlink(missing_ok=True)
        return JSONResponse({"upload": id}, 201)

    async def start(self, request: Request) -> Response:
        """Of uploads, ``{"uploads": [id, …]}``: one video, or two pictures; of none, the synthetic clip."""
        wanted = await _small_json(request)
        ids = wanted.get("uploads") if wanted is not None else None
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            return _sentence("a request that this page does not make", 400)
        if len(set(ids)) != len(ids) or not all(id in self.uploads for id in ids):
            return _sentence("what was uploaded is not there any more; give it again", 410)
        given = [self.uploads.pop(id) for id in ids]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        moved = [upload.path.rename(folder / f"{i}{upload.path.suffix}") for i, upload in enumerate(given)]
        names = {path: upload.name for path, upload in zip(moved, given, strict=True)}
        looking = self.looking
        if not given:
            job = Job(partial(looking.synthetic, folder), folder, {folder: "the synthetic clip"})
        elif [upload.is_video for upload in given] == [True]:
            job = Job(partial(looking.video, moved[0], given[0].name), folder, names)
        elif [upload.is_video for upload in given] == [False, False]:
            job = Job(lambda progress: looking.pair(moved[0], moved[1], names), folder, names)
        else:
            shutil.rmtree(folder)
            return _sentence("give one video, or two pictures: onset and apex", 400)
        try:
            self.jobs.add(job)
        except Refused as refused:
            shutil.rmtree(folder)
            return _sentence(str(refused), 503)
        return JSONResponse({"job": job.id}, 202)

    async def state(self, request: Request) -> Response:
        job = self.jobs.find(request.path_params["id"])
        if job is None:
            return _sentence("this result is not kept any more", 404)
        if request.method == "DELETE":
            self.jobs.remove(job)
            return Response(status_code=204)
        said: dict[str, Any] = {
            "state": job.state, "ahead": self.jobs.ahead_of(job), "done": job.done, "total": job.total,
            "message": job.message,
        }  # fmt: skip
        if job.state == "done" and job.result is not None:
            said["result"] = job.result.document
        return Response(to_json(said), media_type="application/json")

    async def download(self, request: Request) -> Response:
        job, name = self.jobs.find(request.path_params["id"]), request.path_params["name"]
        if job is None or job.result is None:
            return _sentence("this result is not kept any more", 404)
        if name == "candidates.json":
            return _attached(to_json(job.result.document).encode(), name, "application/json")
        if name == "micron.zip":
            return _attached(job.result.zipped(), name, "application/zip")
        if name in job.result.pictures:
            return Response(job.result.pictures[name], media_type="image/png")
        return _sentence("there is no such file", 404)


async def _small_json(request: Request) -> dict[str, Any] | None:
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > _SMALL:
            return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _attached(data: bytes, name: str, media_type: str) -> Response:
    return Response(
        data, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


def make_app(looking: Looking, limits: Limits | None = None, *, names: Collection[str] = ()) -> ASGIApp:
    """The application; what was uploaded is deleted when its lifespan ends.

    Args:
        looking: with what is looked.
        limits: what is taken.
        names: under which the page may be asked for, beside addresses and ``localhost``.
    """
    token = secrets.token_urlsafe(32)
    app = _App(looking, limits or Limits(), token)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(app.close)

    routes = [
        Route("/", app.page),
        Route("/uploads", app.upload, methods=["POST"]),
        Route("/jobs", app.start, methods=["POST"]),
        Route("/jobs/{id}", app.state, methods=["GET", "DELETE"]),
        Route("/jobs/{id}/{name}", app.download),
        Route("/{name}", app.asset),
    ]
    return _Guard(Starlette(routes=routes, lifespan=lifespan), token, names)
