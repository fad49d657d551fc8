"""What others wrote: hostile prompts, ids, specs, settings and weights are read or refused in one line, and nothing is run."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from eval import generate
from eval.evaluate import write_rows
from eval.metrics.embedded import JudgeAccuracy, VideoJudgeAccuracy
from otca import cli
from otca.__main__ import main
from otca.config import EvalConfig
from otca.errors import MAX_LINE, InputError, printable
from otca.models.weights import LORA_FILE, apply_weights
from otca.prompts import load_prompts
from otca.rewards.base import build_reward, check_prompts, find_reward
from otca.rewards.published import read_weights
from otca.tasks import scenes, video_scenes
from otca.types import Prompt


def rows(**more) -> str:
    return json.dumps({"prompt": "a cat"} | more) + "\n"


# -------------------------------------------------------------------------------------------------------------- prompts
TEXTS = ["<script>alert(1)</script>", "../../etc/passwd", "a\0b", "\u202eback\u200f", "\N{WOMAN}\u200d\N{ROCKET}", "x" * 200_000]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_any_text_is_read_as_it_stands(tmp_path, ending):
    """With a byte order mark before it, too, which is no part of the file."""
    lines = {".jsonl": map(json.dumps, ({"prompt": text} for text in TEXTS)), ".csv": ["prompt", *TEXTS], ".txt": TEXTS}
    (tmp_path / f"a{ending}").write_text("\ufeff" + ("\n".join(lines[ending]) if ending in lines else json.dumps(TEXTS)))
    assert [p.text for p in load_prompts(str(tmp_path / f"a{ending}"))] == TEXTS


BAD_PROMPTS = {
    "bad.jsonl": ('{"prompt": "a red circle"}\n{"prompt": ', "line 2: not JSON"),
    "key.jsonl": ('{"promt": "x"}\n', "line 1: no text under the key 'prompt'"),
    "blank.csv": ('prompt\n" "\n', "line 2: no text"),
    "notes.md": ("a red circle\n", "unknown ending '.md'"),
    "deep.json": ('{"anime": {"prompt": "x"}}', "expected a list of prompts under 'anime'"),
    "surrogate.jsonl": ('{"prompt": "\\ud800"}', r"line 1: not UTF-8 \('\\ud800' is no character\); convert the file"),
    "latin.csv": (b"prompt\na cat\n\xe9t\xe9\n", "line 3: not UTF-8"),
    "deep.jsonl": ("[" * 100_000, r"line 1: not JSON \(maximum recursion depth"),
    "digits.jsonl": (f'{{"prompt": "a", "id": {"9" * 5000}}}', r"not JSON \(Exceeds the limit"),
    "wide.txt": ("a cat\n".encode("utf-16-le"), "characters of 16 or 32 bits without a mark; convert"),
    "wider.txt": ("a cat\n".encode("utf-32"), "characters of 16 or 32 bits"),
    "cut.csv": ("prompt\na cat".encode("utf-16")[:-1], "truncated data"),
    "id-long.jsonl": (rows(id="a" * 100_000), "'id' is 'a+', 100000 characters; at most 255"),
    "id-list.jsonl": (rows(id=["a"]), "'id' is of type list; give a string or a whole number"),
    "spec-list.jsonl": (rows(spec=[1]), "'spec' is of type list; it must be an object"),
    "spec-nan.jsonl": (rows(spec={"a": float("nan")}), "'spec' holds what no JSON may"),
    "spec.csv": ('prompt,spec\na,"{""a"": [1"\n', "line 2: 'spec': not JSON"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_what_no_prompts_file_may_hold_is_named(tmp_path, name):
    content, said = BAD_PROMPTS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as caught:
        load_prompts(str(tmp_path / name))
    assert name in str(caught.value) and str(caught.value).isprintable()


def test_a_prompts_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # a file whose reading fails, also for root
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(Input/output error\)"):
        load_prompts(str(tmp_path / "a.txt"))
    for source in ("\0", "x" * 100_000, "\ud800.txt"):
        with pytest.raises(InputError, match="not found"):
            load_prompts(source)


def test_the_terminal_sees_one_line_without_control_characters(capsys):
    assert main(["score", "--images", "a\x1b[31m\u202e", "--prompts", "absent"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "images a\\x1b[31m\\u202e not found" in error
    assert printable("a\0b\u202e\n c") == "a\\x00b\\u202e c" and len(printable("x" * 100_000)) == MAX_LINE


# --------------------------------------------------------------------------------------------------- files, rows, pages

def test_two_prompts_of_one_id_are_refused_before_anything_is_made(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(rows(id="same") + rows(id="same"))
    with pytest.raises(InputError, match="the id 'same' comes 2 times"):
        next(generate.generated(None, EvalConfig(source=str(path)), 0))


def test_rows_hold_any_text(tmp_path):
    texts = ["a\rb", "a\nb", 'say "x", then', "<b>", "=1+1", "a\0b", "\u202e"]
    write_rows(pd.DataFrame({"text": texts, "value": 0.5}), tmp_path / "a.csv")
    assert pd.read_csv(tmp_path / "a.csv").text.tolist() == texts


# ---------------------------------------------------------------------------------------------------------------- specs

SPEC = {
    "skill": "position",
    "objects": [{"shape": "circle", "color": None}, {"shape": "cross", "color": "red"}],
    "relation": "above",
    "place": None,
}
CLIP = {
    "skill": "turning",
    "objects": [{"shape": "circle", "color": "red", "course": ["left", "up"], "speed": None}],
    "relation": None,
}
BAD_SPECS = [
    {},
    SPEC | {"objects": []},
    SPEC | {"objects": "ab"},
    SPEC | {"objects": [{"shape": ["circle"], "color": {}}]},
    SPEC | {"objects": SPEC["objects"][:1]},
    SPEC | {"relation": ["above"]},
    SPEC | {"skill": {"a": 1}},
]


@pytest.mark.parametrize("spec", BAD_SPECS, ids=str)
def test_pictures_are_judged_only_by_specs_of_the_grammar(spec):
    scenes.check_spec(Prompt("p", "t", SPEC))
    with pytest.raises(InputError, match="prompt 'p' has the spec .*; needed is .*objects"):
        JudgeAccuracy.score(JudgeAccuracy, None, [Prompt("p", "t", spec)])
    prompts = [Prompt("p", "t", SPEC), Prompt("p", "t", spec)]
    said = "prompt 'p' has the spec" if spec else "quality, alignment need the spec of each prompt, and here has prompts without"
    with pytest.raises(InputError, match=said):
        check_prompts([build_reward("quality"), build_reward("alignment")], prompts, "here")


@pytest.mark.parametrize("wrong", [{"course": "left"}, {"course": ["left"]}, {"course": [[], {}]}, {"speed": "fast"}], ids=str)
def test_clips_are_judged_only_by_specs_of_the_grammar(wrong):
    video_scenes.check_spec(Prompt("p", "t", CLIP))
    spec = CLIP | {"objects": [CLIP["objects"][0] | wrong]}
    with pytest.raises(InputError, match="prompt 'p' has the spec .*; needed is .*course"):
        VideoJudgeAccuracy.score(VideoJudgeAccuracy, None, [Prompt("p", "t", spec)])


@pytest.mark.parametrize(
    ("name", "said"), [("..x:y", "cannot be imported"), (":y", "cannot be imported"), ("os:sep", "of type str and no class")]
)
def test_what_names_no_reward_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        find_reward(name)


# -------------------------------------------------------------------------------------------------------------- settings

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
BAD_SETTINGS = {
    "tag": ("seed: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor for the tag"),
    "laughs": (LAUGHS, "line 2 has an alias"),
    "deep": ("[" * 100_000, "nested more than 16 levels"),
    "large": ("prompts: " + "x" * 300_000, "300,009 characters of settings; the limit is 200,000"),
    "empty": ("", "hold nothing; expected lines such as 'seed: 1'"),
    "nul": ("prompts: a\0b", "unacceptable character #x0000"),
    "twice": ("seed: 1\nseed: 2", "line 2 sets 'seed' a second time"),
    "dotted, too": ("policy.height: 32\npolicy: {height: 64}", "a.yaml: 'policy.height' is set twice, dotted and in its group"),
    "unknown": ("optimizer: {lerning_rate: 1}", "'optimizer.lerning_rate' is unknown; did you mean 'optimizer.learning_rate'"),
    "another file": ("policy: other.yaml", "'policy' must hold settings by name"),
    "class": ("policy: {class_path: antigravity.x}", "'policy.class_path' is unknown"),
    "preset": ("preset: video/quick", "preset 'video/quick' is set in the YAML file; name it on the command line"),
    "null": ("seed: null", "seed is empty; give a value, or leave it out"),
    "nan": ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate is nan; it must be a finite number"),
    "huge": (f"seed: {2**70}", "seed has 71 binary digits; whole numbers go up to 2147483647"),
    "digits": (f"seed: {'9' * 5000}", "a value cannot be read"),
    "control": ('prompts: "a\\0b"', r"prompts is 'a\\x00b'; control characters and line ends are not allowed"),
}


@pytest.fixture(scope="module")
def options():
    return cli.train_parser()


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_what_no_settings_file_may_hold_is_named(tmp_path, monkeypatch, options, name):
    monkeypatch.chdir(tmp_path)
    content, said = BAD_SETTINGS[name]
    (tmp_path / "a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "other.yaml").write_text("path: embedded:video")
    with pytest.raises(InputError, match=said) as caught:
        cli.resolve(options, ["--config", "a.yaml"])
    assert str(caught.value).isprintable() and len(str(caught.value)) <= MAX_LINE
    assert {path.name for path in tmp_path.iterdir()} == {"a.yaml", "other.yaml"}


# -------------------------------------------------------------------------------------------------------------- weights


class Malice:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


BAD_WEIGHTS = {
    "tensor.pt": (torch.zeros(2), "does not hold tensors by name"),
    "number.pt": ({"a": torch.zeros(2), "step": 3}, "does not hold tensors by name"),
    "pickle.pt": ({"a": Malice()}, "more than tensors, or damaged; no pickle is run"),
    "empty.pt": (b"", r"cannot be read .EOFError"),
    "cut.safetensors": (b"\xff" * 9, "header too large"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_holds_no_weights_is_named_and_nothing_is_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, said = BAD_WEIGHTS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=f"reward 'own': .*{name} .*{said}"):
        read_weights("reward 'own'", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_weights_to_start_from_are_never_unpickled(tmp_path, monkeypatch, untrained_pipeline):
    from diffusers import FluxPipeline

    monkeypatch.chdir(tmp_path)
    pipeline = FluxPipeline.from_pretrained(untrained_pipeline, local_files_only=True)
    network, cut, foreign = tmp_path / "network", tmp_path / "cut", tmp_path / "foreign"
    pipeline.transformer.save_config(network)
    torch.save({"a": Malice()}, network / "diffusion_pytorch_model.bin")
    cut.mkdir(), foreign.mkdir()
    (cut / LORA_FILE).write_bytes(b"\xff" * 20)
    save_file({"other.lora_A.weight": torch.zeros(2)}, foreign / LORA_FILE)
    refused = (
        (network, "no safetensors file there"),
        (cut, "cut or damaged"),
        (foreign, "has other.lora_A.weight, for which there is no place"),
    )
    for folder, said in refused:
        with pytest.raises(InputError, match=f"policy.weights {folder}.*{said}"):
            apply_weights(pipeline, ["transformer"], str(folder))
    assert not (tmp_path / "pwned").exists()
