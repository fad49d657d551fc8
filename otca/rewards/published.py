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
from otca.rewards.pixels import to_pictures
from otca.types import Prompt

log = logging.getLogger(__name__)

DIGITS = 16
"""Of a hash, how many a message shows."""
CHUNK = 32
"""Pictures or texts that go through a network at a time."""


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub at a ``revision``: a commit, for everything in the registry.

    ``bytes``: its size, rounded where it ends in zeros; ``sha256``: its hash, "" where that is not on record.
    """

    repo: str
    name: str
    bytes: int
    revision: str = "main"
    sha256: str = ""


@dataclass(frozen=True)
class Card:
    """What a scorer measures, and what it takes to run it.

    ``range``: lowest and highest score, where not bounded the usual ones; ``memory``: gigabytes of its weights as loaded;
    ``folder``: where its files lie, if not under its name: scorers that name the same folder share one network;
    ``package``: what brings the weights, if that is not the hub; ``memory_cpu``: gigabytes on a CPU, if not as much as elsewhere.
    """

    name: str
    measures: str
    modality: str
    range: tuple[float, float]
    source: str
    licence: str
    memory: float
    files: tuple[HubFile, ...]
    folder: str = ""
    package: str = ""
    memory_cpu: float = 0.0

    @property
    def revision(self) -> str:
        """Hub ids and revisions of the files, or the package and its version."""
        if self.package:
            return f"{self.package} {version(self.package)}"
        return ", ".join(dict.fromkeys(f"{file.repo}@{file.revision}" for file in self.files))

    @property
    def place(self) -> str:
        """Folder of its files below ``reward_files``."""
        return self.folder or self.name


CARDS: dict[str, Card] = {}
CLASSES: dict[str, str] = {}
"""What `published.yaml` says: a reward's card, and its class as ``module:class``."""

for _name, _facts in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items():
    CLASSES[_name] = _facts.pop("class")
    _low, _high = _facts.pop("range")
    _files = tuple(HubFile(**file) for file in _facts.pop("files"))
    CARDS[_name] = Card(name=_name, files=_files, range=(float(_low), float(_high)), **_facts)


class PublishedReward:
    """What published scorers share: the facts on their card.

    A subclass is made of ``(files, device)``, where ``files`` are those of its card by name, and scores on that device. What
    goes wrong while it is made is about its files (`load_published`).
    """

    card: ClassVar[Card]
    found_files: tuple[str, ...] = ()
    """Of each file that it was built from, what is known: as published, another, or not to be told (`load_published`)."""

    name = property(lambda self: self.card.name)
    range = property(lambda self: self.card.range)
    source = property(lambda self: self.card.source)
    licence = property(lambda self: self.card.licence)

    @property
    def revision(self) -> str:
        """That of its card, and of each file whether it is the published one; where it is not, or nothing tells, its hash."""
        return ", ".join([self.card.revision, *self.found_files])


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
        """Scores, float32 (N,), of pictures in any mode of Pillow's."""
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


# ---------------------------------------------------------------------------------------------------------------- files


def located(card: Card, root: str | Path = "") -> dict[str, Path | None]:
    """File name → where it is: below ``root/<reward>/``, else in the hub's cache, else None."""
    from huggingface_hub import try_to_load_from_cache

    out: dict[str, Path | None] = {}
    for file in card.files:
        own = Path(root).expanduser() / card.place / file.name if root else None
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
                f"reward {card.name!r}: {file.name} of {file.repo} is neither in {Path(root) / card.place} nor in the hub's "
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


def other_files(card: Card, files: Mapping[str, Path]) -> dict[str, str]:
    """Name → SHA-256 of each file that is here and not the published one, as far as that one's hash is on record."""
    known = [(file, files[file.name]) for file in card.files if file.sha256 and file.name in files]
    return {file.name: found for file, path in known if (found := digest(path)) != file.sha256}


def load_published(kind: type[PublishedReward], root: str | Path, device: torch.device) -> PublishedReward:
    """A scorer of the files that `find_files` finds, with a warning for each that is not the published one.

    Such a file is legitimate, as a fine-tune of one's own; the scores are then its own. Raises InputError for files that are
    missing, unreadable or do not fit, whatever library says so.
    """
    card, files, known = kind.card, find_files(kind.card, root), []
    try:
        for file in card.files:
            found = digest(files[file.name])
            shown = f"{file.name} of SHA-256 {found[:DIGITS]}"
            if not file.sha256:
                known.append(f"{shown} (no hash on record)")
            elif found == file.sha256:
                known.append(f"{file.name} as published")
            else:
                known.append(f"but {shown}")
                log.warning(
                    "reward %r: %s is not the published file (SHA-256 %s…, published: %s…); scores are those of this file",
                    *(card.name, files[file.name], found[:DIGITS], file.sha256[:DIGITS]),
                )
        reward = kind(files, device)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each format's library has its own kinds
        where = ", ".join(sorted({str(path.parent) for path in files.values()}))
        raise InputError(
            f"reward {card.name!r}: its files in {where} cannot be loaded ({one_line(error)}); fetch them again"
        ) from error
    reward.found_files = tuple(known)
    return reward


def fetch(card: Card) -> dict[str, Path]:
    """Download what is missing into the hub's cache (this needs the network), and check the hashes that are on record.

    Raises InputError, naming the file, where a download fails or is not what was published.
    """
    from huggingface_hub import hf_hub_download

    found: dict[str, Path] = {}
    for file in card.files:
        who = f"reward {card.name!r}: {file.name} of {file.repo}"
        try:
            path = found[file.name] = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
        except Exception as error:  # the hub raises many kinds
            raise InputError(f"{who} cannot be fetched ({one_line(error)})") from error
        if file.name in other_files(card, found):
            raise InputError(
                f"{who} is damaged or was replaced: {path.resolve()} has SHA-256 {digest(path)[:DIGITS]}…, published: "
                f"{file.sha256[:DIGITS]}…; delete it and fetch again"
            )
    return found


# -------------------------------------------------------------------------------------------------------------- weights


def read_weights(who: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, on the CPU; nothing but tensors is ever unpickled.

    A file that keeps them under ``state_dict`` or ``model`` is unwrapped; ``who``: as "reward 'clip'", in messages. Raises
    InputError for what cannot be read or holds anything else.
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
    """The module with weights that fit key by key, frozen, in evaluation mode; ``ours``: its name of a key of the file.

    Raises InputError naming what is missing, left over or misshapen, and tensors that hold NaN or Inf.
    """
    bad = next((key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if bad is not None:
        raise InputError(f"{who}: {path} holds NaN or Inf in {bad}; fetch it again")
    try:
        module.load_state_dict({ours(key): value for key, value in weights.items()})
    except RuntimeError as error:
        raise InputError(f"{who}: {path} does not fit: {printable(error)[:400]}") from error
    return module.eval().requires_grad_(False)


def five_layers(features: int) -> torch.nn.Sequential:
    """The head of LAION's aesthetic predictor, which ImageReward took over: linear layers without activations.

    They stand at the places 0, 2, 4, 6 and 7, as in the files; dropout followed the first three in training.
    """
    sizes = itertools.pairwise((features, 1024, 128, 64, 16, 1))
    first, second, third, *last = (torch.nn.Linear(before, after) for before, after in sizes)
    gap = torch.nn.Identity()
    return torch.nn.Sequential(first, gap, second, gap, third, gap, *last)
