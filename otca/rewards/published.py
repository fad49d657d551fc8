"""Published scorers: what each is, where its files lie, and weights that are loaded whole or refused.

Nothing is downloaded here unless `fetch` is called. Files are looked for in ``ROOT/<reward>/<file>`` (the setting
``reward_files``) and then in the hub's cache; a scorer that lacks one refuses to be built and says how to get it.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from otca.errors import InputError, one_line

SHOWN = 3
"""Keys that a message names before it says how many more there are."""


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub: ``gigabytes`` is its size, ``revision`` a commit or a branch."""

    repo: str
    name: str
    gigabytes: float
    revision: str = "main"


@dataclass(frozen=True)
class Card:
    """What a scorer measures, and what it takes to run it.

    ``range``: lowest and highest score, where not bounded the usual ones; ``memory``: gigabytes of its weights as loaded;
    ``folder``: where its files lie, if not under its name: scorers that name the same folder share one network.
    """

    name: str
    measures: str
    medium: str
    range: tuple[float, float]
    source: str
    licence: str
    memory: float
    files: tuple[HubFile, ...]
    folder: str = ""

    @property
    def place(self) -> str:
        """Folder of its files below ``reward_files``."""
        return self.folder or self.name


class PublishedReward:
    """What published scorers share: the facts on their card.

    A subclass is made of ``(files, device)``, where ``files`` are those of its card by name, and scores on that device.
    """

    card: ClassVar[Card]

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
        """Hub ids and revisions of the files."""
        return ", ".join(dict.fromkeys(f"{file.repo}@{file.revision}" for file in self.card.files))


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


def fetch(card: Card) -> dict[str, Path]:
    """Download what is missing into the hub's cache (this needs the network). Raises InputError where that fails."""
    from huggingface_hub import hf_hub_download

    found: dict[str, Path] = {}
    for file in card.files:
        try:
            found[file.name] = Path(hf_hub_download(file.repo, file.name, revision=file.revision))
        except Exception as error:  # the hub raises many kinds
            raise InputError(f"reward {card.name!r}: {file.name} of {file.repo} cannot be fetched ({one_line(error)})") from error
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


def load_whole(reward: str, module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load weights that fit key by key. Raises InputError naming what is missing, left over or of another shape."""
    own = module.state_dict()
    other = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    wrong = {
        "lacks": [k for k in own if k not in weights],
        "has too much": [k for k in weights if k not in own],
        "has another shape of": [f"{k} {tuple(weights[k].shape)} for {tuple(own[k].shape)}" for k in other],
    }
    said = [
        f"{what} {', '.join(keys[:SHOWN])}" + f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN)
        for what, keys in wrong.items()
        if keys
    ]
    if said:
        raise InputError(f"reward {reward!r}: {path} does not fit: it {'; '.join(said)}")
    module.load_state_dict(weights)


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
