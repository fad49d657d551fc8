"""The page of published results: the tables' own numbers, the same bytes each time, and nothing that could load or run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from eval.columns import METRICS
from eval.markup import markdown, markdown_table
from eval.page.document import json_block
from eval.page.galleries import MOST_METHODS, galleries
from eval.page.markdown import Cells, Heading, Items, Paragraph, plain, read_markdown
from eval.page.tables import IN_FULL, ROWS
from eval.plots import COLORS
from eval.tables import heading
from reproduce.page import main
from tests.pages import ATTACK, RESULTS, TABLES, some_results

BOUND = 20e6
LOADS = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "style"}


class Tags(HTMLParser):
    """Start tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.texts.append((*self.tags[-1], data))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small folder of results with its page written into it."""
    folder = some_results(tmp_path_factory.mktemp("page") / "results")
    assert main(["--results", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(published):
    return (published / "index.html").read_text(encoding="utf-8")


def data_of(page):
    """The page's data."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


@pytest.fixture(scope="module")
def data(page):
    return data_of(page)


def document(data, name):
    return next(d for d in data["documents"] if d["id"] == name)


# ---------------------------------------------------------------------------------------------------------------- the bytes
def test_the_same_results_give_the_same_bytes_wherever_they_lie(published, page, tmp_path):
    listing = (published / "sha256.json").read_text()
    assert {"table1/cpu/table.csv", "table2/quick/sources.json"} <= {*json.loads(listing)} and "seed" not in listing
    assert main(["--results", str(published)]) == 0 and (published / "sha256.json").read_text() == listing
    assert (published / "index.html").read_text(encoding="utf-8") == page
    shutil.copytree(published, tmp_path / "elsewhere" / "results", ignore=shutil.ignore_patterns("index.html"))
    assert main(["--results", str(tmp_path / "elsewhere" / "results")]) == 0
    assert (tmp_path / "elsewhere" / "results" / "index.html").read_text(encoding="utf-8") == page
    assert str(published) not in page


def test_the_page_of_all_results_is_small_and_the_published_one(tmp_path):
    """`make render` writes the same page anew; one that was not made again after a publication is told here."""
    made = tmp_path / "index.html"
    assert main(["--results", str(RESULTS), "--out", str(made)]) == 0
    assert made.stat().st_size < BOUND
    of_page, of_file = data_of(made.read_text(encoding="utf-8")), data_of((RESULTS / "index.html").read_text(encoding="utf-8"))
    assert of_page.pop("root") != of_file.pop("root") == "./"
    assert of_page == of_file


def test_every_table_and_every_sample_folder_is_on_the_page():
    data = data_of((RESULTS / "index.html").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("sources.json")}
    assert folders == {d["folder"] for d in data["documents"] if d["runs"]} and len(folders) > 5
    texts = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.md") if path.parent != RESULTS}
    assert texts == {name for d in data["documents"] for name in d["files"] if name.endswith(".md")}
    places = {tuple(path.relative_to(RESULTS).parts[:2]) for path in RESULTS.glob("*/*/*/seed*/media/prompts.jsonl")}
    assert places == {(gallery["modality"], gallery["tier"]) for gallery in data["galleries"]}
    assert all(len(gallery["methods"]) <= MOST_METHODS for gallery in data["galleries"])


# --------------------------------------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize("name", TABLES)
def test_cells_are_those_of_the_published_table(data, name):
    """Each metric's cell begins with the mean of table.csv and is its text in table.md; in full it says what the file has."""
    found, table = document(data, name), pd.read_csv(RESULTS / name / "table.csv")
    exact = pd.read_csv(RESULTS / name / "table.csv", dtype=str, keep_default_na=False).set_index(["method", "metric"])
    rows, seen = table.set_index(["method", "metric"]), set()
    text = (RESULTS / name / "table.md").read_text()
    for block in (b for b in found["blocks"] if b["kind"] == "table" and "Difference" not in b["heads"]):
        for j, metric in ((j, m) for j, m in enumerate(block["metrics"]) if m):
            assert block["heads"][j] == heading(metric)
            for i, cells in enumerate(block["rows"]):
                row = rows.loc[(cells[0], metric)]
                shown = float(cells[j].split(" ")[0].replace("−", "-"))
                assert shown == pytest.approx(row["mean"], abs=0.5000001 * 10 ** -METRICS[metric].decimals)
                bold = f"**{markdown(cells[j])}**" if [i, j] in block["bold"] else f"| {markdown(cells[j])} |"
                assert bold in text
                full = found["cells"][str(block["section"])][metric][cells[0]]
                assert [v.removesuffix(".0") for v in full["csv"]] == [
                    number_text(exact.loc[(cells[0], metric), column]) for column in IN_FULL
                ]
                seen.add((cells[0], metric))
    assert seen == {(m, metric) for m, metric in rows.index}


def number_text(text):
    """A number of a CSV file as pandas prints it, so without an exponent's or a fraction's idle zeros."""
    return str(float(text)).removesuffix(".0") if text else "nan"


