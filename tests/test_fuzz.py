"""Fuzzing of the readers at a small number, and that the fuzzer sees what it is to see (`reproduce.fuzz` does 100,000)."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from eval import media, videos
from otca.errors import InputError
from reproduce import fuzz


@pytest.mark.parametrize(("reader", "count"), [("prompts", 250), ("settings", 150), ("pictures", 400), ("videos", 400)])
@pytest.mark.filterwarnings("ignore")
def test_readers_read_or_refuse(reader, count):
    """What must hold of a success is asserted in `reproduce.fuzz`; some of both show that the inputs get past the first check."""
    counts, offences = fuzz.fuzz(reader, count)
    assert offences == []
    rows = fuzz.table({reader: counts})
    assert rows["inputs"].sum() == count and rows["outside"].sum() == 0
    assert rows["read"].sum() > 0.1 * count and rows["refused"].sum() > 0.1 * count


def test_the_fuzzer_sees_what_it_is_to_see(tmp_path, monkeypatch):
    """A traceback, an endless input, a file elsewhere, a process, a broken promise."""

    def careless(path, folder):
        data = path.read_bytes()
        if len(data) % 5 == 0:
            raise KeyError(len(data))
        if len(data) % 5 == 1:
            (tmp_path / "elsewhere").write_bytes(data)
        if len(data) % 5 == 2:
            os.system("true")
        if len(data) % 5 == 3:
            raise InputError("two\nlines")
        raise fuzz.Endless

    monkeypatch.setitem(fuzz.READERS, "pictures", (fuzz.picture_files, lambda: careless))
    counts, offences = fuzz.fuzz("pictures", 60)
    said = " ".join(offence.said for offence in offences)
    assert len(offences) == 60 == sum(n for (_, outcome), n in counts.items() if outcome == "tracebacks")
    assert all(word in said for word in ("KeyError", "Endless", "not one line that can be shown"))
    assert 0 < sum(n for (_, outcome), n in counts.items() if outcome == "outside") < 60
    assert media.MAX_PIXELS == videos.MAX_PIXELS == 64_000_000


def test_the_table_is_made_of_the_counts(tmp_path, monkeypatch):
    pd.DataFrame({"reader": ["a", "a", "b"], "ending": [".x", ".y", ".z"], "inputs": [6, 4, 10], "read": [1, 2, 5]}).assign(
        refused=[5, 2, 5], tracebacks=0, outside=0
    ).to_csv(tmp_path / "fuzz.csv", index=False)
    (tmp_path / "README.md").write_text("<!-- fuzz -->\nold\n<!-- /fuzz -->\n")
    monkeypatch.chdir(tmp_path)
    assert fuzz.render(tmp_path).splitlines()[2:] == [
        "| a | 10 | 3 (30%) | 7 (70%) | 0 | 0 |",
        "| b | 10 | 5 (50%) | 5 (50%) | 0 | 0 |",
        "| all | 20 | 8 (40%) | 12 (60%) | 0 | 0 |",
    ]
    assert (tmp_path / "table.md").read_text() in (tmp_path / "README.md").read_text()
