"""A reward that another process computes, named by its address: ``http://127.0.0.1:8000/hpsv2`` (`otca.serving` is the server).

The last part of the path is the reward's name. Settings of the calls follow in the query, ``…/hpsv2?batch=8&timeout=600``; they
are the fields of `Calls`. The bearer token comes from the environment (`otca.rewards.wire.TOKEN`).
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from urllib.parse import parse_qsl, urlsplit

import httpx
import torch
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from otca.bounds import Count, Positive, Settings, Whole, checked_rate
from otca.errors import InputError, RewardError, nearest, one_line
from otca.rewards import wire
from otca.rewards.pixels import to_pixels
from otca.rewards.workers import Workers, joined
from otca.types import Prompt

WAIT = wait_exponential(multiplier=0.5, max=30.0)
"""Seconds before the first retry, doubled before each further one, and their limit."""
CONNECT_SECONDS = 10.0  # time that a connection may take; `Calls.timeout` is for what comes after
PASSING = (408, 429, 502, 503, 504)
"""Answers after which it is worth asking again. 500 is not among them: the reward itself failed, and would again."""
SHARE = 0.9  # of a body's limit, what media may take; prompts have the rest


@dataclass(frozen=True)
class Calls(Settings):
    """How a server is asked."""

    batch: Count = 16
    """Samples a request at most; fewer where the server's limits say so."""
    in_flight: Count = 4
    """Requests at once."""
    timeout: Positive = 90.0
    """Seconds until an answer must begin, the time that a request waits for its turn included."""
    retries: Whole = 5
    """Further tries after a request that got no answer, or one of `PASSING`."""


