"""A reward as a server: ``python -m otca serve-reward hpsv2``, which trainings name as ``http://127.0.0.1:8000/hpsv2``.

``POST /hpsv2/score`` scores (`otca.rewards.wire` has the format), ``GET /hpsv2/health`` says what is served; ``/score`` and
``/health`` do the same. One reward a server, one scoring at a time. It listens on this machine alone unless told otherwise, and
then only with a bearer token in the environment. It speaks plain http: between machines, tunnel it or put TLS in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import h11
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from otca.errors import InputError, RewardError
from otca.limits import MAX_VIDEO_PIXELS, TooLarge
from otca.rewards import wire
from otca.rewards.base import Reward, score_all
from otca.types import Prompt

CONNECTIONS = 512
"""Open connections; further ones are answered by 503."""
HELD = 4
"""Requests that are decoded at a time, up to 3 GB each, and large bodies that arrive at a time; the others wait."""
LARGE = 256_000
"""Bytes beyond which a body is large: who stops in the middle of a smaller one keeps nobody waiting."""
HEAD_SECONDS = 10.0
"""Time that the head of a request may take to arrive."""
BODY_SECONDS, BODY_RATE = 20.0, 100_000
"""Time that a body may take to arrive, and bytes that give it a second more."""
LINGER_SECONDS, LINGER_BYTES = 5.0, 512_000_000
"""How long, and how much, is still taken in of a body that was refused."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Impatient(H11Protocol):
    """Closes connections over which no whole head comes in time; uvicorn would keep them, until no others get in."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._unwatch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def server_of(app: Starlette, log_level: str = "warning", last_seconds: int = 5) -> uvicorn.Server:
    """What runs the application; ``last_seconds`` are left to requests that are under way when it is stopped."""
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_level=log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=last_seconds,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listener: socket.socket) -> None:
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


# ---------------------------------------------------------------------------------------------------------------- the app


def make_app(reward: Reward, token: str = "", max_body: int = 256_000_000, batch: int = 16) -> Starlette:
    """The server's application: ``max_body`` bytes a request, ``batch`` samples a call; without a token anyone may ask."""
    if not wire.NAME.fullmatch(reward.name):
        raise InputError(f"reward {reward.name!r} cannot be served: its name must consist of letters, digits and underscores")
    arriving, decoded, turn = asyncio.Semaphore(HELD), asyncio.Semaphore(HELD), asyncio.Lock()
    worker = ThreadPoolExecutor(1, thread_name_prefix="scoring")

    about = described(reward) | {"max_body": max_body}  # with the fps of before the first request

    async def health(request: Request) -> Response:
        return _json(about)

    async def score(request: Request) -> Response:
        if request.headers.get("content-type") != wire.CONTENT_TYPE:  # a web page cannot send it across origins
            raise HTTPException(415, f"send {wire.CONTENT_TYPE}; otca/rewards/wire.py describes it")
        async with contextlib.AsyncExitStack() as place:
            body = await _body(request, max_body, lambda: place.enter_async_context(arriving))
            async with decoded:
                await place.aclose()
                fps, media_BFCHW, prompts = await asyncio.to_thread(_unpacked, body)
                del body
                async with turn:
                    if await request.is_disconnected():  # it asked again, or went away: nobody would hear the answer
                        raise ClientDisconnect
                    run = asyncio.get_running_loop().run_in_executor
                    scores = await run(worker, _scores, reward, media_BFCHW, prompts, batch, fps or about["fps"])
        return _json({"name": reward.name, "scores": scores})

    routes = [
        Route(f"{prefix}/{path}", _guarded(endpoint, token), methods=[method])
        for prefix in ("", f"/{reward.name}")
        for path, endpoint, method in (("score", score, "POST"), ("health", health, "GET"))
    ]

    def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            error = HTTPException(404, f"nothing at {request.url.path}; this server has /{reward.name}/score and /health")
        return _refused(error)

    kinds = (HTTPException, InputError, RewardError, TimeoutError, ClientDisconnect)
    return Starlette(routes=routes, middleware=[Middleware(_lingering)], exception_handlers=dict.fromkeys(kinds, refused))


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


