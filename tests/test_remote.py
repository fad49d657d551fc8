"""Rewards out of process: scores as in this process, addresses, retries, and a server that dies in mid-run."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pandas as pd
import pytest
import torch
from PIL import Image

from otca.__main__ import main
from otca.checkpoint import checkpoints
from otca.config import TrainConfig
from otca.errors import InputError, RewardError
from otca.methods import METHODS
from otca.plan import _reward_bytes
from otca.rewards import pixels, remote, wire
from otca.rewards.base import TimeLimitedReward, build_reward, score_all
from otca.rewards.pixels import to_pixels
from otca.serving import bound, described, make_app
from otca.trainer import Trainer
from tests.servers import Told, blank, clips, command, pictures, running
from tests.test_trainer import Brightness, config, train, weights


@pytest.mark.parametrize("name, media", [("alignment", pictures), ("quality", pictures), ("aesthetic", pictures), ("ta", clips)])
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


def test_numbers_keep_all_bits_and_bounds_may_be_infinite():
    value_B = torch.tensor([0.1, 1 / 3, 1e-45, -3.4028235e38, 16777217.0, -0.0, torch.finfo().eps])
    with running(make_app(Told(value_B))) as address:
        far = build_reward(f"{address}/told")
        found_B = far.score(*blank(7))
    assert found_B.numpy().tobytes() == value_B.numpy().tobytes()
    assert far.range == (float("-inf"), float("inf")) and far.modality == "unknown"


def test_requests_keep_within_the_limits_of_the_server(monkeypatch):
    """Ten noisy pictures of 5 kB: three in 0.9 of a body of 18 kB, and four within so many pixels."""
    media_BFCHW, prompts = torch.rand(10, 1, 3, 32, 40), blank(10)[1]
    told = Told(torch.arange(10.0))
    with running(make_app(told, max_body=18_000)) as address:
        far = build_reward(f"{address}/told")
        assert far._samples(1, 3, 32, 40) == 3
        assert far.score(media_BFCHW, prompts).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and told.calls == 4
    monkeypatch.setattr("otca.serving.MAX_VIDEO_PIXELS", 4 * 32 * 40)
    with running(make_app(told)) as address:
        assert build_reward(f"{address}/told")._samples(1, 3, 32, 40) == 4
    assert pixels.MAX_VIDEO_PIXELS == 256_000_000


def test_folders_are_scored_by_servers(tmp_path, capsys):
    """`python -m otca score` takes an address, and writes what the reward gives the files in this process."""
    media_BFCHW, prompts = pictures(3)
    pixel_BFCHW = to_pixels(media_BFCHW)
    for p, pixel_FCHW in zip(prompts, pixel_BFCHW):
        Image.fromarray(pixel_FCHW[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{p.id}.png")
    lines = [json.dumps({"id": p.id, "prompt": p.text, "spec": p.spec}) for p in prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    argv = ["score", "--images", str(tmp_path), "--prompts", str(tmp_path / "prompts.jsonl"), "--held_out", "false"]
    with running(make_app(build_reward("alignment"))) as address:
        assert main([*argv, "--rewards", f"{address}/alignment?in_flight=2"]) == 0
    found = pd.read_csv(tmp_path / "scores.csv").set_index("file")["alignment"]
    expected = build_reward("alignment").score(pixel_BFCHW.float() / 255, prompts)
    assert found[[f"{p.id}.png" for p in prompts]].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


class Rated(Told):
    """A reward whose score is the rate that it takes media to have."""

    name, fps = "told", 16.0

    def score(self, media_BFCHW, prompts):
        return torch.full((len(prompts),), self.fps)


def test_rewards_are_asked_at_the_rate_that_their_client_states():
    """What others ask, and what stands in /health, does not change with it."""
    with running(make_app(TimeLimitedReward(Rated(None), 60.0))) as address:
        first, second = (build_reward(f"{address}/told", fps=fps) for fps in (0.0, 8.0))
        assert (first.fps, second.fps) == (16.0, 8.0)
        assert second.score(*blank(1)) == 8 and first.score(*blank(1)) == 16
        second.fps = 30
        assert second.score(*blank(2)).tolist() == [30, 30] and build_reward(f"{address}/told").fps == 16.0
        second.fps = 0
        with pytest.raises(RewardError, match="reward 'told': fps is 0; it must be a positive number of frames a second"):
            score_all([second], *blank(1))


def test_servers_that_state_no_rate_are_sent_none(monkeypatch):
    """Those of rewards without one, and older ones."""
    heads = []
    pack = wire.pack
    monkeypatch.setattr(wire, "pack", lambda *arguments: heads.append(pack(*arguments)) or heads[-1])
    with running(make_app(Told(torch.ones(1)))) as address:
        far = build_reward(f"{address}/told", fps=8.0)
        assert not hasattr(far, "fps") and far.score(*blank(1)) == 1
    assert len(heads) == 1 and wire.stated_rate(heads[0]) is None


def test_a_server_can_have_a_rate_of_its_own():
    with command("tests.test_remote:Served", "--port", "0", "--reward_fps", "12") as (_, url):
        far = build_reward(url)
        assert far.fps == 12.0 and far.score(*blank(1)) == 12


class Served(Rated):
    def __init__(self):
        super().__init__(None)


def test_nan_media_are_refused_here():
    with running(make_app(Told(torch.ones(1)))) as address, pytest.raises(RewardError, match="^the media hold NaN or Inf$"):
        build_reward(f"{address}/told").score(blank(1)[0] * float("nan"), blank(1)[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_media_that_are_no_pictures_are_asked_of_no_reward(bad):
    """A scorer that rounds to 256 levels would see black, and the sample would have a score like any other."""
    media_BFCHW, prompts = pictures(3)
    media_BFCHW[1, 0, 2, 5, 7] = bad
    near, far = Told(torch.ones(3)), Told(torch.ones(3))
    far.submit = lambda *_: pytest.fail("it was asked")
    for reward in (near, far, build_reward("quality")):
        with pytest.raises(RewardError, match=f"^media hold NaN or Inf, .*: 1 prompts: {prompts[1].id} .*see to the model"):
            score_all([reward], media_BFCHW, prompts)
    assert near.calls == 0


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://127.0.0.1:8000", "write http://HOST:PORT/NAME"),
        ("http:///hpsv2", "write http://HOST:PORT/NAME"),
        ("http://h:99999/hpsv2", "write http://HOST:PORT/NAME"),
        ("http://[::1/hpsv2", "write http://HOST:PORT/NAME"),
        ("http://h/hps-v2", "write http://HOST:PORT/NAME"),
        ("http://h/hpsv2#x", "write http://HOST:PORT/NAME"),
        ("http://h/hpsv2?bach=2", "did you mean 'batch'"),
        ("http://h/hpsv2?batch=two", "batch is 'two'; it must be a number"),
        ("http://h/hpsv2?batch=0", "at least 1"),
        ("http://h/hpsv2?timeout=nan", "timeout positive"),
        ("http://h/hpsv2?retries=-1", "retries at least 0"),
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
    assert _reward_bytes([url]) == (0, ())
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


def test_other_servers_are_refused():
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>" if scope["path"] == "/a/health" else b'{"wire": 1}'})

    with running(make_app(Told(None))) as address, pytest.raises(InputError, match="answered 404 .*has /told/score"):
        build_reward(f"{address}/alignment")
    with running(page) as address:
        with pytest.raises(InputError, match="not JSON: '<html>'"):
            build_reward(f"{address}/a")
        with pytest.raises(InputError, match="no server of rewards"):
            build_reward(f"{address}/b")


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"no gzip", [(b"content-encoding", b"gzip")], 200, r"health cannot be asked \(Error -3 .*\); see to the server"),
        (b'{"a":' * 100_000, [], 200, 'answered what is not JSON: \'{"a":'),
        (b'{"a":' * 100_000, [], 404, 'answered 404 \\({"a":'),
        ({"range": ["low", "high"]}, [], 200, "no server of rewards .*could not convert string to float: 'low'"),
        ({"max_body": "much"}, [], 200, "no server of rewards .*invalid literal for int"),
        ({"fps": 0}, [], 200, "no server of rewards .*fps is 0; it must be a positive number"),
    ],
)
def test_servers_that_answer_nonsense_are_refused_in_one_line(body, headers, status, said):
    if isinstance(body, dict):
        body = json.dumps(described(Told(None)) | {"max_body": 1} | body).encode()

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with running(page) as address, pytest.raises(InputError, match=said) as refusal:
        build_reward(f"{address}/told?retries=0")
    assert "\n" not in str(refusal.value)


def test_a_host_that_is_none_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^reward http://é.*/told: .*health cannot be asked \(Invalid IDNA hostname"):
        build_reward("http://é\u200b/told?retries=0")


def test_no_server_and_no_answer(monkeypatch):
    with bound("127.0.0.1", 0, "") as silent:
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match=r"ConnectError: .*refused; is `otca serve-reward told` running there"):
            build_reward(f"http://127.0.0.1:{port}/told?retries=0")
        silent.listen()
        with pytest.raises(InputError, match="ReadTimeout"):
            build_reward(f"http://127.0.0.1:{port}/told?retries=0&timeout=0.1")


# --------------------------------------------------------------------------------------------------------------- training


class Elsewhere(Brightness):
    """Brightness, scored in another thread as soon as media come."""

    log: tuple[str, ...] = ()

    def submit(self, media_BFCHW, prompts):
        Elsewhere.log += (f"submit {len(prompts)}",)
        with ThreadPoolExecutor(1) as worker:
            return [worker.submit(self.score, media_BFCHW, prompts)]


def test_scoring_begins_with_the_first_micro_batch_and_changes_no_number(untrained_pipeline, tmp_path, monkeypatch):
    """Four micro-batches of two: each is submitted before the next is sampled; rows and weights are those without."""
    from otca.models.flux import FluxPolicy

    decode = FluxPolicy.decode

    def logged(self, latents):
        Elsewhere.log += ("decode",)
        return decode(self, latents)

    runs = {name: config(untrained_pipeline, rewards=[f"tests.test_remote:{name}"]) for name in ("Brightness", "Elsewhere")}
    here = train(runs["Brightness"], tmp_path / "here")
    monkeypatch.setattr(FluxPolicy, "decode", logged)
    there = train(runs["Elsewhere"], tmp_path / "there")
    assert Elsewhere.log == ("decode", "submit 2") * 8
    assert torch.equal(weights(here), weights(there))
    assert (tmp_path / "here" / "train.csv").read_bytes() == (tmp_path / "there" / "train.csv").read_bytes()


def test_the_next_micro_batch_is_decoded_while_a_server_scores(untrained_pipeline, tmp_path, monkeypatch):
    """The server holds its first answer until the second decode has begun, and that decode waits for the server to be asked.

    Were there no overlap, neither would ever go on, and both would say so.
    """
    from otca.models.flux import FluxPolicy

    decode, log, asked, go_on = FluxPolicy.decode, [], threading.Event(), threading.Event()

    def logged(self, latents):
        second = log.count("decode") == 1
        if second:
            assert asked.wait(30), "the server was not asked before the second decode"
        log.append("decode")
        if second:
            go_on.set()
        return decode(self, latents)

    def held():
        log.append("asked")
        asked.set()
        assert go_on.wait(30), "no second decode while the server scores"
        log.append("answered")

    monkeypatch.setattr(FluxPolicy, "decode", logged)
    told = Told(torch.arange(2.0), held)
    with running(make_app(told)) as address:
        settings = config(untrained_pipeline, rewards=[f"{address}/told?timeout=60&retries=0"], iterations=1)
        trainer = train(settings, tmp_path)
    assert log[:3] == ["decode", "asked", "decode"] and log.count("answered") == log.count("decode") == told.calls == 4
    assert trainer.progress.reward_calls == 8


def test_a_server_that_dies_stops_the_run_which_resumes(untrained_pipeline, tmp_path):
    """The run stops with the reward's name and prompts after a checkpoint, and ends as if nothing had happened."""
    with command("quality", "--port", "0") as (process, url):
        settings = config(untrained_pipeline, rewards=["alignment", f"{url}?retries=1"], save_every=100, iterations=4)
        whole = train(settings, tmp_path / "whole")

        def strike(row):
            if row["iteration"] == 1:
                process.kill()
                process.wait()

        with pytest.raises(RewardError, match=r"reward 'quality' failed: .*after 2 tries.* prompts: train-0-"):
            Trainer(settings, METHODS[settings.method], tmp_path / "parts").run(strike)
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["iteration_000002"]
    assert len((tmp_path / "parts" / "train.csv").read_text().splitlines()) == 3
    with running(make_app(build_reward("quality")), port=int(url.split(":")[2].split("/")[0])):
        again = train(settings, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(again))
    assert (tmp_path / "whole" / "train.csv").read_bytes() == (tmp_path / "parts" / "train.csv").read_bytes()


