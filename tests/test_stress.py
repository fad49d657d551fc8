"""A server of rewards under good and bad requests at once: every answer is right, who stalls is turned out, memory stays flat."""

from __future__ import annotations

import http.client
import json
import random
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

from otca.rewards import wire
from otca.rewards.base import build_reward
from otca.types import Prompt
from tests.servers import command

REWARD, SECONDS, CLOSED = "quality", 60.0, "closed"
TOKEN = secrets.token_urlsafe()
Request = Callable[[str, int], str]
"""Makes one request of (host, port); returns its status, or `CLOSED` where no answer is to come."""


def http_request(expected: list[float] | None, method: str, path: str, body=None, **changes: str) -> Request:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": wire.CONTENT_TYPE} | changes

    def request(host: str, port: int) -> str:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        try:
            connection.request(method, path, body() if callable(body) else body, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        except (ConnectionResetError, BrokenPipeError):
            return CLOSED
        finally:
            connection.close()
        if answer.status != 200:
            assert isinstance(said["error"], str)
        elif expected is not None:
            assert said["scores"] == expected
        return str(answer.status)

    return request


def raw(sent: bytes, waits: bool = True) -> Request:
    """Bytes over a connection, then a wait for the status, or none."""

    def request(host: str, port: int) -> str:
        with socket.create_connection((host, port), timeout=SECONDS) as connection:
            connection.sendall(sent)
            return (connection.recv(1000)[9:12].decode() if waits else "") or CLOSED

    return request


def good_bodies() -> list[tuple[bytes, list[float]]]:
    """Bodies of one to four pictures, and the scores that this process gives them."""
    reward, out = build_reward(REWARD, timeout=0), []
    for number in range(8):
        noise = torch.Generator().manual_seed(number)
        pixel_BFCHW = torch.randint(256, (1 + number % 4, 1, 3, 64, 64), dtype=torch.uint8, generator=noise)
        pixel_BFCHW[..., :32] = 10 * number  # half of it plain, so that pictures differ in more than their noise
        body = wire.pack(pixel_BFCHW, [Prompt(f"p{i}", "a red circle") for i in range(len(pixel_BFCHW))])
        media_BFCHW, prompts, _ = wire.unpack(body)
        out.append((body, reward.score(media_BFCHW, prompts).tolist()))
    return out


def bad_bodies(good: bytes) -> list[bytes]:
    """Bodies that are none: cut, lengthened, with other metadata and other media."""
    pixel = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
    prompt = {"id": "a", "text": "x", "spec": None}
    said = {"wire": wire.VERSION, "prompts": [prompt]}
    changes = ({"wire": 1}, {"prompts": []}, {"prompts": [prompt | {"text": 1}]}, {"fps": -1}, {"prompts": "x"})
    bodies = [save({"media": pixel}, {"otca": json.dumps(said | change)}) for change in changes]
    bodies += [save({"media": pixel.float()}, {"otca": json.dumps(said)}), save({"other": pixel}, {"otca": json.dumps(said)})]
    return [b"", good[: len(good) // 2], good[:-20], good + b"more", *bodies]


def bomb() -> bytes:
    """A few bytes that speak of a head of a gigabyte."""
    return (10**9).to_bytes(8, "little") + b"{}"


def kinds() -> dict[str, tuple[str, list[Request]]]:
    """Every kind of request but the good ones, with the status that is right."""
    body, large = good_bodies()[0][0], bytes(20_000_000)
    line = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n".encode()
    head = line + f"Authorization: Bearer {TOKEN}\r\nContent-Length: 900000\r\n\r\n".encode()
    post = lambda sent, **changes: http_request(None, "POST", "/score", sent, **changes)  # noqa: E731
    return {
        "no token": ("401", [post(body, Authorization=""), post(body, Authorization="Bearer x")]),
        "other address": ("404", [http_request(None, "POST", "/hpsv2/score", body), http_request(None, "GET", "/../etc/passwd")]),
        "other method": ("405", [http_request(None, "PUT", "/score", body)]),
        "other type": ("415", [post(body, **{"Content-Type": "application/json"})]),
        "malformed": ("422", [post(each) for each in bad_bodies(body)]),
        "bomb": ("413", [post(bomb())]),
        "too large": ("413 or closed", [post(large), post(lambda: (large[:100_000] for _ in range(30)))]),
        "no http": ("400", [raw(b"\x16\x03\x01 no http\r\n\r\n")]),
        "hangs up": (CLOSED, [raw(line[:40], waits=False), raw(head + body[:1000], waits=False)]),
        "stalls in the body": ("408", [raw(head + bytes(100_000)), raw(head + bytes(400_000))]),
    }


def resident_kb(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def test_every_answer_is_right_under_stress():
    """400 requests to warm up, then 1,000, half of them good; stalls beside them wait without holding anybody up."""
    goods = [http_request(scores, "POST", "/score", body) for body, scores in good_bodies()]
    every, rng = kinds(), random.Random(0)
    stalling = [name for name in every if name.startswith("stalls")]
    bad = [name for name in every if name not in stalling]
    with command(REWARD, "--port", "0", "--max_body_mb", "1", **{wire.TOKEN: TOKEN}) as (process, url):
        host, port = urlsplit(url).hostname, urlsplit(url).port
        with ThreadPoolExecutor(32) as pool, ThreadPoolExecutor(8) as patient:

            def answers(count: int, stalls: int) -> Counter:
                waiting = [(name, request) for name in stalling for request in every[name][1]] * stalls
                asked = [(name, patient.submit(request, host, port)) for name, request in waiting]
                for number in range(count):
                    name = "good" if rng.random() < 0.5 else bad[number % len(bad)]
                    asked.append((name, pool.submit(rng.choice(goods if name == "good" else every[name][1]), host, port)))
                return Counter((name, future.result()) for name, future in asked)

            answers(400, 0)
            before = resident_kb(process.pid)
            found = answers(1000, 2)
            assert goods[0](host, port) == "200"
            assert resident_kb(process.pid) == pytest.approx(before, rel=0.05)
    right = {"good": "200"} | {name: status for name, (status, _) in every.items()}
    wrong = {key: count for key, count in found.items() if key[1] not in right[key[0]].split(" or ")}
    assert not wrong and sum(count for (name, _), count in found.items() if name == "good") > 400
