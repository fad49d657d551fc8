"""Files that are read in one way, and never half-written; their hashes; a run folder's lock; where checkpoints lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from otca.errors import InputError, InUse, one_line

HASHES = "sha256.json"
"""Name of the file that lists the SHA-256 of the others in its folder."""
PARTIAL = ".partial"
"""Ending of hidden files and folders that are being written."""
LOCK = "in_use"
"""Name of the file in a run's folder that says which process works in it."""
EMBEDDED = Path(__file__).parent / "embedded" / "checkpoints"


# -------------------------------------------------------------------------------------------------------------- reading
def read_text(path: str | Path, what: str) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises InputError naming ``what`` and the path."""
    if not os.path.isfile(path):
        raise InputError(f"{what} {path} not found, or no file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read ({one_line(error)})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, no key of which comes twice: the last would count."""
    out = dict(pairs)
    if len(out) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} comes twice in an object")
    return out


DECODER = json.JSONDecoder(object_pairs_hook=_object)  # one for all: making it costs more than a line of a list


def parse_json(text: str, what: str) -> Any:
    """The content of a JSON text; ``what`` names it in messages. Raises InputError for what is none, or nested without end."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:  # of whole numbers of thousands of digits, too
        raise InputError(f"{what}: not JSON ({one_line(error)})") from error


def read_json(path: Path, what: str, kind: type = object) -> Any:
    """The content of a JSON file, of that kind. Raises InputError naming ``what`` and the path."""
    found = parse_json(read_text(path, f"{what}:"), f"{what}: {path} cannot be read")
    if not isinstance(found, kind):
        raise InputError(f"{what}: {path} holds a {type(found).__name__} and no {kind.__name__}; write or fetch it again")
    return found


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The same for a file that must hold an object."""
    return read_json(path, what, dict)


# -------------------------------------------------------------------------------------------------------------- writing
def write_atomic(path: Path, content: str | bytes) -> None:
    """Write aside, flush to disk, rename: the path holds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        flush(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let what is wrong with writing a file say which one: of a full disk Python does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def folder_aside(target: Path, write: bool = True) -> Iterator[Path]:
    """A new folder that takes ``target``'s place, flushed and hashed, if nothing is raised; where not to ``write`` a path."""
    aside = target.with_name(f".{target.name}{PARTIAL}")
    if not write:
        yield aside
        return
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        write_hashes(aside)
        flush(*aside.rglob("*"), aside)
        os.replace(aside, target)
        flush(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def flush(*paths: Path) -> None:
    """Flush files, and the names in folders, to disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def writable_folder(folder: Path) -> Path:
    """The folder, which need not be there yet. Raises InputError where nothing can be written to it, or it cannot be made."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written to ({error.strerror}); choose another one") from error
    return folder


# --------------------------------------------------------------------------------------------------------------- hashes
def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes with the file, or with any file of the folder: place, size in bytes, time of the last change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def write_hashes(folder: Path) -> None:
    """List every file below the folder with its SHA-256 in `sha256.json`, written last."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / HASHES)
    listed = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    write_atomic(folder / HASHES, json.dumps(listed, indent=1) + "\n")


def changed_files(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """A line for each listed file of a folder that is missing or has not the SHA-256 that it had."""
    out = []
    for name, expected in listed.items():
        path, short = folder / name, str(expected)[:16]
        if not path.is_file():
            out.append(f"{path} is missing (expected SHA-256 {short}…)")
        elif (found := sha256(path)) != expected:
            out.append(f"{path} is damaged: expected SHA-256 {short}…, found {found[:16]}…")
    return out


def hash_integrity_errors(folder: Path) -> list[str]:
    """`changed_files` of a checkpoint, by its own listing; or that there is none that can be read."""
    try:
        return changed_files(folder, read_object(folder / HASHES, f"checkpoint {folder}"))
    except InputError as error:
        return [str(error)]


def verify_hashes(folder: Path) -> None:
    """Raise InputError naming the first of `hash_integrity_errors`, and how many there are."""
    if found := hash_integrity_errors(folder):
        raise InputError(f"{found[0]}; restore it (missing or damaged in all: {len(found)})")


# ----------------------------------------------------------------------------------------------------------------- lock
@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process, freed of what a killed one left half-written (its lock the kernel frees).

    Raises `InUse` naming host and pid of the process that has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / LOCK
    try:
        lock = FileLock(note).acquire(timeout=0)
    except Timeout as error:
        holder = note.read_text().strip() or "another process"
        raise InUse(f"{folder} is in use by {holder}; wait for it, stop it, or use another folder") from error
    with lock:
        note.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n")
        for path in folder.rglob(f".*{PARTIAL}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run's folder (on this machine, or on one whose file system shares its locks)."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


# --------------------------------------------------------------------------------------------------------------- models
def resolve_model(path: str) -> str:
    """Folder or hub id of a model; ``embedded:NAME`` is a checkpoint of the package, verified against its hashes."""
    if path.startswith("embedded:"):
        folder = EMBEDDED / path.removeprefix("embedded:")
        if not folder.is_dir():
            known = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.iterdir()) if p.is_dir())
            raise InputError(f"policy.path {path!r} is no shipped checkpoint (there are: {known})")
        verify_hashes(folder)
        return str(folder)
    if path.startswith((".", "/")) and not (Path(path) / "model_index.json").is_file():
        raise InputError(f"policy.path {path}: no model_index.json there; give a diffusers pipeline folder or a hub id")
    return path


def model_notes(folder: str) -> dict:
    """What a model folder's otca.json records for its use: ``max_sequence_length``, ``true_guidance``, ``frames``; or nothing."""
    path = Path(folder) / "otca.json"
    notes = read_object(path, "model notes") if path.is_file() else {}
    for key in notes.keys() & {"max_sequence_length", "true_guidance", "frames"}:
        if type(notes[key]) not in (int, float) or notes[key] < 0:
            raise InputError(f"model notes {path}: {key} is {str(notes[key])[:40]!r} and no number of 0 or more; mend the file")
    return notes


def model_identity(folder: str) -> dict[str, str]:
    """SHA-256 of a checkpoint folder's own listing of hashes (as ``sha256``); empty for models without one."""
    path = Path(folder) / HASHES
    return {"sha256": sha256(path)} if path.is_file() else {}
