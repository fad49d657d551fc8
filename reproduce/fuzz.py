"""Fuzz the readers of prompts, settings and media: each input is read, or refused in one line, and nothing else happens.

`python -m reproduce.fuzz` gives the readers 100,000 files (`SHARES`), derandomised, and writes `results/fuzz/fuzz.csv`; exit code
1 and the shortest offending file where a reader raised anything but InputError, broke a promise about what it read (`READERS`),
took longer than `PATIENCE`, or wrote a file, began a process or opened a connection outside of its folder, as Python's audit
events tell. Limits of size are lowered for the time, since a bomb is refused the same way at a sixty-fourth of its size.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

from eval import generate, media
from eval.evaluate import write_rows
from otca.commands import train
from otca.errors import MAX_LINE, InputError
from otca.eval_config import EvalConfig
from otca.prompts import MAX_NAME, load_prompts
from otca.tasks import scenes, video_scenes
from otca.types import Prompt
from reproduce.fuzz_inputs import Input, prompt_files, settings_files
from reproduce.fuzz_media import clip_files, picture_files
from reproduce.readme import update_readme

FOLDER = Path("results/fuzz")
INPUTS = 100_000
SHARES = {"prompts": 0.35, "settings": 0.15, "pictures": 0.3, "videos": 0.2}
PATIENCE = 20
"""Seconds after which an input counts as an endless one."""
LIMITS = {"MAX_PIXELS": 1_000_000, "MAX_FRAMES": 256, "MAX_VIDEO_PIXELS": 4_000_000}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ELSEWHERE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind")
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")


class Endless(BaseException):
    """An input took longer than `PATIENCE`; no reader's own clause catches it."""


# -------------------------------------------------------------------------------------------------------------- readers


def read_prompts(path: Path, folder: Path) -> None:
    """Texts, ids and specs are what rows, files and verifiers can take; media go into ``folder``, and the index is read back."""
    prompts = load_prompts(str(path))
    for prompt in prompts:
        assert prompt.text.strip() and prompt.text.encode(), "a text that no file can hold"
        assert 0 < len(prompt.id) <= MAX_NAME and prompt.id.isprintable(), "an id that is no name"
        json.dumps(prompt.spec, allow_nan=False).encode()
        for grammar in (scenes, video_scenes):
            _drawn(grammar, prompt)
    numbers, pixels = list(range(len(prompts[:3]))), torch.zeros(len(prompts[:3]), 1, 3, 4, 4)
    generate.write_media(folder, generate.Generated(pixels, prompts[:3], numbers), EvalConfig(samples_per_prompt=1))
    names = {path.name for path in folder.iterdir()}
    assert len(names) == len({prompt.id for prompt in prompts[:3]}), "two ids in one file"
    generate.write_index(folder, prompts[:3], 1, 1)
    again = load_prompts(str(folder / "prompts.jsonl"))
    assert [(p.id, p.text, p.spec) for p in again] == [(p.id, p.text, p.spec) for p in prompts[:3]], (
        "an index that reads otherwise"
    )
    assert {p.file for p in again} == names, "an index of other files"


def _drawn(grammar, prompt: Prompt) -> None:
    """A spec that passes the check can be drawn."""
    try:
        grammar.check_spec(prompt)
    except InputError:
        return
    draw = grammar.draw_scene if grammar is scenes else grammar.draw_clip
    draw(prompt.spec, scenes.np.random.default_rng(0))


def make_read_settings() -> Callable[[Path, Path], None]:
    """A reader of settings that builds its parser once; a config that is read can be written, and read to the same."""
    options = train.parser()

    def read_settings(path: Path, folder: Path) -> None:
        _, config, _ = train.resolve(options, ["--config", str(path)])
        own = dataclasses.asdict(config)
        values = [v for group in own.values() for v in (group.values() if isinstance(group, dict) else [group])]
        numbers = [v for v in values if isinstance(v, float)] + [*config.reward_weights]
        assert all(map(math.isfinite, numbers)), "a number that is none"
        assert yaml.safe_load(yaml.safe_dump(own, sort_keys=False)) == own, "a config that is written otherwise"

    return read_settings


def read_picture(path: Path, folder: Path) -> None:
    """RGB in [0, 1], no larger than the limit."""
    pixel_CHW = media.read_picture(path).frames_FCHW[0]
    assert pixel_CHW.shape[0] == 3 and pixel_CHW[0].numel() <= LIMITS["MAX_PIXELS"], "no RGB of an allowed size"
    assert pixel_CHW.min() >= 0 and pixel_CHW.max() <= 1, "levels outside of [0, 1]"


def read_video(path: Path, folder: Path) -> None:
    """Frames in [0, 1], no more than the limits, at a rate."""
    video = media.read_video(path)
    media.check_video(video.frames_FCHW)
    assert video.frames_FCHW[:, 0].numel() <= LIMITS["MAX_VIDEO_PIXELS"] and len(video.frames_FCHW) <= LIMITS["MAX_FRAMES"]
    assert math.isfinite(video.fps) and video.fps > 0, "a rate that is none"


READERS: dict[str, tuple[Callable[[], st.SearchStrategy[Input]], Callable[[], Callable[[Path, Path], None]]]] = {
    "prompts": (prompt_files, lambda: read_prompts),
    "settings": (settings_files, make_read_settings),
    "pictures": (picture_files, lambda: read_picture),
    "videos": (clip_files, lambda: read_video),
}
"""Reader → its inputs, and what makes the function that reads one (path, folder to write to) and asserts what it promises."""


