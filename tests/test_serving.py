"""Rewards out of process: what travels, who may ask and how slowly, scores as in this process, retries, a server that dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from safetensors.torch import save

from otca import serving
from otca.__main__ import main
from otca.checkpoint import checkpoints
from otca.config import TrainConfig
from otca.errors import InputError, RewardError
from otca.plan import _reward_bytes
from otca.rewards import remote, wire
from otca.rewards.base import build_reward, score_all
from otca.rewards.pixels import to_pixels
from otca.serving import bound, described, make_app
from tests.killed import wait_for
from tests.servers import Told, blank, clips, command, pictures, running
from tests.toys import Brightness, toy_config, trained, weights


@pytest.fixture(scope="module")
def quality():
    """Address of a server of the embedded reward `quality`, open to this machine."""
    with running(make_app(build_reward("quality"), max_body=1_000_000)) as address:
        yield address


@pytest.mark.parametrize("media", [pictures, clips])
@pytest.mark.parametrize("fps", [None, 23.976])
def test_what_is_packed_is_unpacked(media, fps):
    media_BFCHW, prompts = media()
    pixel_BFCHW = to_pixels(media_BFCHW)
    found_BFCHW, found, rate = wire.unpack(wire.pack(pixel_BFCHW, prompts, fps))
    assert torch.equal(to_pixels(found_BFCHW), pixel_BFCHW) and found == prompts and rate == fps


def bytes_of(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def body(media=None, head=None, name="media", **changes):
    """A request; ``changes`` go into every prompt, ``head`` replaces the whole text."""
    media = bytes_of(1, 2, 3, 8, 8) if media is None else media
    rows = [{"id": "a", "text": "x", "spec": None} | changes] * len(media)
    return save({name: media}, {"otca": json.dumps({"wire": 2, "prompts": rows}) if head is None else head})


BAD = {
    "empty": (b"", 422, "the body is no safetensors file"),
    "pickle": (b"\x80\x04K\x01." * 9, 413, "the limit is 16000000"),
    "media missing": (body()[:-9], 422, "the body is no safetensors file"),
    "no metadata": (save({"media": bytes_of(1, 1, 3, 8, 8)}), 422, "it lacks '__metadata__'"),
    "deep JSON": (body(head='{"a":' * 100_000), 422, "the head of the body: "),
    "other wire": (body(head='{"wire": 1, "prompts": [1]}'), 422, "the head must be"),
    "rate 0": (body(head='{"wire": 2, "fps": 0, "prompts": [{"id": "a", "text": "x"}]}'), 422, "fps is 0; it must be"),
    "text": (body(text=1), 422, "prompt 0: id and text must be strings"),
    "nothing": (body(bytes_of(0, 1, 3, 8, 8)), 422, "with a prompt a sample"),
    "floats": (body(torch.zeros(1, 1, 3, 8, 8)), 422, "found torch.float32"),
    "long video": (body(bytes_of(1, 5000, 3, 1, 1)), 413, "4096 frames"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_are_refused_in_one_line(quality, case):
    sent, status, said = BAD[case]
    answer = httpx.post(f"{quality}/score", content=sent, headers={"Content-Type": wire.CONTENT_TYPE}, trust_env=False)
    assert answer.status_code == status
    assert said in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_other_addresses_methods_and_types_are_refused(quality):
    with httpx.Client(base_url=quality, trust_env=False) as client:
        assert client.post("/score", content=b"x").status_code == 415
        assert "this server has /quality/score" in client.get("/hpsv2/health").json()["error"]
        assert client.get("/hpsv2/health").status_code == 404 and client.get("/score").status_code == 405
        assert client.get("/health").json() == client.get("/quality/health").json()


def test_large_bodies_are_refused_with_and_without_a_declared_length(quality):
    """The limit of this server is 1 MB; the second body declares nothing, and nobody waits for its end."""
    sent_chunks = []

    def chunks():
        for number in range(10_000):
            sent_chunks.append(number)
            yield bytes(100_000)

    for sent in (bytes(1_000_001), chunks()):
        answer = httpx.post(f"{quality}/score", content=sent, headers={"Content-Type": wire.CONTENT_TYPE}, trust_env=False)
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
    monkeypatch.setattr(serving, "BODY_SECONDS", 2.0)
    monkeypatch.setattr(serving, "BODY_RATE", 1e9)
    media_BFCHW, prompts = pictures(1)
    with contextlib.ExitStack() as stalled:
        halves = [bytes(100_000)] * 8 + [bytes(400_000)] * 4
        head = LINE + b"Content-Length: 900000\r\n\r\n"
        connections = [stalled.enter_context(connected(quality, head + half)) for half in halves]
        started = time.perf_counter()
        assert build_reward(f"{quality}/quality").score(media_BFCHW, prompts)[0] > 0
        assert time.perf_counter() - started < 2
        for connection in connections:
            assert connection.recv(4000).startswith(b"HTTP/1.1 408")


def test_token(monkeypatch):
    """It is asked for before a body is read, comes from the environment, and never leaves it in a message."""
    monkeypatch.delenv(wire.TOKEN, raising=False)
    with running(make_app(build_reward("quality"), token="s3cret")) as address:
        for header in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3crét"}):
            encoded = {key: value.encode("latin-1") for key, value in header.items()}
            answer = httpx.post(f"{address}/score", content=bytes(10), headers=encoded, trust_env=False)
            assert answer.status_code == 401 and httpx.get(f"{address}/health", headers=encoded).status_code == 401
        monkeypatch.setenv(wire.TOKEN, "wrong")
        with pytest.raises(InputError, match=f"401 .*set {wire.TOKEN}") as caught:
            build_reward(f"{address}/quality")
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv(wire.TOKEN, "s3cret")
        media_BFCHW, prompts = pictures(1)
        assert build_reward(f"{address}/quality").score(media_BFCHW, prompts)[0] > 0
    monkeypatch.setenv(wire.TOKEN, "a b")
    with pytest.raises(InputError, match="must consist of visible ASCII") as caught:
        wire.bearer_token()
    assert "a b" not in str(caught.value)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["quality", "--host", "0.0.0.0"], f"host '0.0.0.0' is open to other machines; set {wire.TOKEN}"),
        (["quality", "--host", "no such host"], "cannot listen on port 0 of 'no such host'"),
        (["quality", "--port", "70000"], "cannot listen on port 70000"),
        (["qualty"], "did you mean 'quality'"),
    ],
)
def test_servers_that_do_not_start(capsys, monkeypatch, argv, said):
    monkeypatch.delenv(wire.TOKEN, raising=False)
    assert main(["serve-reward", "--port", "0", *argv]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_host_that_is_open_with_a_token():
    with bound("127.0.0.1", 0, "") as taken, pytest.raises(InputError, match="in use"):
        bound("127.0.0.1", taken.getsockname()[1], "")
    bound("0.0.0.0", 0, "s3cret").close()


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


def test_who_hung_up_is_not_scored():
    gate = threading.Event()
    told = Told(torch.ones(1), gate.wait)
    with running(make_app(told)) as address, ThreadPoolExecutor(1) as other:
        patient, hasty = build_reward(f"{address}/told"), build_reward(f"{address}/told?retries=0")
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


@pytest.mark.parametrize("name, media", [("alignment", pictures), ("aesthetic", pictures), ("ta", clips)])
def test_scores_are_those_of_this_process_bit_for_bit(name, media):
    """Of media rounded to 256 levels, in requests of two and in calls of one."""
    media_BFCHW, prompts = media()
    with running(make_app(build_reward(name), batch=1)) as address:
        far = build_reward(f"{address}/{name}?batch=2")
        found = score_all([far], media_BFCHW, prompts)
    near = build_reward(name)
    assert torch.equal(found.reward_BK[:, 0], near.score(to_pixels(media_BFCHW).float() / 255, prompts))
    assert found.names == (name,) and len(found.reward_BK.unique()) > 1
    assert (far.range, far.source, far.licence, far.modality) == (near.range, near.source, near.licence, near.modality)


def test_requests_keep_within_the_limits_of_the_server(monkeypatch):
    """Ten pictures of 3,840 bytes: three in 0.9 of a body of 13 kB, and four within so many pixels."""
    media_BFCHW, prompts = torch.rand(10, 1, 3, 32, 40), blank(10)[1]
    told = Told(torch.arange(10.0))
    with running(make_app(told, max_body=13_000)) as address:
        far = build_reward(f"{address}/told")
        assert far.score(media_BFCHW, prompts).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and told.calls == 4
    monkeypatch.setattr("otca.serving.MAX_VIDEO_PIXELS", 4 * 32 * 40)
    with running(make_app(told)) as address:
        assert build_reward(f"{address}/told")._samples(media_BFCHW[0].numel()) == 4


class Rated(Told):
    """A reward whose score is the rate that it takes media to have."""

    name, fps = "told", 16.0

    def score(self, media_BFCHW, prompts):
        return torch.full((len(prompts),), self.fps)


def test_rewards_are_asked_at_the_rate_that_their_client_states():
    """What others ask, and what stands in /health, does not change with it."""
    with running(make_app(Rated(None))) as address:
        first, second = (build_reward(f"{address}/told", fps=fps) for fps in (0.0, 8.0))
        assert second.score(*blank(1)) == 8 and first.score(*blank(1)) == 16
        second.fps = 0
        with pytest.raises(RewardError, match="reward 'told': fps is 0; it must be a positive number of frames a second"):
            score_all([second], *blank(1))


def test_media_that_are_no_pictures_are_asked_of_no_reward():
    """A scorer that rounds to 256 levels would see black, and the sample would have a score like any other."""
    media_BFCHW, prompts = pictures(3)
    media_BFCHW[1, 0, 2, 5, 7] = float("nan")
    reward = Told(torch.ones(3))
    with pytest.raises(RewardError, match=f"^media hold NaN or Inf, .*: 1 prompts: {prompts[1].id} .*see to the model"):
        score_all([reward], media_BFCHW, prompts)
    assert reward.calls == 0


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://127.0.0.1:8000", "write http://HOST:PORT/NAME"),
        ("http://h:99999/hpsv2", "write http://HOST:PORT/NAME"),
        ("http://h/hps-v2", "write http://HOST:PORT/NAME"),
        ("http://h/hpsv2?bach=2", "did you mean 'batch'"),
        ("http://h/hpsv2?batch=0", "batch is 0; it must be at least 1"),
        ("http://h/hpsv2?timeout=nan", "timeout is nan; it must be a finite number"),
        ("http://é\u200b/told?retries=0", "health cannot be asked (Invalid IDNA hostname"),
    ],
)
def test_addresses_that_are_none(url, said):
    with pytest.raises(InputError, match=re.escape(said)):
        build_reward(url)


def test_addresses(capsys):
    url = "https://judges.example:8443/a/hpsv2/?batch=8&in_flight=2&timeout=600&retries=9"
    assert remote.parsed(url) == ("https://judges.example:8443/a/hpsv2", "hpsv2", remote.Calls(8, 2, 600.0, 9))
    with pytest.raises(InputError, match=wire.TOKEN) as caught:
        build_reward("http://me:s3cret@h/hpsv2")
    assert "s3cret" not in str(caught.value)
    assert _reward_bytes([url]) == (0, [])
    assert main(["train", "--dry_run", "true", "--rewards", f"[{url}]"]) == 0
    assert f"rewards:\n- {url}\n" in capsys.readouterr().out


class Front:
    """In front of an application: answers the first ``refusals`` scorings by 503, and counts requests at once."""

    def __init__(self, app, refusals=0):
        self.app, self.refusals, self.calls, self.now, self.most = app, refusals, 0, 0, 0

    async def __call__(self, scope, receive, send):
        if scope["path"].endswith("health"):
            return await self.app(scope, receive, send)
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        try:
            if self.calls > self.refusals:
                return await self.app(scope, receive, send)
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"starting"})
        finally:
            self.now -= 1


def test_retries_wait_longer_each_time_and_end(monkeypatch):
    waits = []
    front = Front(make_app(Told(torch.ones(1))), refusals=2)
    with running(front) as address:
        monkeypatch.setattr(remote.time, "sleep", waits.append)
        assert build_reward(f"{address}/told?retries=2").score(*blank(1)).tolist() == [1]
        assert waits == [0.5, 1.0] and front.calls == 3
        front.refusals = 100
        with pytest.raises(RewardError, match=r"no answer from .*/told/score after 9 tries in .* the last: .*503 \(starting\)"):
            build_reward(f"{address}/told?retries=8").score(*blank(1))
        monkeypatch.undo()
    assert waits[2:] == [0.5, 1, 2, 4, 8, 16, 30, 30] and front.calls == 12


def test_a_server_that_hangs_is_named_before_the_run_loses_patience():
    """With the defaults all tries and pauses of a request end within reward_timeout, and so with small numbers."""
    calls, gate = remote.Calls(), threading.Event()
    assert (calls.retries + 1) * calls.timeout + 0.5 + 1 + 2 + 4 + 8 < TrainConfig().reward_timeout
    with running(make_app(Told(torch.ones(1), gate.wait))) as address:
        try:
            for limit, said in ((3.0, "failed: .*no answer from .* after 2 tries in .* ReadTimeout"), (0.5, "within 0.5 s")):
                reward = build_reward(f"{address}/told?timeout=0.2&retries=1", timeout=limit)
                started = time.perf_counter()
                with pytest.raises(RewardError, match=f"reward 'told' .*{said}"):
                    score_all([reward], *blank(1))
                assert time.perf_counter() - started < limit + 1
        finally:
            gate.set()  # the server is waited for


def test_requests_overlap_and_scorings_do_not():
    """Six requests, three at a time; the server scores one after another."""
    told = Told(torch.arange(1.0), lambda: time.sleep(0.03))
    front = Front(make_app(told))
    with running(front) as address:
        build_reward(f"{address}/told?batch=1&in_flight=3").score(*blank(6))
    assert (front.calls, front.most) == (6, 3) and (told.calls, told.most) == (6, 1)


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"<html>", [], "not JSON, or no object: '<html>'"),
        (b'{"wire": 2}', [], "no server of rewards"),
        (b"no gzip", [(b"content-encoding", b"gzip")], r"health cannot be asked \(Error -3 .*\); see to the server"),
        ({"name": "other"}, [], "it serves 'other'"),
        ({"range": ["low", "high"]}, [], "no server of rewards .*could not convert string to float: 'low'"),
    ],
)
def test_servers_that_answer_nonsense_are_refused_in_one_line(content, headers, said):
    if isinstance(content, dict):
        content = json.dumps(described(Told(None)) | {"max_body": 1} | content).encode()

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    with running(page) as address, pytest.raises(InputError, match=said) as refusal:
        build_reward(f"{address}/told?retries=0")
    assert "\n" not in str(refusal.value)


def test_no_server_and_no_answer():
    with bound("127.0.0.1", 0, "") as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/quality?retries=0"
        with pytest.raises(InputError, match="ReadTimeout"):
            build_reward(f"{url}&timeout=0.1")
    with pytest.raises(InputError, match="ConnectError: .*refused; is `otca serve-reward quality` running"):
        build_reward(url)


class Elsewhere(Brightness):
    """Brightness, scored in another thread as soon as media come."""

    log: tuple[str, ...] = ()

    def submit(self, media_BFCHW, prompts):
        Elsewhere.log += (f"submit {len(prompts)}",)
        with ThreadPoolExecutor(1) as worker:
            return [worker.submit(self.score, media_BFCHW, prompts)]


def run_of(pipeline, reward):
    """Two iterations of four micro-batches of two."""
    sizes = {"iterations": 2, "group_size": 4, "micro_batch": 2, "sampler.steps": 3}
    return toy_config("otca", pipeline, rewards=[reward], **sizes)


def test_scoring_begins_with_the_first_micro_batch_and_changes_no_number(toy_pipeline, tmp_path, monkeypatch):
    """Four micro-batches of two: each is submitted before the next is sampled; rows and weights are those without."""
    from otca.models.flux import FluxPolicy

    decode = FluxPolicy.decode

    def logged(self, latents):
        Elsewhere.log += ("decode",)
        return decode(self, latents)

    runs = {name: run_of(toy_pipeline, f"tests.test_serving:{name}") for name in ("Brightness", "Elsewhere")}
    here = trained(runs["Brightness"], tmp_path / "here")
    monkeypatch.setattr(FluxPolicy, "decode", logged)
    there = trained(runs["Elsewhere"], tmp_path / "there")
    assert Elsewhere.log == ("decode", "submit 2") * 8
    assert torch.equal(weights(here), weights(there))
    assert (tmp_path / "here" / "train.csv").read_bytes() == (tmp_path / "there" / "train.csv").read_bytes()


class Mortal(Brightness):
    """Brightness, until a call in which the whole process is killed, its answer not begun."""

    name, calls = "mortal", 0

    def score(self, media_BFCHW, prompts):
        Mortal.calls += 1
        if str(Mortal.calls) == os.environ.get("DIES_IN_CALL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(media_BFCHW, prompts)


def test_a_server_that_dies_while_it_scores_stops_the_run_which_resumes(toy_pipeline, tmp_path):
    """In the second iteration, after 8 requests of a whole run and 4 of the first: the request is lost, and tried again."""
    with command("tests.test_serving:Mortal", "--port", "0", DIES_IN_CALL="14") as (process, url):
        settings = run_of(toy_pipeline, f"{url}?retries=1&in_flight=1")
        whole = trained(settings, tmp_path / "whole")
        assert process.poll() is None
        with pytest.raises(RewardError, match=r"reward 'mortal' failed: .*after 2 tries.* ConnectError.* prompts: train-"):
            trained(settings, tmp_path / "parts")
        assert process.wait(10) == -signal.SIGKILL
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["iteration_000001"]
    assert len((tmp_path / "parts" / "train.csv").read_text().splitlines()) == 2
    with running(make_app(Mortal()), port=int(url.split(":")[2].split("/")[0])):
        again = trained(settings, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(again))
    assert (tmp_path / "whole" / "train.csv").read_bytes() == (tmp_path / "parts" / "train.csv").read_bytes()
