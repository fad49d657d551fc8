"""Files that are never half-written, hashes that tell when they are, and where the shipped checkpoints lie."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from otca.errors import InputError, InUse
from otca.untrusted import read_object

HASHES = "sha256.json"
"""Name of the file that lists the SHA-256 of the others in its folder."""

PARTIAL = ".partial"
"""Ending of hidden files and folders that are being written."""

LOCK = "in_use"
"""Name of the file in a run's folder that says which process works in it."""

EMBEDDED = Path(__file__).parent / "embedded" / "checkpoints"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write aside, flush to disk, rename: the path holds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half-written below a folder that nobody else writes to."""
    for path in folder.rglob(f".*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def flush_tree(folder: Path) -> None:
    """Flush every file below a folder, and the names in it, to disk."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """One SHA-256 of all files below a folder, of their names and contents: what ``sha256sum -z * | sha256sum`` prints in it.

    So for files that lie in the folder itself; those of folders in it are named by their path.
    """
    names = sorted(os.fsencode(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
    lines = [f"{sha256(folder / os.fsdecode(name))}  ".encode() + name + b"\0" for name in names]
    return hashlib.sha256(b"".join(lines)).hexdigest()


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes with the file, or with any file of the folder: place, size in bytes, time of the last change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def changed_files(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """A line for each listed file of a folder that is missing or has not the SHA-256 that it had.

    A name that ends with ``/`` is that of a folder, listed with its `sha256_tree`.
    """
    out = []
    for name, expected in listed.items():
        whole = name.endswith("/")
        path = folder / name
        if not (path.is_dir() if whole else path.is_file()):
            out.append(f"{path} is missing")
            continue
        found = sha256_tree(path) if whole else sha256(path)
        if found != expected:
            what = "holds other files than it did" if whole else "was changed"
            out.append(f"{path} {what}: expected SHA-256 {str(expected)[:16]}…, found {found[:16]}…")
    return out


def write_hashes(folder: Path, files: Iterable[Path] | None = None) -> None:
    """List every file below the folder, or these of them, with its SHA-256 in `sha256.json`, written last."""
    if files is None:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / HASHES)
    write_listing(folder / HASHES, {p.relative_to(folder).as_posix(): sha256(p) for p in files})


def write_listing(path: Path, listed: Mapping[str, str]) -> None:
    """Write name → SHA-256 as JSON."""
    write_atomic(path, json.dumps(listed, indent=1) + "\n")


def hash_integrity_errors(folder: Path) -> list[str]:
    """A line for each file of a checkpoint that is missing or whose hash differs from the folder's listing.

    Unlike `changed_files` it takes no name for that of a folder: a checkpoint of others could have any of them hashed.
    Raises InputError where there is no such listing.
    """
    listing = folder / HASHES
    if not listing.is_file():
        raise InputError(f"checkpoint {folder}: {HASHES} not found; the folder is incomplete or no checkpoint")
    out = []
    for name, expected in read_object(listing, f"checkpoint {folder}").items():
        path, short = folder / name, str(expected)[:16]
        if not path.is_file():
            out.append(f"checkpoint file {path} is missing (expected SHA-256 {short}…); restore the folder")
        elif (found := sha256(path)) != expected:
            out.append(f"checkpoint file {path} is damaged: expected SHA-256 {short}…, found {found[:16]}…; restore it")
    return out


def verify_hashes(folder: Path) -> None:
    """Raise InputError naming the first of `hash_integrity_errors`, and how many there are."""
    found = hash_integrity_errors(folder)
    if found:
        raise InputError(found[0] + (f" (missing or damaged in all: {len(found)} files)" if found[1:] else ""))


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process for a while, freed of what a killed one left half-written.

    Raises `InUse` naming host and pid of the process that has it.

    The kernel keeps the lock (``flock``), so that of a killed process is gone with it, and what its file says is written over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InUse(
                f"{folder} is in use by {file.read().strip() or 'another process'}; wait for it, stop it, or use another folder"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        remove_partial(folder)
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run's folder (on this machine, or on one whose file system shares its locks)."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def resolve_model(path: str) -> str:
    """Folder or hub id of a model; ``embedded:NAME`` is a checkpoint of the package, verified against its hashes."""
    if path.startswith("embedded:"):
        folder = EMBEDDED / path.removeprefix("embedded:")
        if not folder.is_dir():
            known = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.iterdir()) if p.is_dir())
            raise InputError(f"policy.path {path!r} is no shipped checkpoint (there are: {known})")
        verify_hashes(folder)
        return str(folder)
    if path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "model_index.json").is_file():
            raise InputError(f"policy.path {path}: no model_index.json there; give a diffusers pipeline folder or a hub id")
        return str(folder)
    return path


def model_notes(folder: str) -> dict:
    """What a model folder's otca.json records for its use: ``max_sequence_length``, ``true_guidance``, ``frames``; or nothing."""
    path = Path(folder) / "otca.json"
    return read_object(path, "model notes") if path.is_file() else {}


def model_identity(folder: str) -> dict[str, str]:
    """SHA-256 of a checkpoint folder's own listing of hashes (as ``sha256``); empty for models without one."""
    path = Path(folder) / HASHES
    return {"sha256": sha256(path)} if path.is_file() else {}


def writable_folder(folder: Path) -> Path:
    """Create the folder if need be and prove that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(dir=folder)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written to ({error.strerror}); choose another one") from error
    return folder
