"""Encoded prompts: each distinct text once, the newest in memory, all on disk where a folder is given."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.nn.utils.rnn import pad_sequence

from otca.files import write_atomic

MEMORY_BYTES = 2**30
"""Encoded texts that stay in memory; the oldest leave first."""

Parts = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts, one row a sample: tensors (L, …), in the order of the adapter's `_encode_text`."""

    rows: list[Parts]

    @cached_property
    def parts(self) -> Parts:
        """Tensors (B, L, …), with zeros after shorter texts."""
        return tuple(pad_sequence(list(part), batch_first=True) for part in zip(*self.rows))

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """True where the first part has a token, (B, L); None where all texts are of one length."""
        lengths, device = [len(row[0]) for row in self.rows], self.rows[0][0].device
        if len(set(lengths)) == 1:
            return None
        return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def encoders_identity(folder: str) -> str:
    """What tells the text encoders of two pipelines apart: names, sizes and times of their files; of a hub id, its commit."""
    local = Path(folder)
    if not local.is_dir():
        from huggingface_hub import try_to_load_from_cache

        return f"{folder} {try_to_load_from_cache(folder, 'model_index.json')}"
    files = sorted(path for part in ("text_encoder*", "tokenizer*") for path in local.glob(f"{part}/*"))
    return repr([(path.relative_to(local).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files])


class TextCache:
    """Encodings by text; ``encode`` makes missing ones, all in one call, so that encoders are loaded once for them, and one after
    another, so that each is on disk before the next is made: no more than one need be held, and a kill loses no more.

    On disk a text is ``<folder>/<hash>.safetensors``, the hash of everything that shapes its encoding: ``identity`` (the
    checkpoint, the length, the precision) and the text itself.
    """

    def __init__(
        self, encode: Callable[[list[str]], Iterable[Parts]], identity: str, folder: str | Path | None, device: torch.device
    ):
        self.encode, self.identity, self.device = encode, identity, device
        self.folder = Path(folder) if folder else None
        self.kept: OrderedDict[str, Parts] = OrderedDict()

    def file(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(repr((self.identity, text)).encode()).hexdigest()}.safetensors"

    def write(self, texts: list[str]) -> None:
        """Encode to disk what is not there yet."""
        missing = [text for text in dict.fromkeys(texts) if not self.file(text).is_file()]
        for text, parts in zip(missing, self.encode(missing) if missing else [], strict=True):
            write_atomic(self.file(text), save({str(i): part.cpu().contiguous() for i, part in enumerate(parts)}))

    def get(self, texts: list[str]) -> list[Parts]:
        """Encodings of texts, in their order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.kept]
        if self.folder is not None:
            self.write(missing)
            made = [load_file(self.file(text), device=str(self.device)) for text in missing]
            made = [tuple(parts[str(i)] for i in range(len(parts))) for parts in made]
        else:
            made = list(self.encode(missing)) if missing else []
        self.kept |= zip(missing, made, strict=True)
        for text in dict.fromkeys(texts):
            self.kept.move_to_end(text)
        out = [self.kept[text] for text in texts]
        held = sum(part.nbytes for parts in self.kept.values() for part in parts)
        while held > MEMORY_BYTES and len(self.kept) > 1:
            held -= sum(part.nbytes for part in self.kept.popitem(last=False)[1])
        return out
