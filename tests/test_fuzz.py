"""Readers of prompts and settings: every file is read as promised, or refused in one line; of media: tests/test_media.py.

Files of the right shape get hostile values and damage to their bytes. ``FUZZ_INPUTS`` in the environment: how many a reader gets.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval import generate
from otca import cli
from otca.config import EvalConfig, TrainConfig
from otca.errors import MAX_LINE, InputError
from otca.parser import flat_settings
from otca.prompts import MAX_NAME, load_prompts

INPUTS = int(os.environ.get("FUZZ_INPUTS", "60"))
PATIENCE = timedelta(seconds=20)
"""Time after which reading a small file counts as hanging."""

odd_texts = st.sampled_from(("", " ", "a\0b", "\u202e", "\ud800", "../../up", "x" * 300, "=1+1", '"', ",")) | st.text(max_size=12)
odd_values = st.none() | odd_texts | st.integers() | st.floats() | st.sampled_from((True, -1, 0, 1e-320, 10**12, 2**70, 10**400))
odd_json = st.recursive(
    odd_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3), max_leaves=5
)
TOKENS = (b"{", b"[", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"NaN", b"1e999", b"\\ud800", b"9" * 5000, b"[" * 3000)
TOKENS += (b"- ", b": ", b"&a ", b"*a", b"!!python/object:os.x ", b"<<: ", b"\t", b"\n---\n", b"? ", b"{" * 200)
SCALARS = (".nan", ".inf", "1e999", "0x_", "1:30:20", "~", "yes", "2020-01-01", "!!binary aGk=", "9" * 5000, '"\\ud800"', "'")
SCALARS += ("!!python/object/apply:os.getpid []", "&a 1", "*a", "{class_path: antigravity.x}", "[" * 3000)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Up to two changes, often none: bytes overwritten, tokens put in, parts left out, the end cut off."""
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        place, length = draw(st.integers(0, len(content))), draw(st.sampled_from((0, 1, 4, 16)))
        put_in = draw(st.sampled_from(TOKENS) | st.binary(max_size=4))
        content = content[:place] + put_in + draw(st.sampled_from((content[place + length :], b"")))
    return content


@st.composite
def prompt_files(draw) -> tuple[str, bytes]:
    """A prompts file of any format: rows with odd texts, ids and specs."""
    ending, rows = draw(st.sampled_from((".jsonl", ".json", ".csv", ".tsv", ".txt"))), []
    for number in range(draw(st.integers(1, 3))):
        row = {draw(st.sampled_from(("prompt", "Prompt", "text"))): draw(st.just("a cat") | odd_texts)}
        if draw(st.booleans()):
            row["id"] = draw(st.sampled_from((number, f"row {number}", "same", "a/b", "a_b")) | odd_json)
        if draw(st.booleans()):
            row[draw(st.sampled_from(("spec", "file", "caption", "", "\ud800", "a\0")))] = draw(odd_json)
        rows.append(row)
    texts = [str(next(iter(row.values()))) for row in rows]
    if ending == ".json":
        text = json.dumps(draw(st.sampled_from((rows, texts, {"style": texts, "other": rows}))))
    elif ending in (".jsonl", ".txt"):
        text = "\n".join(texts if ending == ".txt" else (json.dumps(row, ensure_ascii=False) for row in rows)) + "\n"
    else:
        heads, buffer = list(dict.fromkeys(key for row in rows for key in row)), io.StringIO()
        writer = csv.DictWriter(buffer, heads, delimiter="\t" if ending == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    return ending, draw(damaged(text.encode(draw(st.sampled_from(("utf-8",) * 9 + ("utf-16",))), "surrogatepass")))


SETTINGS = flat_settings(dataclasses.asdict(TrainConfig()))


@st.composite
def settings_files(draw) -> tuple[str, bytes]:
    """A YAML file of a run's settings, nested or dotted, some values of another type or of none."""
    nested, lines = draw(st.booleans()), []
    for name in draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=4, unique=True)):
        sound = json.dumps(SETTINGS[name])
        text = draw(st.sampled_from((sound,) * 6 + SCALARS) | odd_json.map(json.dumps))
        group, _, last = name.rpartition(".")
        lines.append(f"{group}: {{{last}: {text}}}" if nested and group else f"{name}: {text}")
    return ".yaml", draw(damaged("\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"))


def read_prompts(path: Path, folder: Path) -> None:
    """Texts, ids and specs are what rows, files and verifiers can take; an index of them is read back the same."""
    prompts = load_prompts(str(path))
    for prompt in prompts:
        assert prompt.text.strip() and prompt.text.encode()
        assert 0 < len(prompt.id) <= MAX_NAME and prompt.id.isprintable()
        json.dumps(prompt.spec, allow_nan=False).encode()
    first = prompts[:3]
    media = generate.Generated(torch.zeros(len(first), 1, 3, 4, 4), first, list(range(len(first))))
    generate.write_media(folder, media, EvalConfig(samples_per_prompt=1))
    names = {path.name for path in folder.iterdir()}
    assert len(names) == len({prompt.id for prompt in first}), "two ids in one file"
    generate.write_index(folder, first, 1, 1)
    again = load_prompts(str(folder / "prompts.jsonl"))
    assert [(p.id, p.text, p.spec) for p in again] == [(p.id, p.text, p.spec) for p in first]
    assert {prompt.file for prompt in again} == names


OPTIONS = cli.train_parser()


def read_settings(path: Path, folder: Path) -> None:
    """A config that is read has finite numbers, and can be written and read to the same."""
    own = dataclasses.asdict(cli.resolve(OPTIONS, ["--config", str(path)])[1])
    assert all(math.isfinite(value) for value in flat_settings(own).values() if isinstance(value, float))
    assert yaml.safe_load(yaml.safe_dump(own, sort_keys=False)) == own


@pytest.mark.parametrize("read, inputs", [(read_prompts, prompt_files()), (read_settings, settings_files())])
@pytest.mark.filterwarnings("ignore")
def test_readers_read_or_refuse(read, inputs, tmp_path):
    """Some of both show that the inputs get past the first check; hypothesis shrinks what breaks a promise."""
    counts = {"read": 0, "refused": 0}

    @settings(max_examples=INPUTS, derandomize=True, database=None, deadline=PATIENCE, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def one(given_input: tuple[str, bytes]) -> None:
        (ending, content), folder = given_input, tmp_path / "run"
        path = tmp_path / f"input{ending}"
        path.write_bytes(content)
        try:
            read(path, folder)
            counts["read"] += 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) <= MAX_LINE
            counts["refused"] += 1
        finally:
            path.unlink()
            shutil.rmtree(folder, ignore_errors=True)
        assert not list(tmp_path.iterdir())

    one()
    assert min(counts.values()) > 0.05 * INPUTS
