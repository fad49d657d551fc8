"""The server of a reward: who may ask, how much, how slowly, one scoring at a time, and refusals in one line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from otca import serving
from otca.__main__ import main
from otca.errors import InputError, RewardError
from otca.rewards import wire
from otca.rewards.base import build_reward, score_all
from otca.rewards.published import Card, HubFile, PublishedReward
from otca.serving import bound, described, make_app
from tests.killed import wait_for
from tests.servers import Told, blank, pictures, running


@pytest.fixture(scope="module")
def quality():
    """Address of a server of the embedded reward `quality`, open to this machine."""
    with running(make_app(build_reward("quality"), max_body=1_000_000)) as address:
        yield address


def test_published_rewards_are_described_by_their_cards():
    card = Card("hpsv9", "taste", "both", (0.0, 1.0), "arXiv", "MIT", 1.0, (HubFile("a/b", "c.pt", 1, "d0"),))
    published = type("Published", (PublishedReward,), {"card": card, "__init__": lambda self: None})()
    said = described(published)
    assert (said["name"], said["modality"], said["licence"], said["revision"]) == ("hpsv9", "both", "MIT", "a/b@d0")


def test_other_addresses_methods_and_types_are_refused(quality):
    with httpx.Client(base_url=quality, trust_env=False) as client:
        assert client.post("/score", content=b"x").status_code == 415
        assert "this server has /quality/score" in client.get("/hpsv2/health").json()["error"]
        assert client.get("/hpsv2/health").status_code == 404 and client.get("/score").status_code == 405
        assert client.get("/health").json() == client.get("/quality/health").json()


def test_large_bodies_are_refused_with_and_without_a_declared_length(quality, monkeypatch):
    """The limit of this server is 1 MB; the second body declares nothing, and nobody waits for its end."""
    sent_chunks = []

    def chunks():
        for number in range(10_000):
            sent_chunks.append(number)
            yield bytes(100_000)

    for sent in (bytes(1_000_001), chunks()):
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{quality}/score", content=sent, headers={"Content-Type": wire.CONTENT_TYPE})
        assert answer.status_code == 413 and "larger than 1000000 bytes" in answer.json()["error"]
    assert 10 < len(sent_chunks) < 1000


LINE = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n".encode()


@contextlib.contextmanager
def connected(address, sent=b""):
    """A connection over which this has been sent and no more."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def test_half_a_body_is_not_waited_for_and_keeps_nobody_waiting(quality, monkeypatch):
    """Many clients stop in the middle of small and of large bodies; a good request is answered before they are told."""
    monkeypatch.setattr(serving, "BODY_SECONDS", 3.0)
    monkeypatch.setattr(serving, "BODY_RATE", 1e9)
    media_BFCHW, prompts = pictures(1)
    with contextlib.ExitStack() as stalled:
        halves = [bytes(100_000)] * 8 + [bytes(400_000)] * serving.HELD
        head = LINE + b"Content-Length: 900000\r\n\r\n"
        connections = [stalled.enter_context(connected(quality, head + half)) for half in halves]
        started = time.perf_counter()
        assert build_reward(f"{quality}/quality").score(media_BFCHW, prompts)[0] > 0
        assert time.perf_counter() - started < 3
        for connection in connections:
            assert connection.recv(4000).startswith(b"HTTP/1.1 408")


def test_a_body_that_keeps_coming_is_waited_for(quality, monkeypatch):
    """60 kB a 0.1 s until it is a large one, for longer than a body may stand still."""
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.4)
    with connected(quality, LINE + b"Content-Length: 600000\r\n\r\n") as connection:
        for _ in range(10):
            time.sleep(0.1)
            connection.sendall(bytes(60_000))
        assert connection.recv(4000).startswith(b"HTTP/1.1 422")