def _guarded(endpoint: Endpoint, token: str) -> Endpoint:
    """The endpoint for those who bring the token; it is asked for before anything of a body is read."""
    expected = f"Bearer {token}".encode()

    async def guarded(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode("latin-1")
        if token and not hmac.compare_digest(given, expected):  # in constant time
            raise HTTPException(401, "this server needs its bearer token", {"WWW-Authenticate": "Bearer"})
        return await endpoint(request)

    return guarded


async def _body(request: Request, limit: int, hold: Callable[[], Awaitable[None]]) -> bytearray:
    """The body, refused by its declared length where there is one, and otherwise as soon as it is too long, or too slow.

    ``hold`` waits until a large body may go on to arrive, for which it has all the time.
    """
    large = TooLarge(f"the body is larger than {limit} bytes; send fewer samples at a time, or raise --max_body_mb")
    if int(request.headers.get("content-length", 0)) > limit:
        raise large
    body, now = bytearray(), asyncio.get_running_loop().time
    until, held = now() + BODY_SECONDS, False
    try:
        async with asyncio.timeout_at(until) as clock:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise large
                body += chunk
                if len(body) > LARGE and not held:
                    clock.reschedule(None)
                    asked = now()
                    await hold()
                    held, until = True, until + now() - asked
                clock.reschedule(until + len(body) / BODY_RATE)
    except BaseException:
        body.clear()  # its error is kept until it is told, which a client may draw out
        raise
    return body


def _lingering(app: ASGIApp) -> ASGIApp:
    """Refusals that arrive: after one, what is still on its way of a body is taken in for a while, and dropped.

    Closing upon it would reset the connection, and clients that send everything before they read would not see the reason.
    """

    async def lingering(scope: Scope, receive: Receive, send: Send) -> None:
        more = True

        async def heard() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def said(message: Message) -> None:
            if more and message["type"] == "http.response.body" and not message.get("more_body"):
                await send(message | {"more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        left = LINGER_BYTES
                        while more and left > 0:
                            left -= len((await heard()).get("body", b""))
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await app(scope, heard, said)

    return lingering


def _unpacked(body: bytearray) -> tuple[float | None, torch.Tensor, list[Prompt]]:
    """The rate that a body states, its media and its prompts."""
    return wire.stated_rate(body), *wire.unpack(body)


def _scores(reward: Reward, media_BFCHW: torch.Tensor, prompts: list[Prompt], batch: int, fps: float | None) -> list[float]:
    """A number for each sample, at ``fps`` if the reward depends on it; every float32 is a JSON number exactly."""
    if hasattr(reward, "fps"):
        reward.fps = fps
    parts = [slice(first, first + batch) for first in range(0, len(prompts), batch)]
    return [score for rows in parts for score in score_all([reward], media_BFCHW[rows], prompts[rows]).reward_BK[:, 0].tolist()]


def _refused(error: Exception) -> Response:
    """One line for the client; what the reward itself did wrong is also logged, with its traceback.

    What a reward refuses with an InputError is the client's to change, like what `wire.unpack` refuses. The connection ends
    with it: what is left of a body that is not wanted need not be taken.
    """
    status, said, headers = 408, "the request did not arrive in time", {"Connection": "close"}
    reason = error.__cause__ if isinstance(error, RewardError) else error
    if isinstance(error, HTTPException):
        status, said, headers = error.status_code, error.detail, headers | dict(error.headers or {})
    elif isinstance(reason, InputError):
        status, said = 413 if isinstance(reason, TooLarge) else 422, str(error)
    elif isinstance(error, RewardError):
        logging.getLogger(__name__).error("%s", error, exc_info=error)
        status, said = 500, str(error)
    return _json({"error": " ".join(said.split())[:600]}, status, headers)


def _json(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII, so that no text can break it."""
    return Response(json.dumps(content, allow_nan=False), status, headers, media_type="application/json")
