"""Published scorers: what each is, where its files lie, and weights that are loaded whole or refused.

Nothing is downloaded here unless `fetch` is called. Files are looked for in ``ROOT/<reward>/<file>`` (the setting
``reward_files``) and then in the hub's cache; a scorer that lacks one refuses to be built and says how to get it. One that finds
a file of another hash than the published one is built from it, and says so: once in a warning, and always in its revision. Of
most small files, and of VideoAlign's weights, no published hash is on record: these are not checked, and that too is said.
"""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch

from otca.errors import InputError, one_line
from otca.files import sha256

log = logging.getLogger(__name__)

SHOWN = 3
"""Keys that a message names before it says how many more there are."""
DIGITS = 16
"""Of a hash, how many a message shows."""


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


class PublishedReward:
    """What published scorers share: the facts on their card.

    A subclass is made of ``(files, device)``, where ``files`` are those of its card by name, and scores on that device.
    """

    card: ClassVar[Card]
    found_files: tuple[str, ...] = ()
    """Of each file that it was built from, what is known: as published, another, or not to be told (`load_published`)."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.card.name

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return self.card.range

    @property
    def source(self) -> str:
        """Where the definition comes from."""
        return self.card.source

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.card.licence

    @property
    def revision(self) -> str:
        """That of its card, and of each file whether it is the published one; where it is not, or nothing tells, its hash."""
        return ", ".join([self.card.revision, *self.found_files])


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
    found: dict[str, Path] = {}
    for name, path in located(card, root).items():
        if path is None:
            file = next(f for f in card.files if f.name == name)
            root = root or "FOLDER"
            raise InputError(
                f"reward {card.name!r}: {name} of {file.repo} is neither in {Path(root) / card.place} nor in the hub's cache; "
                f"fetch it with `python -m otca rewards --fetch {card.name}`, or put it there and set reward_files to {root}"
            )
        found[name] = path
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, read once a process while it stays as it is: 0.6 s a GB, less than a tenth of what loading takes.

    Raises InputError for what cannot be read.
    """
    try:
        facts = path.stat()
        return _digest(path.resolve(), facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror}); fetch it again, or see to its permissions") from error


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    return sha256(path)


def other_files(card: Card, files: Mapping[str, Path]) -> dict[str, str]:
    """Name → SHA-256 of each file that is here and not the published one, as far as that one's hash is on record."""
    known = [(file, files[file.name]) for file in card.files if file.sha256 and file.name in files]
    return {file.name: found for file, path in known if (found := digest(path)) != file.sha256}


def load_published(kind: type[PublishedReward], root: str | Path, device: torch.device) -> PublishedReward:
    """A scorer of the files that `find_files` finds, with a warning for each that is not the published one.

    Such a file is legitimate, as a fine-tune of one's own; the scores are then its own, and the scorer's revision says so. Files
    without a hash on record are warned of where they lie below ``root``, as the hub's cache keeps those of a commit apart, and
    their hashes stand in the revision, wherever they lie. Raises InputError for files that are missing or do not fit.
    """
    card, files = kind.card, find_files(kind.card, root)
    others = other_files(card, files)
    unknown = [file.name for file in card.files if not file.sha256]
    own = Path(root).expanduser() / card.place
    if root and (unchecked := [name for name in unknown if files[name] == own / name]):
        log.warning(
            "reward %r: no hash on record tells whether %s in %s %s as published; scores are those of these files",
            card.name,
            ", ".join(unchecked),
            own,
            "is" if len(unchecked) == 1 else "are",
        )
    for name, found in others.items():
        wanted = next(file.sha256 for file in card.files if file.name == name)
        log.warning(
            "reward %r: %s is not the published file (SHA-256 %s…, published: %s…); scores are those of this file",
            card.name,
            files[name],
            found[:DIGITS],
            wanted[:DIGITS],
        )
    reward = kind(files, device)
    reward.found_files = tuple(_known(file, files[file.name]) for file in card.files)
    return reward


def _known(file: HubFile, path: Path) -> str:
    """What a revision says of a file."""
    found = digest(path)
    if not file.sha256:
        return f"{file.name} of SHA-256 {found[:DIGITS]} (no hash on record)"
    return f"{file.name} as published" if found == file.sha256 else f"but {file.name} of SHA-256 {found[:DIGITS]}"