class Mortal(Brightness):
    """Brightness, until a call in which the whole process is killed, its answer not begun."""

    name, calls = "mortal", 0

    def score(self, media_BFCHW, prompts):
        Mortal.calls += 1
        if str(Mortal.calls) == os.environ.get("DIES_IN_CALL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(media_BFCHW, prompts)


def test_a_server_that_dies_while_it_scores_stops_the_run_which_resumes(untrained_pipeline, tmp_path, monkeypatch):
    """In the second iteration, after 8 requests of a whole run and 4 of the first: the request is lost, and tried again."""
    post, lost = httpx.Client.post, []

    def logged(client, url, **options):
        try:
            return post(client, url, **options)
        except httpx.TransportError as error:
            lost.append(type(error))
            raise

    monkeypatch.setattr(httpx.Client, "post", logged)
    with command("tests.test_remote:Mortal", "--port", "0", DIES_IN_CALL="14") as (process, url):
        settings = config(untrained_pipeline, rewards=[f"{url}?retries=1&in_flight=1"], save_every=100)
        whole = train(settings, tmp_path / "whole")
        assert not lost and process.poll() is None
        with pytest.raises(RewardError, match=r"reward 'mortal' failed: .*after 2 tries.* prompts: train-") as caught:
            train(settings, tmp_path / "parts")
        assert process.wait(10) == -signal.SIGKILL
    assert lost[0] in (httpx.RemoteProtocolError, httpx.ReadError), "it was not answering when it died"
    assert lost[1] is httpx.ConnectError and "ConnectError" in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["iteration_000001"]
    assert len((tmp_path / "parts" / "train.csv").read_text().splitlines()) == 2
    with running(make_app(Mortal()), port=int(url.split(":")[2].split("/")[0])):
        again = train(settings, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(again))
    assert (tmp_path / "whole" / "train.csv").read_bytes() == (tmp_path / "parts" / "train.csv").read_bytes()


def test_the_command_line_ends_in_one_line_when_the_server_is_not_there(untrained_pipeline, tmp_path, capsys):
    with bound("127.0.0.1", 0, "") as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/quality?retries=0"
        argv = ["train", "--rewards", f"[{url}]", "--policy.path", untrained_pipeline, "--out", str(tmp_path / "run")]
        assert main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("otca train: error: reward http://127.0.0.1") and "serve-reward quality" in error
    assert not list((tmp_path / "run").glob("*.csv"))