class RemoteReward:
    """Scores of a server, which says what it is (range, source, licence, modality, fps).

    Media are rounded to 256 levels on the way: the score is that of the saved picture.
    """

    def __init__(self, url: str):
        """Ask the server what it serves. Raises InputError for what is no address, no such server, or another reward's."""
        self.url, self.name, self.calls = parsed(url)
        token = wire.bearer_token()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(self.calls.timeout, connect=min(CONNECT_SECONDS, self.calls.timeout)),
            limits=httpx.Limits(max_connections=self.calls.in_flight),
            trust_env=self.url.startswith("https:"),  # no proxy of the environment reads what is not encrypted
        )
        try:
            said = self._ask("health")
            if said["wire"] != wire.VERSION or said["name"] != self.name:
                other = f"it serves {said['name']!r} (wire {said['wire']})"
                raise RewardError(f"{other}; change the address, or start another server")
            lowest, highest = said["range"]
            self.range = (float("-inf" if lowest is None else lowest), float("inf" if highest is None else highest))
            self.source, self.licence, self.modality = said["source"], said["licence"], said["modality"]
            self.revision = f"{said['revision']} at {self.url}"
            if said["fps"] is not None:  # its scores depend on it
                self.fps = checked_rate("fps", said["fps"])
            self._max_body, self._max_pixels, self._max_items = (int(said[f"max_{of}"]) for of in ("body", "pixels", "items"))
        except RewardError as error:
            raise InputError(f"reward {self.url}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"reward {self.url}: what answers there is no server of rewards ({error!r})") from error
        self._workers = Workers(self.calls.in_flight, f"reward {self.name}")

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores float32 (B,) of media (B, F, 3, H, W), on the CPU. Raises RewardError once all tries of a request are spent."""
        return joined(self.submit(media_BFCHW, prompts))

    def submit(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> list[Future[torch.Tensor]]:
        """Begin to score and return at once: the scores of consecutive samples, a future for each request."""
        pixel_BFCHW, size = to_pixels(media_BFCHW.float()).cpu(), self._samples(media_BFCHW[0].numel())
        fps = checked_rate(f"reward {self.name!r}: fps", self.fps) if hasattr(self, "fps") else None
        parts = (slice(first, first + size) for first in range(0, len(prompts), size))
        return [self._workers.submit(self._score, pixel_BFCHW[part], prompts[part], fps) for part in parts]

    def _samples(self, values: int) -> int:
        """Samples a request, of so many values each, within the server's limits; one where not even one is, to be refused."""
        limits = (self._max_items, int(SHARE * self._max_body) // values, 3 * self._max_pixels // values)
        return max(1, min(self.calls.batch, *limits))

    def _score(self, pixel_BFCHW: torch.Tensor, prompts: list[Prompt], fps: float | None) -> torch.Tensor:
        said = self._ask("score", wire.pack(pixel_BFCHW, prompts, fps))
        scores = said.get("scores")
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or len(scores) != len(prompts):
            raise RewardError(f"{self.url}/score answered {str(said)[:100]} for {len(prompts)} samples")
        return torch.tensor(scores, dtype=torch.float64).float()

    def _ask(self, what: str, body: bytes | None = None) -> dict:
        """The answer of the server, asked again with growing pauses while it gives none."""
        url, started, tries = f"{self.url}/{what}", time.monotonic(), self.calls.retries + 1
        passing = retry_if_exception_type((httpx.TransportError, _Passing))
        again = Retrying(stop=stop_after_attempt(tries), wait=WAIT, retry=passing, reraise=True)
        try:
            return again(self._once, url, body)
        except (httpx.TransportError, _Passing) as error:
            raise RewardError(
                f"no answer from {url} after {tries} tries in {time.monotonic() - started:.1f} s, the last: "
                f"{type(error).__name__.removeprefix('_')}: {error}; is `otca serve-reward {self.name}` running there?"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # a body that is not what its headers say, a host that is none
            raise RewardError(f"{url} cannot be asked ({one_line(error)}); see to the server or the address") from error

    def _once(self, url: str, body: bytes | None) -> dict:
        kind = {} if body is None else {"Content-Type": wire.CONTENT_TYPE}
        answer = self._client.request("GET" if body is None else "POST", url, content=body, headers=kind)
        try:
            content = answer.json()
        except (ValueError, RecursionError):
            content = None
        said = content if isinstance(content, dict) else {}
        refusal = f"{answer.status_code} ({said.get('error', answer.text[:200])})"
        if answer.status_code in PASSING:
            raise _Passing(refusal)
        if answer.status_code != 200:
            hint = f"; set {wire.TOKEN} to the server's token" if answer.status_code == 401 else ""
            raise RewardError(f"{url} answered {refusal}{hint}")
        if content is not said:
            raise RewardError(f"{url} answered what is not JSON, or no object: {answer.text[:100]!r}")
        return content


class _Passing(Exception):
    """An answer of `PASSING`."""


def parsed(url: str) -> tuple[str, str, Calls]:
    """Address without its query, the reward's name, and the settings. Raises InputError, in one line, for anything else."""
    if "@" in url:  # not shown: it may be a password
        raise InputError(f"a reward's address holds an @, a user or a password; put a token into {wire.TOKEN} instead")
    try:
        parts = urlsplit(url)
        path, name = parts.path.rstrip("/"), parts.path.rstrip("/").rpartition("/")[2]
        known = bool(parts.hostname) and parts.port != 0 and not parts.fragment and wire.NAME.fullmatch(name)
    except ValueError:  # a port that is none, an address in brackets that is none
        known = False
    if not known:
        raise InputError(f"reward {url!r}: write http://HOST:PORT/NAME, as in http://127.0.0.1:8000/hpsv2")
    settings = asdict(Calls())
    try:
        for key, text in parse_qsl(parts.query, keep_blank_values=True):
            if key not in settings:
                raise InputError(f"unknown setting {key!r}{nearest(key, settings)} (known: {', '.join(settings)})")
            settings[key] = type(settings[key])(text)
        return f"{parts.scheme}://{parts.netloc}{path}", name, Calls(**settings)
    except ValueError as error:  # InputError too
        raise InputError(f"reward {url!r}: {error}") from error