def fetch(card: Card) -> dict[str, Path]:
    """Download what is missing into the hub's cache (this needs the network), and check the hashes that are on record.

    Raises InputError, naming the file, where a download fails or is not what was published.
    """
    from huggingface_hub import hf_hub_download

    found: dict[str, Path] = {}
    for file in card.files:
        try:
            path = found[file.name] = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
        except Exception as error:  # the hub raises many kinds
            raise InputError(f"reward {card.name!r}: {file.name} of {file.repo} cannot be fetched ({one_line(error)})") from error
        if file.name in other_files(card, found):
            raise InputError(
                f"reward {card.name!r}: {file.name} of {file.repo} is damaged or was replaced: {path.resolve()} has "
                f"{path.stat().st_size:,} bytes of SHA-256 {digest(path)[:DIGITS]}…, published: {file.sha256[:DIGITS]}…; "
                "delete it and fetch again"
            )
    return found


def read_weights(reward: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file, on the CPU; nothing but tensors is ever unpickled.

    A file that keeps them under ``state_dict`` is unwrapped. Raises InputError for what cannot be read or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = "damaged, or of more than tensors, and what is pickled is not run"
        raise InputError(
            f"reward {reward!r}: {path} cannot be read ({why}); fetch it again, or save it as safetensors"
        ) from error
    except Exception as error:  # unpickling raises many kinds
        raise InputError(f"reward {reward!r}: {path} cannot be read ({one_line(error)}); fetch it again") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict):
        raise InputError(f"reward {reward!r}: {path} holds a {type(weights).__name__} and no tensors by name; fetch it again")
    other = next((key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)), None)
    if other is not None:
        found = f"a {type(weights[other]).__name__} under {str(other)[:60]!r}"
        raise InputError(f"reward {reward!r}: {path} holds {found}, where tensors have names; fetch it again")
    return weights


def load_whole(
    reward: str,
    module: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    path: Path,
    ours: Callable[[str], str] = str,
    theirs: Callable[[str], str] = str,
) -> None:
    """Load weights that fit key by key. Raises InputError naming, as the file does, what is missing, left over or misshapen.

    ``ours``: the module's name of a key of the file; ``theirs``: the other way.
    """
    own, key_of = module.state_dict(), {ours(key): key for key in weights}
    other = [k for k in own if k in key_of and own[k].shape != weights[key_of[k]].shape]
    wrong = {
        "lacks": [theirs(k) for k in own if k not in key_of],
        "has too much": [key for key in weights if ours(key) not in own or key_of[ours(key)] != key],
        "has another shape of": [f"{key_of[k]} {tuple(weights[key_of[k]].shape)} for {tuple(own[k].shape)}" for k in other],
    }
    said = [
        f"{what} {', '.join(keys[:SHOWN])}" + f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN)
        for what, keys in wrong.items()
        if keys
    ]
    if said:
        raise InputError(f"reward {reward!r}: {path} does not fit: it {'; '.join(said)}")
    module.load_state_dict({k: weights[key] for k, key in key_of.items()})


def five_layers(features: int) -> torch.nn.Sequential:
    """The head of LAION's aesthetic predictor, which ImageReward took over: linear layers without activations.

    They stand at the places 0, 2, 4, 6 and 7, as in the files; dropout followed the first three in training.
    """
    width = (features, 1024, 128, 64, 16, 1)
    linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(width)]
    gaps = [[layer, torch.nn.Identity()] for layer in linear[:3]]
    return torch.nn.Sequential(*itertools.chain(*gaps), *linear[3:])


@torch.inference_mode()
def by_frames(
    score: Callable[[torch.Tensor, list[str]], torch.Tensor], media_BFCHW: torch.Tensor, texts: list[str], chunk: int
) -> torch.Tensor:
    """A scorer of pictures on media: a picture's score, or the mean over a video's frames, float32 (B,).

    ``score(media_NCHW, texts)`` is called on at most ``chunk`` frames at a time.
    """
    frames = media_BFCHW.shape[1]
    frame_NCHW, text_N = media_BFCHW.flatten(0, 1), [text for text in texts for _ in range(frames)]
    parts = [score(frame_NCHW[i : i + chunk], text_N[i : i + chunk]).float() for i in range(0, len(frame_NCHW), chunk)]
    return torch.cat(parts).unflatten(0, (-1, frames)).mean(1)
