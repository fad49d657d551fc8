"""A server of rewards under good and bad requests: `python -m reproduce.stress_server` → results/reliability/server.csv.

`python -m otca serve-reward quality` runs in a process of its own on this machine. After a warm-up it gets a mixture of
requests, 32 at a time: good ones, whose scores must equal those of this process bit for bit, and bad ones, which must get
their status; some clients hang up halfway. Meanwhile others send half a request and wait, and must be turned out. Memory is the
server's resident set.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import re
import secrets
import socket
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import torch

from eval.evaluate import write_rows
from otca.rewards import wire
from otca.rewards.base import build_reward
from otca.types import Prompt
from reproduce.costs import hardware

REWARD, MAX_BODY_MB = "quality", 1
REQUESTS, WARM_UP, CONCURRENCY, STALLED = 1000, 400, 32, 4
SHARE_GOOD, FLAT = 0.5, 0.05
"""How many requests are good; how far memory may be from what it was after the warm-up, as a share."""
SECONDS = 60.0
"""Time that an answer may take."""
CLOSED = "closed"
"""Status of a request that is not to be answered, or whose client does not wait for it."""

Request = Callable[["Target"], str]
"""Makes one request; returns its status, `CLOSED`, or what went wrong."""


@dataclass(frozen=True)
class Target:
    """The server under test."""

    host: str
    port: int
    token: str

    def headers(self, **changes: str) -> dict[str, str]:
        """Those of a good request, changed."""
        return {"Authorization": f"Bearer {self.token}", "Content-Type": wire.CONTENT_TYPE} | changes

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of an answer, over a connection of its own. An iterator as a body is sent in chunks."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers if headers is not None else self.headers())
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def begin(self, sent: bytes) -> socket.socket:
        """A connection over which this has been sent and no more."""
        out = socket.create_connection((self.host, self.port), timeout=SECONDS)
        out.sendall(sent)
        return out


# ------------------------------------------------------------------------------------------------------------ what is sent
def good_bodies(count: int = 8) -> list[tuple[bytes, list[float]]]:
    """Bodies of one to four pictures, and the scores that this process gives their media."""
    reward, out = build_reward(REWARD, timeout=0), []
    for number in range(count):
        noise = torch.Generator().manual_seed(number)
        pixel_BFCHW = torch.randint(256, (1 + number % 4, 1, 3, 64, 64), dtype=torch.uint8, generator=noise)
        pixel_BFCHW[..., :32] = 10 * number  # half of it plain, so that pictures differ in more than their noise
        body = wire.pack(pixel_BFCHW, [Prompt(f"p{i}", "a red circle") for i in range(len(pixel_BFCHW))])
        out.append((body, reward.score(*wire.unpack(body)).tolist()))
    return out


def bad_bodies(good: bytes) -> list[bytes]:
    """Bodies that are none: cut, lengthened, with other heads, other kinds of media, pickles."""
    length = int.from_bytes(good[:4], "big")
    head, media = json.loads(good[4 : 4 + length]), good[4 + length :]

    def with_head(content: object) -> bytes:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return len(data).to_bytes(4, "big") + data + media

    items = head["items"]
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pickle = pickled.getvalue()
    as_pickle = [{**items[0], "kind": "npy", "bytes": len(pickle)}]
    return [
        b"",
        good[: length // 2],
        good[:-20],
        good + b"more",
        with_head(b"{" * length),
        with_head(b"\xff" * length),
        with_head({"wire": 2, "items": items}),
        with_head({"wire": 1, "items": []}),
        with_head({"wire": 1, "items": [{**item, "kind": "pkl"} for item in items]}),
        with_head({"wire": 1, "items": [{**item, "text": 1} for item in items]}),
        with_head({"wire": 1, "items": [{**item, "kind": "npy"} for item in items]}),
        good[: 4 + length] + media[:8] + bytes(len(media) - 8),
        with_head({"wire": 1, "items": as_pickle})[: -len(media)] + pickle,
    ]


def bomb() -> bytes:
    """A picture of a few bytes that speaks of 81 million pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    media = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(bytes(100))
    media += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    item = {"id": "a", "text": "x", "spec": None, "kind": "png", "bytes": len(media)}
    head = json.dumps({"wire": wire.VERSION, "items": [item]}).encode()
    return len(head).to_bytes(4, "big") + head + media


