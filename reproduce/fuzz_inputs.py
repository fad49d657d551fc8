"""Prompts and settings files for the fuzzing of readers: sound ones, hostile values inside them, and damage to their bytes.

Every strategy of hypothesis gives `Input`s. What is hostile goes into a file of the right shape, so that it gets past the first
check.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass

import yaml
from hypothesis import strategies as st

from otca.config import TrainConfig
from otca.tasks import scenes, video_scenes


@dataclass(frozen=True)
class Input:
    """A file that a reader is given: its ending, and what it holds."""

    ending: str
    content: bytes


TEXTS = (
    "a red circle",
    "",
    " ",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "/absolute",
    "a\\b",
    "a\0b",
    "\u202eright to left\u200f",
    "\N{WOMAN}\u200d\N{ROCKET}",
    "\ufeff",
    "\ud800",
    "a\rb",
    "a\nb\u2028c",
    "\x1b[31mred",
    '"quoted, and more',
    "=1+1",
    "$x^2$ \\input{x}",
    "NaN",
    "null",
    "-",
    "x" * 300,
    "long " * 20_000,
)
NUMBERS = (0, 1, -1, True, 3.5, float("nan"), float("inf"), -float("inf"), 1e-320, 10**12, 2**70, -(2**70), 10**400)
"""Hostile values, and a few sound ones among them."""

odd_texts = st.sampled_from(TEXTS) | st.text(max_size=12)
odd_values = st.none() | odd_texts | st.sampled_from(NUMBERS) | st.integers() | st.floats()
odd_json = st.recursive(
    odd_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3), max_leaves=5
)


@st.composite
def damaged(draw, content: bytes, tokens: tuple[bytes, ...]) -> bytes:
    """Up to four changes: bytes overwritten, tokens put in, parts left out, doubled or moved, the end cut off; often none."""
    for _ in range(draw(st.sampled_from((0, 0, 0, 0, 0, 1, 1, 1, 2, 4)))):
        place, length = draw(st.integers(0, len(content))), draw(st.sampled_from((1, 1, 1, 2, 4, 16)))
        kind = draw(
            st.sampled_from(("overwrite", "overwrite", "overwrite", "insert", "insert", "remove", "double", "move", "cut"))
        )
        head, part, tail = content[:place], content[place : place + length], content[place + length :]
        if kind == "overwrite":
            content = head + draw(st.binary(min_size=len(part), max_size=len(part))) + tail
        elif kind == "insert":
            content = head + draw(st.sampled_from(tokens)) + part + tail
        elif kind == "remove":
            content = head + tail
        elif kind == "double":
            content = head + part + part + tail
        elif kind == "move":
            content = part + head + tail
        else:
            content = head
    return content


# -------------------------------------------------------------------------------------------------------------- prompts

SPECS = [scenes.all_specs("position")[0], scenes.all_specs("counting")[2], video_scenes.all_specs("turning")[0]]
_KEYS = ("prompt", "Prompt", "text", "caption", "id", "spec", "file", "", "\ud800", "a\0")
_JSON_TOKENS = (b"{", b"[", b'"', b",", b":", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"NaN", b"1e999", b"\\ud800")
_JSON_TOKENS += (b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"null", b"\t", b"'")


@st.composite
def _specs(draw):
    """A spec of the grammars with a value exchanged somewhere, or anything at all."""
    spec = json.loads(json.dumps(draw(st.sampled_from(SPECS))))
    where, value = draw(st.sampled_from(("nowhere", "top", "object", "anywhere"))), draw(odd_json)
    if where == "top":
        spec[draw(st.sampled_from(("skill", "objects", "relation", "more")))] = value
    elif where == "object":
        spec["objects"][0][draw(st.sampled_from(("shape", "color", "motion")))] = value
    return value if where == "anywhere" else spec


@st.composite
def prompt_files(draw) -> Input:
    """A prompts file of any format: rows with odd texts, ids and specs, then damage."""
    ending = draw(st.sampled_from((".jsonl", ".json", ".csv", ".tsv", ".txt")))
    rows = []
    for number in range(draw(st.integers(1, 3))):
        row = {draw(st.sampled_from(("prompt", "Prompt", "text"))): draw(st.just("a cat") | odd_texts)}
        if draw(st.booleans()):
            row["id"] = draw(st.sampled_from((number, f"row {number}", "same", "a/b", "a_b")) | odd_json)
        if draw(st.booleans()):
            row["spec"] = draw(_specs())
        if draw(st.sampled_from((False, False, True))):
            row[draw(st.sampled_from(_KEYS))] = draw(odd_json)
        rows.append(row)
    text = _written(ending, rows, draw(st.booleans()))
    content = text.encode(draw(st.sampled_from(("utf-8",) * 12 + ("utf-8-sig", "utf-16"))), "surrogatepass")
    return Input(ending, draw(damaged(content, _JSON_TOKENS)))


def _written(ending: str, rows: list[dict], plain: bool) -> str:
    """Rows as text; ``plain``: JSON in ASCII, and as a list of objects rather than of texts by style."""
    if ending == ".txt":
        return "\n".join(str(next(iter(row.values()))) for row in rows) + "\n"
    if ending == ".jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=plain) for row in rows) + "\n"
    if ending == ".json":
        return json.dumps(rows if plain else {"style": [next(iter(row.values())) for row in rows], "other": rows})
    buffer = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(buffer, delimiter="\t" if ending == ".tsv" else ",")
    writer.writerow(header)
    for row in rows:
        writer.writerow([json.dumps(v) if isinstance(v, dict | list) else v for v in (row.get(key, "") for key in header)])
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- settings

_GROUPS = tuple(name for name, value in vars(TrainConfig()).items() if dataclasses.is_dataclass(value))
SETTINGS = {name: getattr(TrainConfig(), name) for name in TrainConfig.__dataclass_fields__ if name not in _GROUPS}
SETTINGS |= {f"{g}.{name}": value for g in _GROUPS for name, value in vars(getattr(TrainConfig(), g)).items()}
_SCALARS = (".nan", ".inf", "-.inf", "1e999", "1e30", "0x_", "0b_", "._", "1:30:20", "~", "yes", "2020-01-01", "!!binary aGk=")
_SCALARS += ("!!python/object/apply:os.getpid []", "!!int x", "!!timestamp x", "&a 1", "*a", "9" * 5000, '"\\0"', '"\\ud800"')
_SCALARS += (
    "'",
    '"',
    "|\n  x",
    "{a: b}",
    "[[[]]]",
    "{class_path: antigravity.x}",
    "[" * 3000,
    "=",
    "? [a]",
    "<<",
    "@",
    "`",
    "%",
    "",
)
_YAML_TOKENS = (b"- ", b": ", b"&a ", b"*a", b"!!python/object:os.x ", b"<<: ", b"\t", b"\0", b"\n---\n", b"? ", b"{", b"[", b"'")
_YAML_TOKENS += (
    b'"',
    b"|",
    b">",
    b"#",
    b"%YAML 9.9\n",
    b"\n",
    b"  ",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\x07",
    b"...",
    b"{" * 200,
    b"- " * 200,
)
_LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (b, b, b",".join([b"*%c" % (b - 1)] * 9)) for b in range(98, 110)
)


@st.composite
def settings_files(draw) -> Input:
    """A YAML file of a run's settings, nested or dotted, some values of another type or of none, then damage."""
    names = draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=4, unique=True))
    nested, lines = draw(st.booleans()), []
    for name in names:
        kind = draw(st.sampled_from(("sound",) * 6 + ("near", "near", "odd", "raw", "unknown")))
        value = SETTINGS[name]
        if kind == "near" and isinstance(value, int | float):
            value = value * draw(st.sampled_from((2, 0, -1))) + draw(st.sampled_from((0, 1, 0.5)))
        elif kind in ("near", "odd"):
            value = draw(odd_json)
        elif kind == "unknown":
            name = draw(st.sampled_from((name[:-1], f"{name}.x", "policy", "class_path", "config", "preset", "", "__path__")))
        text = draw(st.sampled_from(_SCALARS)) if kind == "raw" else _flow(value)
        group, _, last = name.rpartition(".")
        lines.append(f"{group}: {{{last}: {text}}}" if nested and group else f"{name}: {text}")
    content = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    content += _LAUGHS if draw(st.integers(0, 99)) == 0 else b""
    return Input(".yaml", draw(damaged(content, _YAML_TOKENS)))


def _flow(value: object) -> str:
    """A value in one line of YAML; JSON where YAML's own writer cannot (lone surrogates)."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
        return text.removesuffix("\n").removesuffix("\n...")
    except (UnicodeError, yaml.YAMLError):
        return json.dumps(value)
