"""Prompt files in the formats that lists are published in, and published lists fetched and checked."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from otca.__main__ import main
from otca.config import PolicyConfig
from otca.errors import InputError
from otca.parser import SettingsFile, make_parser, parse
from otca.prompts import LISTS, PublishedList, fetch_list, load_prompts, stream_rows

FORMATS = {
    "dancegrpo.txt": "a cat\n\n  a dog \n",
    "parti.tsv": 'Prompt\tCategory\tChallenge\tNote\na cat\tAnimals\tBasic\t\n"a dog"\tAnimals\tBasic\tx\n',
    "drawbench.csv": 'Prompts,Category\n"a cat","Colors\nand more"\n\na dog,Colors\n',
    "hpdv2.json": json.dumps({"anime": ["a cat"], "photo": ["a dog"]}),
    "excel.csv": "prompt;id\na cat;\n\na dog;\n",
    "list.JSONL": '{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n',
    "list.json": json.dumps(["a cat", "a dog"]),
    "vbench.json": json.dumps([{"prompt_en": "a cat", "dimension": []}, {"prompt_en": "a dog", "dimension": ["color"]}]),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_published_format_is_read(tmp_path, name, encoding):
    (tmp_path / name).write_text(FORMATS[name], encoding)
    rows = [("000001", "a cat"), ("000002", "a dog")]  # numbered from 1, whatever the lines
    assert [(p.id, p.text) for p in load_prompts(str(tmp_path / name))] == rows
    assert [p.text for p in load_prompts(str(tmp_path / name), 1)] == ["a cat"]


@pytest.mark.parametrize(
    "row",
    ["y,a cat, a dog", 'y,"a cat\nz,a dog', r'y,"a \"big\" cat"', r'y,"a big \""', r"y,a \"big\" cat"],
    ids=["comma", "open quote", "backslashes", "backslash at the end", "backslashes without quotes"],
)
def test_a_row_that_does_not_parse_is_refused_with_its_line(tmp_path, row):
    (tmp_path / "list.csv").write_text(f"id,prompt\nx,a bird\n{row}\nw,a fish\n")
    with pytest.raises(InputError, match=r"list\.csv, line 3: malformed CSV"):
        load_prompts(str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("list.csv", "file,prompt,Prompt\na.png,a cat,a dog\n", "2 columns are called 'prompt'"),
        ("list.json", '{"a.png": "a cat", "a.png": "a dog"}', "the key 'a.png' comes twice"),
        ("list.jsonl", '{"prompt": "a cat", "prompt": "a dog"}', "line 1: .*the key 'prompt' comes twice"),
    ],
)
def test_a_column_or_key_that_comes_twice_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        load_prompts(str(tmp_path / name))


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PolicyConfig(path="~/model").path == f"{tmp_path}/model"  # callers from Python, too
    options = make_parser("train", "")
    options.add_argument("--out", type=Path)
    options.add_argument("--config", action=SettingsFile)
    (tmp_path / "own.yaml").write_text("out: ~/run\n")
    assert parse(options, ["--config", "~/own.yaml"]).out == parse(options, ["--out=~/run"]).out == tmp_path / "run"


@pytest.mark.parametrize("name", ["big.jsonl", "big.csv"])
def test_fifty_thousand_prompts_load_in_two_seconds_and_stream(tmp_path, name):
    lines = [f"prompt number {i} of many, with some detail about light and colour" for i in range(50_000)]
    shaped = {"big.jsonl": [json.dumps({"prompt": t}) for t in lines], "big.csv": ["prompt", *(f'"{t}"' for t in lines)]}
    path = tmp_path / name
    path.write_text("\n".join(shaped[name]) + "\n")
    seconds = []
    for _ in range(5):  # of a processor, and the best of five: other work on the machine is not ours
        started = time.process_time()
        assert len(load_prompts(str(path))) == 50_000
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2
    with open(path, "a") as file:  # what comes later is not read before it is asked for
        file.write("{broken\n" if name == "big.jsonl" else "\n")
    assert len(list(itertools.islice(stream_rows(str(path)), 10))) == 10


@pytest.fixture
def server(monkeypatch):
    """A loopback server of one list, and the list's entry under the name ``own``."""
    content = b"a cat\na dog\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/list.txt" else 404)
            self.end_headers()
            if self.path == "/list.txt":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{listener.server_address[1]}"
    true_checksum = "sha256:" + hashlib.sha256(content).hexdigest()

    def entry(page="list.txt", checksum=true_checksum):
        monkeypatch.setitem(LISTS, "own", PublishedList(f"{base}/{page}", "own.txt", checksum, "two animals"))

    entry()
    yield entry
    listener.shutdown()
    listener.server_close()


def test_a_list_is_fetched_checked_and_kept(server, tmp_path, capsys):
    assert main(["prompts", "--list", "own", "--out", str(tmp_path / "prompts")]) == 0
    assert "2 prompts, checked; the first: a cat" in capsys.readouterr().out
    path = tmp_path / "prompts" / "own.txt"
    before = path.stat().st_mtime_ns
    assert fetch_list("own", tmp_path / "prompts") == path and path.stat().st_mtime_ns == before
    path.write_text("a cat\n")
    with pytest.raises(InputError, match=r"own.txt \(delete it to fetch it anew\) is not the published list"):
        fetch_list("own", tmp_path / "prompts")


def test_git_checksums_are_those_of_git(server, tmp_path):
    """`printf 'a cat\\na dog\\n' | git hash-object --stdin`"""
    server(checksum="git:33a265211eae57cc7f66245e5f3b2fafcdad2296")
    assert fetch_list("own", tmp_path / "right").is_file()
    server(checksum="git:" + 40 * "0")
    with pytest.raises(InputError, match="is not the published list: expected git"):
        fetch_list("own", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_what_cannot_be_fetched_says_what_to_do(server, tmp_path):
    server(page="absent.txt")
    with pytest.raises(InputError, match=r"absent.txt cannot be fetched .*404 Not Found.*; download it elsewhere and put it at"):
        fetch_list("own", tmp_path)
    with pytest.raises(InputError, match="unknown prompt list 'partti'; choose from .*parti"):
        fetch_list("partti", tmp_path)
