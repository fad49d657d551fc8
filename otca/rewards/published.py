"""Published scorers: what each is (`published.yaml`), where its files lie, and weights that are loaded whole or refused.

Nothing is downloaded here unless `fetch` is called. Files are looked for in ``ROOT/<reward>/<file>`` (the setting
``reward_files``) and then in the hub's cache. A scorer of a file of another hash than the published one is built, with a warning,
and its revision says so; where no published hash is on record, the revision has the file's own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
import yaml
from PIL import Image

from otca.errors import InputError, one_line, printable
from otca.files import sha256
from otca.rewards.pixels import check_ratio, to_pictures
from otca.types import Prompt

log = logging.getLogger(__name__)

MEDIA = {"image": "images", "video": "videos", "both": "images and videos"}
DIGITS = 16  # of a hash, how many a message shows
CHUNK = 32  # pictures or texts that go through a network at a time
MAX_RATIO = 100  # longer over shorter side of a picture: preprocessing enlarges the shorter one to a few hundred pixels


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub at a commit; ``bytes`` is rounded where it ends in zeros, ``sha256`` "" if not on record."""

    repo: str
    name: str
    bytes: int
    revision: str = "main"
    sha256: str = ""


@dataclass(frozen=True)
class Card:
    """What a scorer measures, and what it takes to run it."""

    name: str
    measures: str
    modality: str
    range: tuple[float, float]  # where not bounded, the usual scores
    source: str
    licence: str
    memory: float  # gigabytes of the weights as loaded
    files: tuple[HubFile, ...]
    folder: str  # where the files lie below ``reward_files``: scorers of one folder share one network
    package: str = ""  # what brings the weights, if that is not the hub
    memory_cpu: float = 0.0  # gigabytes on a CPU, if not as much as elsewhere

    @property
    def revision(self) -> str:
        """Hub ids and revisions of the files, or the package and its version."""
        if self.package:
            return f"{self.package} {version(self.package)}"
        return ", ".join(dict.fromkeys(f"{file.repo}@{file.revision}" for file in self.files))


CARDS: dict[str, Card] = {}
CLASSES: dict[str, str] = {}  # what `published.yaml` says: a reward's card, and its class as ``module:class``

for _name, _facts in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items():
    CLASSES[_name] = _facts.pop("class")
    _low, _high = _facts.pop("range")
    _files = tuple(HubFile(**file) for file in _facts.pop("files"))
    CARDS[_name] = Card(name=_name, files=_files, range=(float(_low), float(_high)), **{"folder": _name} | _facts)


class PublishedReward:
    """A reward made of ``(files, device)``: the files of its card by name (`load_published`); the facts are the card's."""

    card: ClassVar[Card]
    found_files: tuple[str, ...] = ()
    """Of each file that it was built from, what is known: as published, another, or not to be told."""

    name = property(lambda self: self.card.name)
    range = property(lambda self: self.card.range)
    source = property(lambda self: self.card.source)
    licence = property(lambda self: self.card.licence)
    revision = property(lambda self: ", ".join([self.card.revision, *self.found_files]))


class PictureReward(PublishedReward):
    """A scorer of pictures and texts; a video's score is the mean over its frames.

    A subclass has ``_score(pictures, texts)``, which gets at most `CHUNK` pictures and what ``_read(texts)`` makes of each one's.
    """

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores, float32 (B,), of media (B, F, 3, H, W) in [0, 1] and their prompts."""
        frames = media_BFCHW.shape[1]
        texts = [prompt.text for prompt in prompts for _ in range(frames)]
        return self.score_pictures(to_pictures(media_BFCHW.flatten(0, 1)), texts).unflatten(0, (-1, frames)).mean(1)

    @torch.inference_mode()
    def score_pictures(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Scores, float32 (N,), of pictures in any mode of Pillow's. Raises InputError for one beyond `MAX_RATIO`."""
        for picture in pictures:
            check_ratio(self.name, *picture.size, MAX_RATIO)
        distinct = list(dict.fromkeys(texts))
        read = {text: told for part in _parts(distinct) for text, told in zip(part, self._read(part))}
        pairs = zip(_parts(pictures), _parts([read[text] for text in texts]))
        return torch.cat([self._score(*pair).float() for pair in pairs])

    def _read(self, texts: list[str]) -> Sequence[Any]:
        return texts

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[Any]) -> torch.Tensor:
        raise NotImplementedError


def _parts(rows: Sequence) -> list[Sequence]:
    return [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]


def located(card: Card, root: str | Path = "") -> dict[str, Path | None]:
    """File name → where it is: below ``root/<reward>/``, else in the hub's cache, else None."""
    from huggingface_hub import try_to_load_from_cache

    out: dict[str, Path | None] = {}
    for file in card.files:
        own = Path(root).expanduser() / card.folder / file.name if root else None
        cached = try_to_load_from_cache(file.repo, file.name, revision=file.revision)
        out[file.name] = own if own and own.is_file() else Path(cached) if isinstance(cached, str) else None
    return out


