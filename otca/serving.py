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

import h11
import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from otca.errors import InputError, RewardError
from otca.rewards import wire
from otca.rewards.base import Reward, score_all
from otca.rewards.pixels import MAX_VIDEO_PIXELS, TooLarge
from otca.types import Prompt

CONNECTIONS = 512  # open connections; further ones are answered by 503
HELD = 4  # requests that are decoded at a time, up to 3 GB each; the others wait
HEAD_SECONDS = 10.0  # time that the head of a request may take to arrive
BODY_SECONDS, BODY_RATE = 20.0, 100_000  # time that a body may take to arrive, and bytes that give it a second more


class Protocol(H11Protocol):
    """uvicorn's protocol, which turns out a client that stalls in the head of a request; uvicorn would wait for ever."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEAD_SECONDS, self._turn_out)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE  # for the rest of a head
        if self._limit and not waiting:
            self._limit.cancel()
            self._limit = None
        elif waiting and not self._limit:
            self._limit = self.loop.call_later(HEAD_SECONDS, self._turn_out)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._limit:
            self._limit.cancel()
        super().connection_lost(exc)

    def _turn_out(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()


def server_of(app: FastAPI, log_level: str = "warning", last_seconds: int = 5) -> uvicorn.Server:
    """What runs the application; ``last_seconds`` are left to requests that are under way when it is stopped."""
    quiet = {"log_level": log_level, "access_log": False, "server_header": False, "proxy_headers": False}
    limits = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": last_seconds}
    return uvicorn.Server(uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", **quiet, **limits))


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve the application on a bound socket until it is stopped, as by Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[listener])


def bound(host: str, port: int, token: str) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 is any free one.

    Raises InputError for a port that is taken or none, and if other machines reach the address and there is no token.
    """
    if not 0 <= port < 1 << 16:  # the system would take its lower 16 bits
        raise InputError(f"port is {port}; it must lie in 0 … 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
        if not ip_address(address[0]).is_loopback and not token:
            raise InputError(
                f"host {host!r} is open to other machines; set {wire.TOKEN} for the server and its clients, or use 127.0.0.1"
            )
        with contextlib.ExitStack() as opened:
            out = opened.enter_context(socket.socket(family, kind, protocol))
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            out.bind(address)
            opened.pop_all()
    except OSError as error:
        raise InputError(f"cannot listen on port {port} of {host!r} ({error}); choose another with --port or --host") from error
    return out


def make_app(reward: Reward, token: str = "", max_body: int = 256_000_000, batch: int = 16) -> FastAPI:
    """The application: ``token`` is asked of everyone if it is not empty; bodies of more than ``max_body`` bytes are refused.

    ``batch`` samples at most are given to the reward in one call.
    """
    if not wire.NAME.fullmatch(reward.name):
        raise InputError(f"reward {reward.name!r} cannot be served: its name must consist of letters, digits and underscores")
    decoded, turn = asyncio.Semaphore(HELD), asyncio.Lock()
    worker = ThreadPoolExecutor(1, thread_name_prefix="scoring")
    about = described(reward) | {"max_body": max_body}  # with the fps of before the first request

    async def authorised(request: Request) -> None:
        """Before anything of a body is read."""
        given = request.headers.get("authorization", "").encode("latin-1")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):  # in constant time
            raise HTTPException(401, "this server needs its bearer token", {"WWW-Authenticate": "Bearer"})

    async def refused(request: Request, error: Exception) -> JSONResponse:
        """One line for the client; what the reward itself did wrong is also logged, with its traceback.

        What a reward refuses with an InputError is the client's to change, like what `wire.unpack` refuses. The connection ends
        with it: what is left of a body that is not wanted need not be taken.
        """
        status, said, headers = 408, "the request did not arrive in time", {"Connection": "close"}
        reason = error.__cause__ if isinstance(error, RewardError) else error
        if hasattr(error, "status_code"):
            status, said, headers = error.status_code, error.detail, headers | dict(error.headers or {})
            if status == 404:
                said = f"nothing at {request.url.path}; this server has /{reward.name}/score and /health"
        elif isinstance(reason, InputError):
            status, said = 413 if isinstance(reason, TooLarge) else 422, str(error)
        elif isinstance(error, RewardError):
            logging.getLogger(__name__).error("%s", error, exc_info=error)
            status, said = 500, str(error)
        return JSONResponse({"error": " ".join(said.split())[:600]}, status, headers)

    router = APIRouter(dependencies=[Depends(authorised)])

    @router.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(about)

    @router.post("/score")
    async def score(request: Request) -> JSONResponse:
        if request.headers.get("content-type") != wire.CONTENT_TYPE:  # a web page cannot send it across origins
            raise HTTPException(415, f"send {wire.CONTENT_TYPE}; otca/rewards/wire.py describes it")
        body = await _body(request, max_body)
        async with decoded:
            media_BFCHW, prompts, fps = await asyncio.to_thread(wire.unpack, body)
            async with turn:
                if await request.is_disconnected():  # it asked again, or went away: nobody would hear the answer
                    raise ClientDisconnect
                run = asyncio.get_running_loop().run_in_executor
                scores = await run(worker, _scores, reward, media_BFCHW, prompts, batch, fps or about["fps"])
        return JSONResponse({"name": reward.name, "scores": scores})

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    app.include_router(router, prefix=f"/{reward.name}")
    for kind in (HTTPException, 404, 405, InputError, RewardError, TimeoutError, ClientDisconnect):
        app.add_exception_handler(kind, refused)
    return app


def described(reward: Reward) -> dict[str, object]:
    """What ``/health`` says of a reward: null where the range has no end, and for the ``fps`` of one that depends on none.

    A modality that is not stated is "unknown".
    """
    return {
        "wire": wire.VERSION,
        "name": reward.name,
        "modality": getattr(getattr(reward, "card", reward), "modality", "unknown"),
        "range": [float(end) if math.isfinite(end) else None for end in reward.range],
        "source": reward.source,
        "licence": reward.licence,
        "revision": reward.revision,
        "fps": getattr(reward, "fps", None),
        "max_pixels": MAX_VIDEO_PIXELS,
        "max_items": wire.MAX_ITEMS,
    }


async def _body(request: Request, limit: int) -> bytearray:
    """The body, refused by its declared length where there is one, and otherwise as soon as it is too long, or too slow."""
    large = TooLarge(f"the body is larger than {limit} bytes; send fewer samples at a time, or raise --max_body_mb")
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


def _scores(reward: Reward, media_BFCHW: torch.Tensor, prompts: list[Prompt], batch: int, fps: float | None) -> list[float]:
    """A number for each sample, at ``fps`` if the reward depends on it; every float32 is a JSON number exactly."""
    if hasattr(reward, "fps"):
        reward.fps = fps
    parts = [slice(first, first + batch) for first in range(0, len(prompts), batch)]
    return [score for rows in parts for score in score_all([reward], media_BFCHW[rows], prompts[rows]).reward_BK[:, 0].tolist()]
