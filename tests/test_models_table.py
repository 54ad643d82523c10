"""docs/models.md is what its script makes, and a sample of it is what the code does."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ["torchvision:mobilenet_v3_small", "timm:mobilenetv4_conv_small", "timm:lcnet_050", "timm:mixnet_s"]


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "tools" / "models_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_what_the_script_renders(table):
    assert table.TABLE.read_text() == table.render(json.loads(table.DATA.read_text()))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_what_the_code_does(table, name):
    pytest.importorskip(name.partition(":")[0])
    record = {key: value for key, value in table.load()[name].items() if key != "speed"}
    assert table.inspect(name) == record


def test_at_least_95_percent_of_the_depthwise_convolutions_of_each_family_are_fused(table):
    data = table.load()
    for family, members in table.MODELS.items():
        if family == "FBNet, MixNet":  # as far as their blocks are plain
            continue
        fused, found = (sum(data[name][key] for name in members) for key in ("fused", "depthwise"))
        assert fused >= 0.95 * found, family
