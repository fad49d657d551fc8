"""Agreement of credit with the truth: closed forms on made-up trajectories whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from eval import truth_set
from eval.fidelity import (
    AXES,
    Truth,
    correlations_RK,
    initial_noise_share_RK,
    interval,
    misallocated_share_RK,
    profile_RTK,
    reliability_RK,
    resampled_counts,
    true_covariance_TKK,
    truth_of,
    worthless_TBK,
)
from otca import presets
from reproduce import credit_fidelity, truth
from tests.toys import toy_settings

T, GROUPS, G, K, N = 6, 40, 8, 2, 16
STAGES = ("base", "half")
GROUP_B = np.repeat(np.arange(GROUPS), G)
COUNTS = resampled_counts(GROUPS, 300)
STEP_SIZE_T = np.array([3.0, 2.0, 1.0, 1.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def walk():
    """Values of a random walk with steps of known size, and noisy continuations of every state but the last."""
    rng = np.random.default_rng(0)
    increment_TBK = rng.normal(size=(T, GROUPS * G, K)) * STEP_SIZE_T[:, None, None]
    start_BK = rng.normal(size=(GROUPS * G, K))
    value_SBK = start_BK + np.concatenate([np.zeros((1, GROUPS * G, K)), np.cumsum(increment_TBK, axis=0)])
    draws_SNBK = value_SBK[:T, None] + 2 * rng.normal(size=(T, N, GROUPS * G, K))
    return increment_TBK, truth_of(draws_SNBK, value_SBK[-1])


def test_truth_by_hand():
    """Two draws of two states: means 1, 4, final 5; paired differences 2 and 4 have variance 2, over 2 draws: 1."""
    draws = np.array([[0.0, 2.0], [2.0, 6.0]]).reshape(2, 2, 1, 1)
    truth = truth_of(draws, np.array([[5.0]]))
    assert truth.increment_TBK.ravel().tolist() == [3.0, 1.0]
    assert truth.error_TBK.ravel().tolist() == [1.0, 4.0]  # then 5 − 2 and 5 − 6: variance 8
    assert truth.start_BK.item() == 1.0 and truth.start_error_BK.item() == 1.0


def test_reliability_and_luck_of_a_known_walk(walk):
    """Error of an increment: 2²·(1 + 1)/16, of the last (its end is known) half of it."""
    _, truth = walk
    signal, noise = np.square(STEP_SIZE_T).sum(), (5 * 8 + 4) / N
    np.testing.assert_allclose(reliability_RK(truth, GROUP_B, COUNTS)[0], signal / (signal + noise), atol=0.03)
    np.testing.assert_allclose(initial_noise_share_RK(truth, GROUP_B, COUNTS)[0], 1 / (1 + signal), atol=0.03)


def test_covariance_of_the_truth_has_no_error_left(walk):
    """Two objectives of one walk with other signs and noise of their own: variances of the steps, correlation −1."""
    rng, (increment_TBK, _) = np.random.default_rng(5), walk
    increment_TBK = np.stack([increment_TBK[..., 0], -increment_TBK[..., 0]], -1)
    value_SBK = np.concatenate([np.zeros((1, GROUPS * G, K)), np.cumsum(increment_TBK, axis=0)])
    shared = rng.normal(size=(T, N, GROUPS * G, 1))  # the error is shared by the objectives, and must not count either
    draws_SNBK = value_SBK[:T, None] + 2 * shared + rng.normal(size=(T, N, GROUPS * G, K))
    signal_TKK, total_TKK = true_covariance_TKK(draws_SNBK, value_SBK[-1], GROUP_B)
    kept = 1 - 1 / G
    np.testing.assert_allclose(signal_TKK[:, 0, 0], kept * np.square(STEP_SIZE_T), rtol=0.15, atol=0.2)
    np.testing.assert_allclose(signal_TKK[:, 0, 1], -signal_TKK[:, 0, 0], rtol=0.05, atol=0.2)
    np.testing.assert_allclose((total_TKK - signal_TKK)[:-1, 0, 1], kept * 2 * 4 / N, rtol=0.1)


def test_the_truth_itself_correlates_as_its_reliability_allows(walk):
    increment_TBK, truth = walk
    reliability_K = reliability_RK(truth, GROUP_B, COUNTS)[0]
    pooled_K = correlations_RK(increment_TBK, truth, GROUP_B, COUNTS, "pooled")[0]
    np.testing.assert_allclose(pooled_K, np.sqrt(reliability_K), atol=0.02)
    exact = Truth(increment_TBK[:5], np.zeros((5, *increment_TBK.shape[1:])), *[truth.final_BK] * 3)
    for axis in AXES:
        np.testing.assert_allclose(correlations_RK(increment_TBK[:5], exact, GROUP_B, COUNTS, axis)[0], 1.0, atol=1e-9)
        np.testing.assert_allclose(correlations_RK(-3 * increment_TBK[:5], exact, GROUP_B, COUNTS, axis)[0], -1.0, atol=1e-9)


def test_credit_without_steps_is_undefined_within_a_trajectory(walk):
    """The final reward, alike at every step: it correlates across samples, and within a trajectory with nothing."""
    increment_TBK, truth = walk
    same_TBK = np.broadcast_to(truth.final_BK, increment_TBK.shape)
    assert np.isnan(correlations_RK(same_TBK, truth, GROUP_B, COUNTS, "step")).all()
    size = np.square(STEP_SIZE_T).sum()
    expected = np.sqrt(size / (size + 1) / T) * np.sqrt(reliability_RK(truth, GROUP_B, COUNTS)[0])
    np.testing.assert_allclose(correlations_RK(same_TBK, truth, GROUP_B, COUNTS, "pooled")[0], expected, atol=0.03)
    assert np.isnan(interval(np.array([np.nan, 1.0]))).all()


def test_group_means_do_not_count(walk):
    """What is the same for a whole group carries no credit: adding it changes nothing."""
    increment_TBK, truth = walk
    shifted = increment_TBK + 100 * np.random.default_rng(1).normal(size=(T, GROUPS, 1))[:, GROUP_B]
    for axis in AXES:
        got = correlations_RK(shifted, truth, GROUP_B, COUNTS, axis)[0]
        np.testing.assert_allclose(got, correlations_RK(increment_TBK, truth, GROUP_B, COUNTS, axis)[0], atol=1e-9)


def test_waste_and_profile(walk):
    increment_TBK, truth = walk
    exact = Truth(increment_TBK, np.zeros_like(increment_TBK), *[truth.final_BK] * 3)
    worthless = worthless_TBK(exact, GROUP_B)
    assert worthless[-1].all() and worthless[0].mean() < 0.2
    only_last = np.zeros_like(increment_TBK)
    only_last[-1] = np.random.default_rng(2).normal(size=only_last[-1].shape)
    np.testing.assert_allclose(misallocated_share_RK(only_last, exact, GROUP_B, COUNTS)[0], 1.0)
    assert (misallocated_share_RK(increment_TBK, exact, GROUP_B, COUNTS)[0] < 0.1).all()
    profile_TK = profile_RTK(truth.increment_TBK, GROUP_B, COUNTS, truth.error_TBK)[0]
    np.testing.assert_allclose(profile_TK, np.tile(STEP_SIZE_T[:, None] / np.sqrt(np.square(STEP_SIZE_T).mean()), K), atol=0.2)


def test_intervals_resample_groups():
    """Of a mean of independent groups the interval is as wide as theory says, row 0 the estimate."""
    value_P = np.random.default_rng(3).normal(size=GROUPS)
    value_R = COUNTS @ value_P / GROUPS
    estimate, low, high = interval(value_R)
    assert estimate == pytest.approx(value_P.mean())
    assert high - low == pytest.approx(2 * 1.96 * value_P.std() / np.sqrt(GROUPS), rel=0.2)


@pytest.fixture
def tiny_study(tmp_path, monkeypatch, toy_pipeline):
    """A study of 2 × 2 trajectories of 4 steps of an untrained model, in a folder of its own."""
    settings = toy_settings("static_multi_reward", toy_pipeline, iterations=2, group_size=2, micro_batch=2)
    monkeypatch.setitem(presets.TRAIN, "image/cpu", settings | {"sampler.steps": 4})
    monkeypatch.setitem(truth.STUDIES, "image", truth.Study("image", 2, 2, group_size=2))
    monkeypatch.setattr(truth, "VALUATIONS", ((1, 0, "even"), (3, 0, "even")))
    monkeypatch.setattr(truth, "HEAD_BATCHES", 2)
    monkeypatch.setattr(credit_fidelity, "RESAMPLES", 20)
    for script in (truth, credit_fidelity):
        monkeypatch.setattr(script, "STAGES", STAGES)
    monkeypatch.setattr(credit_fidelity, "DRAWN", ("otca", "process_credit"))
    readings = ("uniform_grpo", "static_multi_reward", "otca_tcd", "otca", "process_credit", "value_head")
    monkeypatch.setattr(credit_fidelity, "READINGS", readings)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_study_end_to_end(tiny_study, monkeypatch, capsys):
    """Train, sample, continue, measure and render; a second run changes no byte and computes nothing. Readings are
    added to the published truth about the same trajectories, and to no other."""
    argv = ["--modality", "image", "--jobs", "1"]
    assert credit_fidelity.main(argv) == 0
    folder = tiny_study / "results/credit_fidelity"
    rows = pd.read_csv(folder / "fidelity.csv")
    assert list(rows) == credit_fidelity.COLUMNS
    assert set(rows["method"]) == set(credit_fidelity.READINGS) and set(rows["objective"]) == {"red", "blue"}
    compared = rows[rows["axis"].str.startswith("over_")]
    assert len(rows) - len(compared) == 2 * len(credit_fidelity.READINGS) * 2 * 4 and len(compared) == 2 * 3 * 2
    pooled = rows[rows["axis"] == "pooled"].set_index(["stage", "objective", "method"])["correlation"]
    for row in compared.itertuples():
        own, rival = (pooled[row.stage, row.objective, name] for name in (row.method, row.axis.removeprefix("over_")))
        assert row.correlation == pytest.approx(own / rival, rel=1e-4)
    uniform = rows[(rows["method"] == "uniform_grpo") & (rows["axis"] == "step")]
    assert uniform["correlation"].isna().all()  # it does not vary within a trajectory
    assert "4 trajectories of 2 prompts" in (folder / "image/fidelity.md").read_text()
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    for name in ("collect", "continuation_rewards_NBK"):
        monkeypatch.setattr(truth, name, None)  # would fail if called
    assert credit_fidelity.main([*argv, "--truth", "published"]) == 0
    assert before.keys() == {f for f in folder.rglob("*") if f.is_file()}
    path = credit_fidelity.truth_file("image", "half")
    arrays, metadata = truth_set.load(path)
    facts = {truth_set.FACTS: json.dumps(metadata)}
    save_file({name: array for name, array in arrays.items() if name != "credit/otca"}, path, facts)
    assert credit_fidelity.main([*argv, "--render"]) == 2
    assert "truth-image-half.safetensors has no otca; add it with" in capsys.readouterr().err
    save_file(arrays | {"reward_BK": arrays["reward_BK"] + np.float32(2e-5)}, path, facts)
    assert credit_fidelity.main([*argv, "--truth", "published"]) == 2
    assert "trajectories of stage 'half' end otherwise here than published, by up to 2e-05" in capsys.readouterr().err