# ------------------------------------------------------------------------------------------------------------- watching


class Watch:
    """Notes what Python does to files outside of a folder, and processes and connections, while it is open."""

    def __init__(self):
        self.folder, self.seen = "", []
        sys.addaudithook(self._hook)  # for good: there is no way to take a hook away

    @contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """Watch for a while; what is noted is in the list."""
        self.folder, self.seen = os.path.realpath(folder) + os.sep, []
        try:
            yield self.seen
        finally:
            self.folder = ""

    def _hook(self, event: str, args: tuple) -> None:
        if not self.folder:
            return
        if event in ELSEWHERE:
            self.seen.append(event)
        elif event in CHANGING or (event == "open" and (args[2] or 0) & WRITING):
            paths = args[:2] if event in ("os.rename", "os.symlink", "os.link") else args[:1]
            self.seen += [f"{event} {p!r}" for p in paths if not isinstance(p, int) and not self._inside(p)]

    def _inside(self, path: str | bytes | os.PathLike) -> bool:
        return f"{os.path.realpath(os.fsdecode(path))}{os.sep}".startswith(self.folder) or os.fsdecode(path) == os.devnull


WATCH = Watch()


@dataclasses.dataclass(frozen=True)
class Offence:
    """An input that a reader did not take as promised, and what happened."""

    reader: str
    input: Input
    said: str


def fuzz(reader: str, count: int) -> tuple[Counter, list[Offence]]:
    """Give a reader so many inputs: (ending, outcome) → number, and every offence.

    Outcomes: "read", "refused", "tracebacks" (also promises broken and endless inputs), "outside".
    """
    make_inputs, make_read = READERS[reader]
    read, counts, offences = make_read(), Counter(), []
    bar = tqdm(total=count, desc=reader, unit="input", disable=None)
    base = Path(tempfile.mkdtemp(prefix="otca-fuzz-"))

    @seed(sum(reader.encode()))
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(make_inputs())
    def one(given_input: Input) -> None:
        path, folder = base / f"input{given_input.ending}", base / "run"
        path.write_bytes(given_input.content)
        with WATCH.over(folder) as seen:
            outcome, said = _outcome(read, path, folder)
        outside = seen + sorted(set(os.listdir(base)) - {path.name, "run"})
        counts[given_input.ending, outcome] += 1
        counts[given_input.ending, "outside"] += bool(outside)
        if outcome == "tracebacks" or outside:
            offences.append(Offence(reader, given_input, said or f"outside of its folder: {', '.join(outside)}"))
        for left in base.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        bar.update()

    signal.signal(signal.SIGALRM, _endless)
    with mock.patch.multiple(media, **LIMITS):
        one()
    bar.close()
    shutil.rmtree(base)
    return counts, offences


def _outcome(read: Callable[[Path, Path], None], path: Path, folder: Path) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)  # again and again: a destructor may swallow it
    try:
        read(path, folder)
        return "read", ""
    except InputError as error:
        one_line = str(error).isprintable() and len(str(error)) <= MAX_LINE
        return ("refused", "") if one_line else ("tracebacks", f"not one line that can be shown: {error!r}")
    except (Exception, Endless):
        return "tracebacks", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _endless(*_) -> None:
    raise Endless


# --------------------------------------------------------------------------------------------------------------- script


def table(counts: dict[str, Counter]) -> pd.DataFrame:
    """One row a reader and ending: inputs, read, refused, tracebacks, outside."""
    rows = []
    for reader, counter in counts.items():
        for ending in sorted({ending for ending, _ in counter}):
            outcomes = {name: counter[ending, name] for name in ("read", "refused", "tracebacks")}
            row = {"reader": reader, "ending": ending, "inputs": sum(outcomes.values())}
            rows.append(row | outcomes | {"outside": counter[ending, "outside"]})
    return pd.DataFrame(rows)


def render(folder: Path) -> str:
    """`table.md` from the published counts; the README's block is replaced by it."""
    rows = pd.read_csv(folder / "fuzz.csv").groupby("reader", sort=False).sum(numeric_only=True)
    rows.loc["all"] = rows.sum()
    lines = ["| Reader | Inputs | Read | Refused in one line | Tracebacks | Outside of its folder |", "| --- |" + " ---: |" * 5]
    for row in rows.itertuples():
        shares = [f"{n:,} ({n / row.inputs:.0%})" for n in (row.read, row.refused)]
        lines.append(f"| {row.Index} | {row.inputs:,} | {shares[0]} | {shares[1]} | {row.tracebacks:,} | {row.outside:,} |")
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text)
    update_readme("fuzz", text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Parse, fuzz, write, print; 1 where a reader did not take an input as promised."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"files in all (default: {INPUTS:,})")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder of fuzz.csv and table.md (default: {FOLDER})")
    parser.add_argument("--render", action="store_true", help="only rebuild the table from the published counts")
    args = parser.parse_args(argv)
    offences: list[Offence] = []
    if not args.render:
        faulthandler.enable()
        counts = {}
        for reader, share in SHARES.items():
            counts[reader], found = fuzz(reader, round(share * args.inputs))
            offences += found
        write_rows(table(counts), args.out / "fuzz.csv")
    print(render(args.out), end="")
    if offences:
        worst = min(offences, key=lambda offence: len(offence.input.content))
        print(f"{len(offences)} offences; the shortest, of {worst.reader}: {worst.input!r}\n{worst.said}", file=sys.stderr)
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