@pytest.mark.parametrize("name", TABLES)
def test_differences_and_verdicts_are_those_of_the_table(data, name):
    """What a cell says of its difference is the row of table.md; the verdict follows the interval of table.csv."""
    found, table = document(data, name), pd.read_csv(RESULTS / name / "table.csv").set_index(["method", "metric"])
    [block] = [b for b in found["blocks"] if b["kind"] == "table" and "Difference" in b["heads"]]
    for cells in block["rows"]:
        metric = block["metrics"][1]
        full, row = found["cells"][str(block["section"])][metric][cells[0]], table.loc[(cells[0], metric)]
        assert block["heads"][1:] == data["difference_heads"] and full["difference"] == cells[1:]
        shown = float(full["difference"][0].replace("−", "-"))
        assert shown == pytest.approx(row["diff"], abs=0.5000001 * 10 ** -METRICS[metric].decimals)
        clear = row["diff_low"] > 0 or row["diff_high"] < 0
        assert ("not distinguishable from" in full["said"]) != clear
        assert full["said"].startswith(f"{METRICS[metric].label}: {cells[0]} is ")


def test_rows_of_a_cell_are_the_runs_of_the_table(data, published):
    for name in TABLES:
        found = document(data, name)
        listed = json.loads((RESULTS / name / "sources.json").read_text())["runs"]
        runs = [run for of_modality in found["runs"].values() for of_method in of_modality.values() for run in of_method]
        assert dict(runs) == listed
        assert all((published / run / file).is_file() for run, _ in runs for file in ROWS)
        assert all("kernel_distance" in sets or "frechet_distance" in sets for sets in found["sets"].values())


def test_skills_are_columns_of_the_table_by_skill(data):
    blocks = [b for b in document(data, "table1/cpu")["blocks"] if b["kind"] == "table"]
    assert [sum(map(bool, block["skills"])) for block in blocks] == [0, 6, 0]
    assert "counting" in blocks[1]["skills"] and blocks[1]["metrics"][3] == "accuracy/counting"


def test_curves_are_the_rows_of_the_probe(data):
    gallery = next(g for g in data["galleries"] if g["id"] == "gallery-image-cpu")
    probe = pd.read_csv(RESULTS / "image/cpu/otca/seed0/probe.csv")
    at = gallery["methods"].index("otca")
    for prompt in gallery["prompts"]:
        curve = prompt["samples"][at]["curve"]
        of_prompt = probe[probe["prompt_id"] == prompt["id"]]
        assert {name: len(points) for name, points in curve.items()} == of_prompt["objective"].value_counts().to_dict()
        for name, points in curve.items():
            rows = of_prompt[of_prompt["objective"] == name]
            assert points == [[step, credit] for step, credit in zip(rows["step"], rows["credit"])]
    assert gallery["without_curve"] == ["base"]


def test_samples_are_the_published_files(data):
    for gallery, method in ((g, m) for g in data["galleries"] for m in ("base", "otca")):
        folder = RESULTS / gallery["modality"] / gallery["tier"] / method / "seed0"
        rows = [json.loads(line) for line in (folder / "media" / "prompts.jsonl").read_text().splitlines()]
        scores = pd.read_csv(folder / "scores.csv.gz")
        right = scores[scores["sample"] == 0].set_index("prompt_id")["judge_correct"]
        for row, prompt in zip(rows, gallery["prompts"], strict=True):
            sample = prompt["samples"][gallery["methods"].index(method)]
            file = (folder / "media" / row["file"]).with_suffix(".mp4" if gallery["modality"] == "video" else ".png")
            assert base64.b64decode(sample["src"].partition(",")[2]) == file.read_bytes()
            assert sample["right"] == bool(right[row["id"]])


def test_a_full_gallery_keeps_the_rows_of_the_tables(tmp_path):
    """Two places too few: a rival comes before the variants by name, and what a table has before both, in its order."""
    variants = [f"a@{i:02}" for i in range(MOST_METHODS - 2)]
    for method in (*variants, "rival", "z@equal", "z"):
        media = tmp_path / f"image/cpu/{method}/seed0/media"
        media.mkdir(parents=True)
        (media / "0.png").write_bytes(b"picture")
        (media / "prompts.jsonl").write_text('{"id": "p", "prompt": "a ring", "spec": null, "file": "0.png"}\n')
        pd.DataFrame({"prompt_id": ["p"], "sample": [0]}).to_csv(media.parent / "scores.csv.gz", index=False)
    for name, rows in (("table2/cpu", "z@equal"), ("table1/cpu", "z"), ("table1/quick", "a@21"), ("ablations/x/cpu", "a@21")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "table.csv").write_text(f"modality,method\nimage,{rows}\n")
    [gallery] = galleries(tmp_path)
    assert gallery["methods"] == ["z", "z@equal", "rival", *variants[:-1]] and gallery["left_out"] == variants[-1:]


