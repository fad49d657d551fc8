"""The doctor: what is not as needed is named, in a checkout by what is pinned, in an installed package by what it requires."""

from __future__ import annotations

import pytest

from otca import doctor
from otca.__main__ import main


def test_all_is_well_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("ok    checkpoint embedded:") == 5 and f"hub cache: {tmp_path}" in out and "FAIL" not in out


@pytest.mark.parametrize("installed", [False, True])
def test_packages_that_are_absent_or_others_are_named(capsys, monkeypatch, tmp_path, installed):
    listed = ["torch==0.0.1", "a-package-of-nobody", "numpy"]
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    if installed:
        monkeypatch.setattr(doctor, "requires", lambda name: [*listed, 'absent; extra == "serve"'])
    else:
        (tmp_path / "requirements.txt").write_text("# pinned\n" + "\n".join(listed))
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "FAIL  packages not as needed: torch 2" in out and "(wanted: ==0.0.1), a-package-of-nobody absent\n" in out
    assert ("--force-reinstall otca" if installed else f"-r {tmp_path / 'requirements.txt'}") in out
