"""``mobilenet-ext bench --training`` measures, compares and reports; no times are tested."""

from __future__ import annotations

import json

import pytest

from mobilenet_ext.bench import training
from mobilenet_ext.bench.training_report import TrainingReport
from mobilenet_ext.cli import main


def test_one_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(training, "LAYERS", ((16, 14, 1), (24, 14, 2)))
    arguments = ["--training", "--model", "reference:v2", "--batch", "2", "--size", "64", "--rounds", "1"]
    assert main(["bench", *arguments, "--rivals", "none", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    by_form = {(row["mode"], row["form"]): row for row in report["steps"]}
    assert set(by_form) == {(m, f) for m in training.MODES for f in ("eager channels_last", "mobilenet_ext")}
    for mode, part in (("frozen", 12), ("batch", 3)):
        plain, ours = by_form[mode, "eager channels_last"], by_form[mode, "mobilenet_ext"]
        assert 0 < ours["saved_bytes"] * part <= plain["saved_bytes"]
    assert {row["mode"] for row in report["errors"]} == set(training.MODES)
    assert len(report["layers"]) == 2


def test_a_wrong_gradient_fails():
    report = TrainingReport({}, {}, errors=[{"model": "m", "mode": "frozen", "ours": 3e-6, "torch": 1e-6}])
    assert report.wrong
    assert not TrainingReport({}, {}, errors=[{"model": "m", "mode": "batch", "ours": 1e-6, "torch": 1e-6}]).wrong
