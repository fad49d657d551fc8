"""A reward as a server: ``otca serve-reward hpsv2``, which trainings name as ``http://127.0.0.1:8000/hpsv2``.

``POST /hpsv2/score`` scores (`otca.rewards.wire` has the format), ``GET /hpsv2/health`` says what is served; ``/score`` and
``/health`` do the same. One reward a server, one scoring at a time. It listens on this machine alone unless told otherwise, and
then only with a bearer token in the environment. It speaks plain http: between machines, tunnel it or put TLS in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from otca.errors import InputError, RewardError
from otca.rewards import wire
from otca.rewards.base import Reward, score_all
from otca.rewards.pixels import MAX_VIDEO_PIXELS

CONNECTIONS = 512  # open connections; further ones are answered by 503
BODY_SECONDS, BODY_RATE = 20.0, 100_000  # time that a body may take to arrive, and bytes that give it a second more


def server_of(app: FastAPI, log_level: str = "warning", last_seconds: int = 5) -> uvicorn.Server:
    """What runs the application; ``last_seconds`` are left to requests that are under way when it is stopped."""
    quiet = {"log_level": log_level, "access_log": False, "server_header": False, "proxy_headers": False}
    limits = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": last_seconds}
    return uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", **quiet, **limits))


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve the application on a socket until it is stopped, as by Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[listener])


def bound(host: str, port: int, token: str) -> socket.socket:
    """A socket that listens on the address; port 0 is any free one. Open to other machines it needs a token."""
    try:
        out = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on port {port} of {host!r} ({error}); choose another with --port or --host") from error
    if not ip_address(out.getsockname()[0]).is_loopback and not token:
        out.close()
        said = f"host {host!r} is open to other machines"
        raise InputError(f"{said}; set {wire.TOKEN} for the server and its clients, or use 127.0.0.1")
    return out


def make_app(reward: Reward, token: str = "", max_body: int = 256_000_000, batch: int = 16) -> FastAPI:
    """The application: ``token``, if not empty, is asked of everyone; at most ``batch`` samples go to the reward in a call."""
    if not wire.NAME.fullmatch(reward.name):
        raise InputError(f"reward {reward.name!r} cannot be served: its name must consist of letters, digits and underscores")
    turn, worker = asyncio.Lock(), ThreadPoolExecutor(1, thread_name_prefix="scoring")
    about = described(reward) | {"max_body": max_body}  # with the fps of before the first request

    async def authorised(request: Request) -> None:
        """Before anything of a body is read."""
        given = request.headers.get("authorization", "").encode("latin-1")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):  # in constant time
            raise HTTPException(401, "this server needs its bearer token", {"WWW-Authenticate": "Bearer"})

    async def refused(request: Request, error: Exception) -> JSONResponse:
        """One line for the client, whose fault an InputError of the reward is; its own failure is also logged with the traceback.

        The connection ends: what is left of a body that is not wanted need not be taken.
        """
        reason = error.__cause__ if isinstance(error, RewardError) else error
        status, said, headers = 408, str(error) or "the request did not arrive in time", {"Connection": "close"}
        if isinstance(error, HTTPException):
            status, said, headers = error.status_code, error.detail, headers | dict(error.headers or {})
            if status == 404:
                said = f"nothing at {request.url.path}; this server has /{reward.name}/score and /health"
        elif isinstance(reason, InputError):
            status = 413 if isinstance(reason, wire.TooLarge) else 422
        elif isinstance(error, RewardError):
            logging.getLogger(__name__).error("%s", error, exc_info=error)
            status = 500
        return JSONResponse({"error": " ".join(said.split())[:600]}, status, headers)

    def scored(body: bytearray) -> list[float]:
        """A number for each sample, at the body's fps if the reward depends on it; every float32 is a JSON number exactly."""
        media_BFCHW, prompts, fps = wire.unpack(body)
        if about["fps"] is not None:
            reward.fps = fps or about["fps"]
        parts = [slice(first, first + batch) for first in range(0, len(prompts), batch)]
        return [x for rows in parts for x in score_all([reward], media_BFCHW[rows], prompts[rows]).reward_BK[:, 0].tolist()]

    router = APIRouter(dependencies=[Depends(authorised)])

    @router.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(about)

    @router.post("/score")
    async def score(request: Request) -> JSONResponse:
        if request.headers.get("content-type") != wire.CONTENT_TYPE:  # a web page cannot send it across origins
            raise HTTPException(415, f"send {wire.CONTENT_TYPE}; otca/rewards/wire.py describes it")
        body = await _body(request, max_body)
        async with turn:
            if await request.is_disconnected():  # it asked again, or went away: nobody would hear the answer
                raise ClientDisconnect
            scores = await asyncio.get_running_loop().run_in_executor(worker, scored, body)
        return JSONResponse({"name": reward.name, "scores": scores})

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    app.include_router(router, prefix=f"/{reward.name}")
    for kind in (HTTPException, InputError, RewardError, TimeoutError, ClientDisconnect):
        app.add_exception_handler(kind, refused)
    return app


def described(reward: Reward) -> dict[str, object]:
    """What ``/health`` says of a reward: null where the range has no end, and for the ``fps`` of one that depends on none."""
    ends = getattr(reward, "range", (-math.inf, math.inf))
    return {
        "wire": wire.VERSION,
        "name": reward.name,
        "modality": getattr(getattr(reward, "card", reward), "modality", "unknown"),
        "range": [float(end) if math.isfinite(end) else None for end in ends],
        **{fact: getattr(reward, fact, "") for fact in ("source", "licence", "revision")},
        "fps": getattr(reward, "fps", None),
        "max_pixels": MAX_VIDEO_PIXELS,
        "max_items": wire.MAX_ITEMS,
    }


async def _body(request: Request, limit: int) -> bytearray:
    """The body, refused by its declared length where there is one, and otherwise as soon as it is too long, or too slow."""
    large = HTTPException(413, f"the body is larger than {limit} bytes; send fewer samples at a time, or raise --max_body_mb")
    if int(request.headers.get("content-length", 0)) > limit:
        raise large
    body, until = bytearray(), asyncio.get_running_loop().time() + BODY_SECONDS
    async with asyncio.timeout_at(until) as clock:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise large
            body += chunk
            clock.reschedule(until + len(body) / BODY_RATE)
    return body