def find_files(card: Card, root: str | Path = "") -> dict[str, Path]:
    """Where every file is. Raises InputError naming the first that is nowhere, and the ways to get it."""
    found = located(card, root)
    for file in card.files:
        if found[file.name] is None:
            root = root or "FOLDER"
            raise InputError(
                f"reward {card.name!r}: {file.name} of {file.repo} is neither in {Path(root) / card.folder} nor in the hub's "
                f"cache; fetch it with `otca rewards --fetch {card.name}`, or put it there and set reward_files to {root}"
            )
    return found


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    return sha256(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, read once a process while it stays as it is: 0.6 s a GB, less than a tenth of what loading takes."""
    facts = path.stat()
    return _digest(path.resolve(), facts.st_size, facts.st_mtime_ns)


def is_other(file: HubFile, path: Path) -> bool:
    """Whether a file is not the published one, as far as that one's hash is on record."""
    return bool(file.sha256) and digest(path) != file.sha256


def load_published(kind: type[PublishedReward], root: str | Path, device: torch.device) -> PublishedReward:
    """A scorer of the files that `find_files` finds, with a warning for each that is not the published one, as a fine-tune is."""
    card, files, known = kind.card, find_files(kind.card, root), []
    try:
        for file in card.files:
            path, shown = files[file.name], digest(files[file.name])[:DIGITS]
            if is_other(file, path):
                known.append(f"but {file.name} of SHA-256 {shown}")
                said = f"{path} is not the published file (SHA-256 {shown}…, published: {file.sha256[:DIGITS]}…)"
                log.warning("reward %r: %s; scores are those of this file", card.name, said)
            else:
                state = "as published" if file.sha256 else f"of SHA-256 {shown} (no hash on record)"
                known.append(f"{file.name} {state}")
        reward = kind(files, device)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each format's library has its own kinds
        where = ", ".join(sorted({str(path.parent) for path in files.values()}))
        said = f"its files in {where} cannot be loaded ({one_line(error)}); fetch them again"
        raise InputError(f"reward {card.name!r}: {said}") from error
    reward.found_files = tuple(known)
    return reward


def fetch(card: Card) -> dict[str, Path]:
    """Download what is missing into the hub's cache; raises InputError where that fails or is not what was published."""
    from huggingface_hub import hf_hub_download

    found: dict[str, Path] = {}
    for file in card.files:
        who = f"reward {card.name!r}: {file.name} of {file.repo}"
        try:
            path = found[file.name] = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
        except Exception as error:  # the hub raises many kinds
            raise InputError(f"{who} cannot be fetched ({one_line(error)})") from error
        if is_other(file, path):
            seen = f"{path.resolve()} has SHA-256 {digest(path)[:DIGITS]}…, published: {file.sha256[:DIGITS]}…"
            raise InputError(f"{who} is damaged or was replaced: {seen}; delete it and fetch again")
    return found


def described(name: str, kind: type, root: str) -> str:
    """What `otca rewards` says of a reward: what it measures and takes, where it comes from, and a line for each file."""
    from rich.filesize import decimal

    if not issubclass(kind, PublishedReward):
        facts, what, memory = kind(), (kind.__doc__ or "").strip().splitlines()[0], "none, as it has no network"
        lines = [f"files: none, as it comes with this repository (revision {facts.revision})"]
    else:
        facts, what, found = kind.card, kind.card.measures, located(kind.card, root)
        memory = f"{facts.memory:g} GB on a GPU, {facts.memory_cpu:g} GB on a CPU" if facts.memory_cpu else f"{facts.memory:g} GB"
        if facts.files:  # the largest is held while it is read
            memory += f", and {decimal(max(file.bytes for file in facts.files), precision=2)} more while loading"
        lines = [f"files: in the package (revision {facts.revision})"] if facts.package else []
        for file in facts.files:
            path, state = found[file.name], "not here"
            if path and is_other(file, path):
                state = f"{path}, not the published file (SHA-256 {digest(path)[:DIGITS]}…)"
            elif path:
                state = f"{path}, {'as published' if file.sha256 else 'no hash on record'}"
            lines.append(f"{file.name} ({decimal(file.bytes, precision=2)}) of {file.repo}@{file.revision}: {state}")
        lines += [f"fetch with: python -m otca rewards --fetch {facts.name}"] * (None in found.values())
    low, high = facts.range
    takes = f"{MEDIA[facts.modality]}; range: {low:g} to {high:g}; memory: {memory}; licence: {facts.licence}"
    return "\n    ".join([f"{name}: {what}", takes, f"source: {facts.source}", *lines])


def read_weights(who: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, on the CPU; nothing but tensors is ever unpickled.

    A file that keeps them under ``state_dict`` or ``model`` is unwrapped; ``who``: as "reward 'clip'", in messages.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many kinds; torch's advice for pickles is to run them
        why = "more than tensors, or damaged; no pickle is run" if isinstance(error, UnpicklingError) else one_line(error)
        raise InputError(f"{who}: {path} cannot be read ({why}); fetch it again, or save it as safetensors") from error
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights.get("model", weights))
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) and isinstance(k, str) for k, v in weights.items()):
        raise InputError(f"{who}: {path} does not hold tensors by name; fetch it again")
    return weights


def load_whole(
    who: str, module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path, ours: Callable[[str], str] = str
) -> torch.nn.Module:
    """The module with weights that fit key by key, frozen, in evaluation mode; ``ours``: its name of a key of the file."""
    bad = next((key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"{who}: {path} holds NaN or Inf in {bad}; fetch it again")
    try:
        module.load_state_dict({ours(key): value for key, value in weights.items()})
    except RuntimeError as error:
        raise InputError(f"{who}: {path} does not fit: {printable(error)[:400]}") from error
    return module.eval().requires_grad_(False)


def five_layers(features: int) -> torch.nn.Sequential:
    """The head of LAION's predictor and of ImageReward: linear layers at the places 0, 2, 4, 6 and 7, as in the files."""
    sizes = itertools.pairwise((features, 1024, 128, 64, 16, 1))
    first, second, third, *last = (torch.nn.Linear(before, after) for before, after in sizes)
    gap = torch.nn.Identity()
    return torch.nn.Sequential(first, gap, second, gap, third, gap, *last)
