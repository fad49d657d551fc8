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
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from eval import generate
from otca import cli
from otca.config import EvalConfig, TrainConfig
from otca.errors import MAX_LINE, InputError
from otca.prompts import MAX_NAME, load_prompts

INPUTS = int(os.environ.get("FUZZ_INPUTS", "60"))
PATIENCE = timedelta(seconds=20)

# ---------------------------------------------------------------------------------------------------------------- inputs

TEXTS = ("a red circle", "", " ", "<script>alert(1)</script>", "../../etc/passwd", "/absolute", "a\\b", "a\0b", "\ufeff")
TEXTS += ("\u202eright to left\u200f", "a\rb", "a\nb\u2028c", "\x1b[31mred", '"quoted, and more', "=1+1", "NaN", "-", "\ud800")
TEXTS += ("x" * 300, "long " * 20_000, "\N{WOMAN}\u200d\N{ROCKET}")
NUMBERS = (0, 1, -1, True, 3.5, float("nan"), float("inf"), -float("inf"), 1e-320, 10**12, 2**70, -(2**70), 10**400)
odd_texts = st.sampled_from(TEXTS) | st.text(max_size=12)
odd_values = st.none() | odd_texts | st.sampled_from(NUMBERS) | st.integers() | st.floats()
odd_json = st.recursive(
    odd_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3), max_leaves=5
)
JSON_TOKENS = (b"{", b"[", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"NaN", b"1e999", b"\\ud800", b"9" * 5000, b"[" * 3000)
YAML_TOKENS = (b"- ", b": ", b"&a ", b"*a", b"!!python/object:os.x ", b"<<: ", b"\t", b"\0", b"\n---\n", b"? ", b"{" * 200)
SCALARS = (".nan", ".inf", "1e999", "0x_", "._", "1:30:20", "~", "yes", "2020-01-01", "!!binary aGk=", "9" * 5000, '"\\ud800"')
SCALARS += ("!!python/object/apply:os.getpid []", "!!int x", "&a 1", "*a", "'", "{class_path: antigravity.x}", "[" * 3000)


@st.composite
def damaged(draw, content: bytes, tokens: tuple[bytes, ...]) -> bytes:
    """Up to four changes, often none: bytes overwritten, tokens put in, parts left out or doubled, the end cut off."""
    for _ in range(draw(st.sampled_from((0, 0, 0, 0, 1, 1, 2, 4)))):
        place, length = draw(st.integers(0, len(content))), draw(st.sampled_from((1, 1, 4, 16)))
        head, part, tail = content[:place], content[place : place + length], content[place + length :]
        other = draw(st.binary(min_size=len(part), max_size=len(part)))
        put_in = head + draw(st.sampled_from(tokens)) + part + tail
        content = draw(st.sampled_from((*[head + other + tail] * 3, put_in, head + tail, head + 2 * part + tail, head)))
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
        buffer = io.StringIO()
        writer = csv.DictWriter(
            buffer, list(dict.fromkeys(key for row in rows for key in row)), delimiter="\t" if ending == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    content = text.encode(draw(st.sampled_from(("utf-8",) * 12 + ("utf-8-sig", "utf-16"))), "surrogatepass")
    return ending, draw(damaged(content, JSON_TOKENS))


GROUPS = {name: value for name, value in vars(TrainConfig()).items() if dataclasses.is_dataclass(value)}
SETTINGS = {name: value for name, value in vars(TrainConfig()).items() if name not in GROUPS}
SETTINGS |= {f"{group}.{name}": value for group, of in GROUPS.items() for name, value in vars(of).items()}
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (b, b, b",".join([b"*%c" % (b - 1)] * 9)) for b in range(98, 110)
)


@st.composite
def settings_files(draw) -> tuple[str, bytes]:
    """A YAML file of a run's settings, nested or dotted, some values of another type or of none."""
    nested, lines = draw(st.booleans()), []
    for name in draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=4, unique=True)):
        kind, value = draw(st.sampled_from(("sound",) * 6 + ("near", "odd", "raw", "unknown"))), SETTINGS[name]
        if kind == "near" and isinstance(value, int | float):
            value = value * draw(st.sampled_from((2, 0, -1))) + draw(st.sampled_from((0, 1, 0.5)))
        elif kind == "odd":
            value = draw(odd_json)
        elif kind == "unknown":
            name = draw(st.sampled_from((name[:-1], f"{name}.x", "policy", "class_path", "config", "")))
        text = draw(st.sampled_from(SCALARS)) if kind == "raw" else json.dumps(value)
        group, _, last = name.rpartition(".")
        lines.append(f"{group}: {{{last}: {text}}}" if nested and group else f"{name}: {text}")
    content = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n" + (LAUGHS if draw(st.integers(0, 99)) == 0 else b"")
    return ".yaml", draw(damaged(content, YAML_TOKENS))


# --------------------------------------------------------------------------------------------------------------- readers


def read_prompts(path: Path, folder: Path) -> None:
    """Texts, ids and specs are what rows, files and verifiers can take; an index of them is read back the same."""
    prompts = load_prompts(str(path))
    for prompt in prompts:
        assert prompt.text.strip() and prompt.text.encode()
        assert 0 < len(prompt.id) <= MAX_NAME and prompt.id.isprintable()
        json.dumps(prompt.spec, allow_nan=False).encode()
    first, pixels = prompts[:3], torch.zeros(len(prompts[:3]), 1, 3, 4, 4)
    generate.write_media(folder, generate.Generated(pixels, first, list(range(len(first)))), EvalConfig(samples_per_prompt=1))
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
    values = [v for group in own.values() for v in (group.values() if isinstance(group, dict) else [group])]
    assert all(math.isfinite(v) for v in values if isinstance(v, float))
    assert yaml.safe_load(yaml.safe_dump(own, sort_keys=False)) == own


# ----------------------------------------------------------------------------------------------------------------- tests


def fuzzed(read, inputs, base: Path) -> dict[str, int]:
    """Give a reader its inputs; hypothesis shrinks what breaks a promise. Returns how many were read and refused."""
    counts = {"read": 0, "refused": 0}

    @settings(max_examples=INPUTS, derandomize=True, database=None, deadline=PATIENCE, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def one(given_input: tuple[str, bytes]) -> None:
        ending, content = given_input
        path, folder = base / f"input{ending}", base / "run"
        path.write_bytes(content)
        try:
            read(path, folder)
            outcome = "read"
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) <= MAX_LINE
            outcome = "refused"
        finally:
            path.unlink()
            shutil.rmtree(folder, ignore_errors=True)
        assert not list(base.iterdir())
        counts[outcome] += 1
        event(outcome)

    one()
    return counts


@pytest.mark.parametrize(
    ("read", "inputs"), [(read_prompts, prompt_files()), (read_settings, settings_files())], ids=["prompts", "settings"]
)
@pytest.mark.filterwarnings("ignore")
def test_readers_read_or_refuse(read, inputs, tmp_path):
    """Some of both show that the inputs get past the first check."""
    counts = fuzzed(read, inputs, tmp_path)
    assert min(counts.values()) > 0.05 * sum(counts.values())