def test_token(monkeypatch):
    """It is asked for before a body is read, comes from the environment, and never leaves it in a message."""
    monkeypatch.delenv(wire.TOKEN, raising=False)
    with running(make_app(build_reward("quality"), token="s3cret")) as address:
        for header in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3crét"}):
            encoded = {key: value.encode("latin-1") for key, value in header.items()}
            answer = httpx.post(f"{address}/score", content=bytes(10), headers=encoded, trust_env=False)
            assert answer.status_code == 401 and httpx.get(f"{address}/health", headers=encoded).status_code == 401
        with pytest.raises(InputError, match=f"401 .*set {wire.TOKEN}"):
            build_reward(f"{address}/quality")
        monkeypatch.setenv(wire.TOKEN, "wrong")
        with pytest.raises(InputError, match="401") as caught:
            build_reward(f"{address}/quality")
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv(wire.TOKEN, "s3cret")
        media_BFCHW, prompts = pictures(1)
        assert build_reward(f"{address}/quality").score(media_BFCHW, prompts)[0] > 0


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--host", "0.0.0.0"], f"host '0.0.0.0' is open to other machines; set {wire.TOKEN}"),
        (["--host", ""], "is open to other machines"),
        (["--host", "::"], "is open to other machines"),
        (["--host", "no such host"], "cannot listen on port 0 of 'no such host'"),
        (["--port", "70000"], "port is 70000; it must lie in 0"),
        (["--max_body_mb", "0"], "max_body_mb is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--devise", "cpu"], "did you mean 'device'"),
    ],
)
def test_servers_that_do_not_start(capsys, monkeypatch, argv, said):
    monkeypatch.delenv(wire.TOKEN, raising=False)
    assert main(["serve-reward", "quality", "--port", "0", *argv]) == 2
    assert said in capsys.readouterr().err


def test_unknown_rewards_taken_ports_and_broken_tokens(capsys, monkeypatch):
    assert main(["serve-reward", "qualty", "--port", "0"]) == 2
    assert "did you mean 'quality'" in capsys.readouterr().err
    with bound("127.0.0.1", 0, "") as taken:
        taken.listen()
        assert main(["serve-reward", "quality", "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err
    monkeypatch.setenv(wire.TOKEN, "a b")
    assert main(["serve-reward", "quality", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert f"{wire.TOKEN} must consist of visible ASCII" in error and "a b" not in error
    monkeypatch.setenv(wire.TOKEN, "s3cret")
    bound("0.0.0.0", 0, wire.bearer_token()).close()


@pytest.mark.parametrize(
    "answer, said",
    [
        (ValueError("out of memory"), "ValueError('out of memory')"),
        (torch.tensor([float("nan")]), "returned NaN or Inf for 1 prompts: 0 ('x')"),
        (torch.ones(2, 1), "of shape (1, 1)"),
    ],
)
def test_failures_of_the_reward_itself_are_told_and_not_retried(answer, said):
    told = Told(answer)
    with running(make_app(told)) as address:
        with pytest.raises(RewardError, match=r"reward 'told' failed: .*answered 500") as caught:
            score_all([build_reward(f"{address}/told")], *blank(1))
        assert said in str(caught.value) and told.calls == 1
        told.answer = torch.ones(1)
        assert build_reward(f"{address}/told").score(*blank(1)).tolist() == [1]


def test_who_hung_up_is_not_scored():
    gate = threading.Event()
    told = Told(torch.ones(1), gate.wait)
    with running(make_app(told)) as address, ThreadPoolExecutor(1) as other:
        patient = build_reward(f"{address}/told")
        hasty = build_reward(f"{address}/told?retries=0")
        hasty._client.timeout = 0.1
        busy = other.submit(patient.score, *blank(1))
        try:
            wait_for(lambda: told.now)
            with pytest.raises(RewardError, match="ReadTimeout"):
                hasty.score(*blank(1))
        finally:
            gate.set()  # the server is waited for
        assert busy.result().tolist() == [1]
        assert patient.score(*blank(1)).tolist() == [1] and told.calls == 2
