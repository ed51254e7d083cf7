"""``dp-serve``: the server's command line."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from diffplugin.command import DONE, Parser, add_common_options, execute, path, positive
from diffplugin.engines.choice import ENGINES
from diffplugin.engines.pages import keep_freed_memory
from diffplugin.errors import DiffPluginError, RequestError
from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.serve.settings import Settings, count, is_loopback, pixels, read_tokens, seconds, size_bytes

if TYPE_CHECKING:
    from diffplugin.runtime.serve.service import Service

_M_ARENA_MAX = -8  # of malloc.h
_log = logging.getLogger("diffplugin.serve")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``dp-serve``."""
    parser = Parser(
        prog="dp-serve",
        description="Serve restoration over HTTP: an API with jobs, OpenAI's image edits, and a page at /. SIGTERM or "
        "Ctrl-C stops it with exit status 0.",
    )
    add = parser.add_argument
    add(
        "--bundle",
        action="append",
        default=[],
        metavar="FOLDER|hf:USER/NAME",
        help="repeatable; default: the packaged model",
    )
    add("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    add("--port", type=_port, default=8000, help="default: 8000; 0: any free one")
    add = parser.add_argument_group("how it runs").add_argument
    add("--engine", default="auto", metavar="NAME", help=f"auto or one of {', '.join(ENGINES)}")
    add("--precision", default="auto", metavar="NAME", help="auto, fp32, bf16, fp16 or int8")
    add("--quality", default="exact", choices=tuple(QUALITIES), help="default: exact")
    add("--threads", type=positive, metavar="N", help="default: all cores this process may use")
    add("--workers", type=_workers, metavar="N|auto", help="photos at the same time (default: auto)")
    add("--warm", type=pixels, default=(256, 256), metavar="WxH", help="prepare for this size (default: 256x256)")
    add = parser.add_argument_group("jobs").add_argument
    add("--queue", type=count, default=256, metavar="N", help="jobs that may wait (default: 256)")
    add("--state", type=path, metavar="DIR", help="queue and results; default: serve/ in the cache folder")
    add("--keep", type=seconds, default=3600.0, metavar="TIME", help="finished jobs are kept so long (default: 1h)")
    add("--grace", type=seconds, default=30.0, metavar="TIME", help="running jobs may finish at a stop (default: 30s)")
    add = parser.add_argument_group("who and how much").add_argument
    add("--token-file", type=path, metavar="FILE", help="TOKEN or NAME TOKEN a line; requests then need one of them")
    add("--insecure", action="store_true", help="serve beyond this machine without tokens")
    add("--max-pixels", type=count, default=50_000_000, metavar="N", help="of one photo (default: 50 million)")
    add("--max-upload", type=size_bytes, default=64 * 2**20, metavar="SIZE", help="of one request (default: 64M)")
    add("--read-timeout", type=seconds, default=30.0, metavar="TIME", help="silence of a client (default: 30s)")
    add_common_options(parser)
    return parser


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port; expected 0 to 65535")


def _workers(text: str) -> int | None:
    return None if text == "auto" else count(text)


def read_settings(args: argparse.Namespace) -> Settings:
    """Raises:
    RequestError: the token file is not valid, or the server would be open to everybody.
    """
    tokens = {} if args.token_file is None else read_tokens(args.token_file)
    if not tokens and not args.insecure and not is_loopback(args.host):
        raise RequestError(
            f"host {args.host} can be reached from other machines: give a --token-file, "
            "or --insecure if everybody there may use it"
        )
    from diffplugin.bundle import cache_folder

    return Settings(
        host=args.host,
        port=args.port,
        bundles=tuple(args.bundle),
        engine=args.engine,
        precision=args.precision,
        quality=args.quality,
        threads=args.threads,
        workers=args.workers,
        max_queue=args.queue,
        tokens=tokens,
        keep_seconds=args.keep,
        max_upload_bytes=args.max_upload,
        max_pixels=args.max_pixels,
        state=args.state or cache_folder() / "serve",
        warm=args.warm,
        grace_seconds=args.grace,
        read_seconds=args.read_timeout,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-serve`` until it is stopped; returns its exit code (``diffplugin.command``)."""
    return execute("dp-serve", build_parser().parse_args, lambda args: serve(read_settings(args)), argv, grace=None)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        DiffPluginError: it cannot start.
    """
    import uvicorn

    from diffplugin.runtime.serve.app import make_app
    from diffplugin.runtime.serve.connections import PatientServer, patient_protocol
    from diffplugin.runtime.serve.metrics import Metrics
    from diffplugin.runtime.serve.models import Models
    from diffplugin.runtime.serve.service import Service
    from diffplugin.runtime.serve.store import JobStore

    for name in ("uvicorn", "python_multipart"):  # errors are logged once, by the application
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _share_heaps()
    keep_freed_memory()
    listener = listen(settings.host, settings.port)
    with listener, JobStore(settings.state) as store:
        service = Service(settings, Models.load(settings), store, Metrics())
        config = uvicorn.Config(
            make_app(service),
            http=patient_protocol(settings.read_seconds),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        )
        server = PatientServer(config, service.stop_accepting)
        print(_started_line(service, listener), flush=True)
        server.run(sockets=[listener])
        waited = 0.0 if server.stopped is None else time.monotonic() - server.stopped
        if not service.stop(max(0.0, settings.grace_seconds - waited)):
            _log.warning("a worker is inside one long call; what it runs begins again at the next start")
            sys.stdout.flush()
            os._exit(DONE)
        service.models.close()
    return DONE


def _share_heaps() -> None:
    """Few heaps for many threads: glibc gives each thread one of its own, and what one has freed no other can use, so
    that a server's memory would creep up. Elsewhere nothing happens."""
    import ctypes

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _started_line(service: Service, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    served = service.models.restorers.items()
    names = ", ".join(f"{name} ({restorer.engine} {restorer.precision})" for name, restorer in served)
    workers = service.models.workers
    return f"dp-serve: http://{shown}:{port} serves {names}, {workers} photo{'s' * (workers > 1)} at the same time"


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        DiffPluginError: the address is not available.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = error.strerror or error
        raise DiffPluginError(f"{host} port {port}: cannot listen ({reason}); choose another --port") from None


if __name__ == "__main__":  # python -m diffplugin.runtime.serve.main
    from diffplugin.entry import serve as start

    sys.exit(start())