def kinds() -> dict[str, tuple[str, list[Request]]]:
    """Every kind of request: the status that is right, and requests of that kind."""
    goods = good_bodies()
    body, large = goods[0][0], bytes(20_000_000)
    line = f"POST /{REWARD}/score HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n"

    def good(sent: bytes, expected: list[float]) -> Request:
        def request(target: Target) -> str:
            status, said = target.ask("POST", "/score", sent)
            return str(status) if status != 200 or json.loads(said) == {"name": REWARD, "scores": expected} else "other scores"

        return request

    def asked(method: str, path: str, sent: object = None, **changes: str) -> Request:
        def request(target: Target) -> str:
            status, said = target.ask(method, path, sent() if callable(sent) else sent, target.headers(**changes))
            one_line = status == 200 or isinstance(json.loads(said)["error"], str)
            return str(status) if one_line else "no reason"

        return request

    def hung_up(part: bytes, declared: int | None = None) -> Request:
        def request(target: Target) -> str:
            head = line + f"Authorization: Bearer {target.token}\r\nContent-Length: {declared}\r\n\r\n"
            target.begin(part if declared is None else head.encode() + part).close()
            return CLOSED

        return request

    def nonsense(sent: bytes) -> Request:
        def request(target: Target) -> str:
            with target.begin(sent) as connection:
                return connection.recv(1000)[9:12].decode()

        return request

    return {
        "good": ("200", [good(*each) for each in goods]),
        "health": ("200", [asked("GET", "/health")]),
        "no token": ("401", [asked("POST", "/score", body, Authorization=""), asked("POST", "/score", large, Authorization="")]),
        "wrong token": (
            "401",
            [asked("POST", "/score", body, Authorization="Bearer x"), asked("GET", "/health", Authorization="x")],
        ),
        "other address": ("404", [asked("POST", "/hpsv2/score", body), asked("GET", "/../../etc/passwd")]),
        "other method": ("405", [asked("PUT", "/score", body), asked("DELETE", "/health")]),
        "other type": ("415", [asked("POST", "/score", body, **{"Content-Type": "application/json"})]),
        "malformed": ("422", [asked("POST", "/score", each) for each in bad_bodies(body)]),
        "too large": ("413", [asked("POST", "/score", large)]),
        "too large, no length": ("413", [asked("POST", "/score", lambda: (large[:100_000] for _ in range(30)))]),
        "bomb": ("413", [asked("POST", "/score", bomb())]),
        "no http": ("400", [nonsense(b"\x16\x03\x01 no http\r\n\r\n"), nonsense(line.encode() + b"X: " + b"x" * 100_000)]),
        "hangs up in the head": (CLOSED, [hung_up(line.encode()[:40]), hung_up(b"")]),
        "hangs up in the body": (CLOSED, [hung_up(body[:1000], len(body)), hung_up(large[:500_000], 900_000)]),
        "hangs up before the answer": (CLOSED, [hung_up(body, len(body))]),
    }


def stalls() -> dict[str, tuple[str, list[Request]]]:
    """Clients that send half a head, or half of a small or of a large body, and wait."""

    def waits(body: bytes | None) -> Request:
        def request(target: Target) -> str:
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n"
            whole = f"{head}Authorization: Bearer {target.token}\r\nContent-Length: 900000\r\n\r\n"
            with target.begin(head.encode() if body is None else whole.encode() + body) as connection:
                return connection.recv(1000)[9:12].decode() or CLOSED

        return request

    return {
        "stalls in the head": (CLOSED, [waits(None)]),
        "stalls in a small body": ("408", [waits(bytes(100_000))]),
        "stalls in a large body": ("408", [waits(bytes(400_000))]),
    }


# ------------------------------------------------------------------------------------------------------------- the server
@contextlib.contextmanager
def command(name: str, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`python -m otca serve-reward`; yields the process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "otca", "serve-reward", name, *options],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, re.search(r"at (http://\S+)", process.stdout.readline())[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident_mb(pid: int) -> float:
    """Resident set of a process, in MB."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1000


def _tried(request: Request, target: Target) -> str:
    try:
        return request(target)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:  # what went wrong is the status
        return f"{type(error).__name__}: {error}"


def stress(requests: int = REQUESTS, warm_up: int = WARM_UP, stalled: int = STALLED) -> tuple[pd.DataFrame, list[str]]:
    """Rows (kind, requests, status, right, megabytes), and a line for each kind of answer that was wrong.

    Beside the mixture, so many (up to `STALLED`) clients of each kind of `stalls` wait.
    """
    every, halves, token, rng = kinds(), stalls(), secrets.token_urlsafe(), random.Random(0)
    bad = [kind for kind in every if kind != "good"]
    with (
        command(REWARD, "--port", "0", "--max_body_mb", str(MAX_BODY_MB), **{wire.TOKEN: token}) as (process, url),
        ThreadPoolExecutor(CONCURRENCY) as pool,
        ThreadPoolExecutor(3 * STALLED) as patient,
    ):
        target = Target(urlsplit(url).hostname, urlsplit(url).port, token)

        def tried(kind: str, request: Request) -> tuple[str, str]:
            return kind, _tried(request, target)

        def sent(count: int) -> list[tuple[str, str]]:
            waiting = [patient.submit(tried, kind, request) for kind, (_, [request]) in list(halves.items()) * stalled]
            mixed = ["good" if rng.random() < SHARE_GOOD else bad[number % len(bad)] for number in range(count)]
            asked = [pool.submit(tried, kind, rng.choice(every[kind][1])) for kind in mixed]
            return [each.result() for each in asked + waiting]

        sent(warm_up)
        before = resident_mb(process.pid)
        found = Counter([*sent(requests), tried("good", every["good"][1][0])])  # the last: it still answers
        after = resident_mb(process.pid)
    right = {kind: status for kind, (status, _) in (every | halves).items()}
    counts = {kind: sum(n for (of, _), n in found.items() if of == kind) for kind in right}
    rows = [(kind, counts[kind], status, found[kind, status], np.nan) for kind, status in right.items() if counts[kind]]
    rows += [("memory after the warm-up", warm_up, "", np.nan, before), ("memory at the end", requests, "", np.nan, after)]
    wrong = [f"{kind}: {n} × {said!r}, expected {right[kind]}" for (kind, said), n in found.items() if said != right[kind]]
    if abs(after / before - 1) > FLAT:
        wrong.append(f"memory went from {before:.1f} to {after:.1f} MB")
    return pd.DataFrame(rows, columns=["kind", "requests", "status", "right", "megabytes"]), wrong


def main(argv: list[str] | None = None) -> int:
    """Stress, print, write; exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.stress_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"after {WARM_UP} to warm up (default: {REQUESTS})")
    parser.add_argument("--out", type=Path, default=Path("results/reliability/server.csv"), help="file to write")
    args = parser.parse_args(argv)
    rows, wrong = stress(args.requests)
    print(rows.to_string(index=False, na_rep="", float_format="%.6g"))
    write_rows(rows.assign(hardware=hardware()), args.out)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