# -------------------------------------------------------------------------------------------------------------- the security
def test_a_prompt_cannot_leave_its_block(page, data):
    assert ATTACK in [prompt["text"] for gallery in data["galleries"] for prompt in gallery["prompts"]]
    assert page.count("</script>") == page.count("<script") == 2 and "alert(1)</" not in page and "<img" not in page
    block = re.search(r'type="application/json">(.*?)</script>', page, re.S)[1]
    assert not set("<>&\u2028\u2029") & set(block)


def test_json_in_a_block_reads_back():
    text = "</script><!-- & \u2028\u2029 é"
    assert json.loads(json_block([text])) == [text]
    with pytest.raises(ValueError):
        json_block([float("nan")])


def test_nothing_is_loaded_from_elsewhere(page):
    """No attribute that loads, but links beside the page and the citation; no markup in strings, no inline handlers or styles."""
    found = Tags(page)
    addresses = [(tag, name, value) for tag, attrs in found.tags for name, value in attrs.items() if name in LOADS]
    assert sorted(addresses) == [
        ("a", "href", "#main"),
        ("a", "href", "./README.md"),
        ("a", "href", "https://arxiv.org/abs/2604.19234"),
        ("link", "href", "data:,"),
    ]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    [script] = [text for tag, attrs, text in found.texts if tag == "script" and not attrs]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|fetch\(|XMLHttp|import\(|Storage", script)
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"https://arxiv.org/abs/2604.19234", "http://www.w3.org/2000/svg"}


def test_the_policy_allows_this_style_and_this_script_alone(page):
    found = Tags(page)
    [policy] = [attrs["content"] for tag, attrs in found.tags if tag == "meta" and "http-equiv" in attrs]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, tag in (("style-src", "style"), ("script-src", "script")):
        [text] = [text for name, attrs, text in found.texts if name == tag and not attrs]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    none, samples = ("default-src", "base-uri", "form-action"), ("img-src", "media-src")
    assert rules == dict.fromkeys(none, "'none'") | dict.fromkeys(samples, "data:")


def test_colours_of_curves_are_those_of_the_figures(page):
    lines = re.findall(r"--line[0-3]: light-dark\((#\w+), ", page)
    assert len(lines) == 4 and {color.upper() for color in lines} <= set(COLORS.values())


# ----------------------------------------------------------------------------------------------------------- what is refused
def refused(capsys, *argv):
    """The one line that a command ends with."""
    assert main([*map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("page: error: ")
    return err


def test_folders_without_results_are_refused(capsys, tmp_path):
    assert "no such folder" in refused(capsys, "--results", tmp_path / "nowhere")
    assert "no published table there" in refused(capsys, "--results", tmp_path)
    assert not (tmp_path / "index.html").exists()


def copied(published, tmp_path):
    return shutil.copytree(published, tmp_path / "results", ignore=shutil.ignore_patterns("index.html"))


def test_a_table_whose_run_is_missing_is_refused(capsys, published, tmp_path):
    folder = copied(published, tmp_path)
    shutil.rmtree(folder / "image/cpu/otca/seed3")
    assert "lists image/cpu/otca/seed3, which lacks scores.csv.gz" in refused(capsys, "--results", folder)


def test_a_text_that_is_not_that_of_the_rows_is_refused(capsys, published, tmp_path):
    folder = copied(published, tmp_path)
    text = folder / "table1/cpu/table.md"
    text.write_text(text.read_text().replace("Baseline: static", "Baseline: otca"))
    assert "where table.csv has 'Budget: equal iterations" in refused(capsys, "--results", folder)


def test_a_sample_outside_of_its_folder_is_refused(capsys, published, tmp_path):
    folder = copied(published, tmp_path)
    listing = folder / "image/quick/otca/seed0/media/prompts.jsonl"
    row = json.loads(listing.read_text().splitlines()[0])
    listing.write_text(json.dumps(row | {"file": "../media/" + row["file"]}) + "\n")
    assert "line 1: the sample '../media/" in refused(capsys, "--results", folder)
    listing.write_text("[]\n")
    assert "line 1: no sample with id, prompt, file and spec" in refused(capsys, "--results", folder)


# -------------------------------------------------------------------------------------------------------------- the Markdown
def test_markdown_reads_back_what_was_written(tmp_path):
    texts = ["a|b", "*x* _y_", "\\ & <b>", "~~`#1`~~ $5", "[a](b)"]
    grid = {"Method": [(text, False) for text in texts], "A | B ↑": [(f"{i} [−1, 2]", i == 2) for i in range(5)]}
    path = tmp_path / "table.md"
    lines = ["# A \\| B", "", "one", "two", "", markdown_table(grid), "", "- \\*a", "- b", "", "## End"]
    path.write_text("\n".join(lines) + "\n")
    rows = tuple((text, f"{i} [−1, 2]") for i, text in enumerate(texts))
    assert read_markdown(path) == [
        Heading(1, "A | B"),
        Paragraph("one two"),
        Cells(("Method", "A | B ↑"), rows, frozenset({(2, 1)})),
        Items(("*a", "b")),
        Heading(2, "End"),
    ]
    assert all(plain(markdown(text)) == text for text in texts)
