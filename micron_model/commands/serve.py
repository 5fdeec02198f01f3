"""``micron serve``: a page in the browser."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

import tyro
from rich.console import Console

from ..loading import load_model, load_recognizer
from ..plain_text import say
from ..progress import working
from ..recognizers.base import recipe_class
from ..recognizers.micron_bert import MicronBERTRecognizer
from ..spotting import SpotConfig


@dataclass
class Serve:
    """Show a page in the browser that finds movements of a face in a video, and compares two pictures.

    What is dropped on it is worked on here, by this machine alone, and deleted afterwards.
    """

    model: str | None = None
    """A recognizer that names the class of each short movement: a folder (`micron finetune` writes one), or
    hf://owner/name. Without one, no class is named."""
    recognizer: str | None = None
    """Of a recognizer outside this package: what it is, package.module:Recipe."""
    maps: str | None = None
    """A μ-BERT for maps of micro-attention and Patch of Interest: a folder (`micron pretrain` and `micron demo` write
    one), or hf://owner/name. That of the recognizer, if not given and it has one."""
    host: str = "127.0.0.1"
    """Address to listen at. With another than this one, whoever reaches this machine can use the page."""
    port: int = 8760
    """0 takes one that is free."""
    names: tuple[str, ...] = ()
    """Names of this machine under which the page may be asked for, beside addresses and localhost."""
    megabytes: float = 512
    """The largest file that is taken."""
    seconds: float = 180
    """The longest video that is taken."""
    job_minutes: float = 20
    """For how long one video may be worked on."""
    spot: tyro.conf.OmitArgPrefixes[SpotConfig] = field(default_factory=SpotConfig)

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "job_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; it must be positive")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port={self.port}; it must lie in [0, 65535]")

    def run(self, console: Console) -> None:
        try:
            import uvicorn

            from ..web.app import Limits, make_app
            from ..web.results import Looking
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"{error.name} is not installed: pip install 'micron-kernels[web]', or pip install starlette uvicorn"
            ) from None
        with working("loading", console):
            recognizer, maps = self._load()
        app = make_app(
            Looking(recognizer, maps, self.spot, self.seconds), Limits(self.megabytes, self.job_minutes),
            names=self.names,
        )  # fmt: skip
        settings: dict[str, Any] = {"ws": "none", "http": "h11", "loop": "asyncio", "proxy_headers": False}
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, limit_concurrency=64,
            timeout_graceful_shutdown=3, **settings,
        )  # fmt: skip
        with _listening(self.host, self.port) as listening:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            say(console, f"the page: http://{shown}:{port}/ (Ctrl-C ends it)")
            if not ipaddress.ip_address(host).is_loopback:
                say(
                    console,
                    "whoever reaches this machine can use the page, and nothing that is sent is encrypted",
                )
            # Uvicorn tidies up after SIGTERM and raises it again; then its handler must not end the process at once.
            before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            try:
                uvicorn.Server(config).run(sockets=[listening])
            finally:
                signal.signal(signal.SIGTERM, before)

    def _load(self) -> tuple[Any, Any]:
        recipe = None if self.recognizer is None else recipe_class(self.recognizer)
        recognizer = None if self.model is None else load_recognizer(self.model, recipe)
        if self.maps is not None:
            return recognizer, load_model(self.maps)
        return recognizer, recognizer.backbone if isinstance(recognizer, MicronBERTRecognizer) else None


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be listened at: {error.strerror or error}") from None
