"""The truth set: written, read and scored on a walk whose true credit is known; what is no rule is named."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from eval import truth_set
from eval.fidelity import truth_of
from otca.__main__ import main
from otca.errors import InputError

T, GROUPS, G, K, N = 5, 24, 6, 2, 32


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A walk that gains its first latent number at each step in objective 0, and its negative, halved, in objective 1."""
    rng = np.random.default_rng(0)
    gain_TB = rng.normal(size=(T, GROUPS * G)) * np.array([3, 2, 1, 0.5, 0])[:, None]
    value_SB = np.concatenate([np.zeros((1, GROUPS * G)), gain_TB.cumsum(0)])
    value_SBK = np.stack([value_SB, -value_SB / 2], axis=-1)
    truth = truth_of(value_SBK[:-1, None] + rng.normal(size=(T, N, GROUPS * G, K)), value_SBK[-1])
    latents_SB = np.concatenate([value_SB[..., None], rng.normal(size=(T + 1, GROUPS * G, 3))], axis=-1)
    latents_SB = np.concatenate([latents_SB, latents_SB[-1:]])  # the noiseless step
    path = tmp_path_factory.mktemp("truth") / "truth.safetensors"
    group_B = np.repeat(np.arange(GROUPS), G)
    truth_set.write(path, latents_SB, np.linspace(1, 0, T + 2), group_B, truth, {"objectives": "up,down", "version": "1"})
    return path


def perfect(latents_SBD, reward_BK, group_B):
    gain_TB = np.diff(latents_SBD[:-1, :, 0], axis=0)
    return np.stack([gain_TB, -gain_TB], axis=-1)


def test_a_perfect_rule_reaches_what_the_truth_allows(path):
    rows = truth_set.score(perfect, path).set_index("objective")
    assert list(rows.index) == ["up", "down"]
    np.testing.assert_allclose(rows["pooled"], rows["best"], atol=0.02)
    assert (rows["best"] > 0.95).all() and (rows["pooled_low"] < rows["pooled"]).all()


def test_rules_that_know_less_agree_less(path):
    """One sum is right for one objective and wrong for the other; the final reward at every step has no order within one."""
    rows = truth_set.score(lambda *given: perfect(*given)[..., 0], path).set_index("objective")
    assert rows["pooled"]["up"] > 0.95 and rows["pooled"]["down"] < -0.95
    rows = truth_set.score(lambda latents, reward_BK, group_B: np.broadcast_to(reward_BK, (T, *reward_BK.shape)), path)
    assert rows["step"].isna().all() and (rows["pooled"].between(0.2, 0.8)).all()


def test_the_command_scores_a_file(path, tmp_path, capsys):
    rule = tmp_path / "rule.py"
    rule.write_text("def credit(latents_SBD, reward_BK, group_B):\n    return latents_SBD[1:-1, :, 0] - latents_SBD[:-2, :, 0]\n")
    out = tmp_path / "scores.csv"
    assert main(["credit-bench", str(rule), "--truth", str(path), "--out", str(out)]) == 0
    said, rows = capsys.readouterr().out, pd.read_csv(out)
    assert "up: pooled correlation 0.9" in said and rows["pooled"][0] > 0.95 > 0 > rows["pooled"][1]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda *_: np.zeros((T, 3)), r"credit of shape \(5, 3\).*\(5, 144, 2\)"),
        (lambda *_: np.full((T, GROUPS * G), np.nan), "credit that is not finite"),
    ],
)
def test_what_is_no_credit_is_named(path, rule, said):
    with pytest.raises(InputError, match=said):
        truth_set.score(rule, path)


def test_files_that_are_none_are_named(tmp_path, path, capsys):
    (tmp_path / "empty.py").write_text("")
    assert main(["credit-bench", str(tmp_path / "empty.py"), "--truth", str(path)]) == 2
    assert "defines no function credit" in capsys.readouterr().err
    for code, said in (("import nowhere", "No module named 'nowhere'"), ("def credit(:", "invalid syntax .*line 1")):
        (tmp_path / "rule.py").write_text(code)
        assert main(["credit-bench", str(tmp_path / "rule.py"), "--truth", str(path)]) == 2
        assert re.search(rf"rule {tmp_path}/rule.py cannot be run \(\w+: .*{said}", capsys.readouterr().err)
    (tmp_path / "rule.py").write_text("def credit(*_): ...")
    assert main(["credit-bench", str(tmp_path / "rule.py"), "--truth", str(tmp_path / "empty.py")]) == 2
    assert "truth set" in capsys.readouterr().err


def test_no_truth_set_is_larger_than_allowed(tmp_path, monkeypatch, path):
    arrays, _ = truth_set.load(path)
    monkeypatch.setattr(truth_set, "MAX_BYTES", 1000)
    truth = truth_set.truth_of(arrays)
    with pytest.raises(InputError, match="take fewer trajectories"):
        truth_set.write(tmp_path / "x", arrays["latents_SBD"], arrays["sigma_S"], arrays["group_B"], truth, {})
