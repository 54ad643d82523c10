"""docs/mistakes.md: what a new user does wrong, in that order, and what comes of it."""

import os
import subprocess
import sys

import pytest
import torch
from fused_cases import assert_close, assert_fused_right, example, fused_path, make_block, make_run, plain_result
from torch import nn

import mobilenet_ext
from mobilenet_ext import cli, models


def reasons(model):
    return "\n".join([row.reason for row in mobilenet_ext.fusion_report(model).rows])


def test_01_still_in_training_mode():
    fused = mobilenet_ext.fuse(make_block().train())
    with fused_path(False):  # no inference kernel: the statistics are the batch's
        fused(example())
    (row,) = mobilenet_ext.fusion_report(fused).rows
    assert row.kernel == "training: batch statistics"


def test_02_something_that_is_no_module():
    with pytest.raises(TypeError, match=r"model is a \w*[dD]ict; allowed: a torch.nn.Module"):
        mobilenet_ext.fuse(make_block().state_dict())


def test_03_the_result_is_not_used():
    model = make_block()
    mobilenet_ext.fuse(model)
    with torch.no_grad(), fused_path(False):
        model(example())
    assert not any(row.fused for row in mobilenet_ext.fusion_report(model).rows)


def test_04_no_batch_dimension():
    network = models.MobileNetV2(num_classes=5).eval()
    fused = mobilenet_ext.fuse(network)
    image = torch.randn(3, 32, 32)
    outcomes = []
    for model in (network, fused):
        try:
            with torch.no_grad():
                outcomes.append(tuple(model(image).shape))
        except (RuntimeError, ValueError) as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_05_channels_at_the_end():
    with pytest.raises(RuntimeError, match=r"expected input.* to have 16 channels"):
        mobilenet_ext.fuse(make_block())(torch.randn(2, 10, 10, 16))


def test_06_bytes():
    with pytest.raises(RuntimeError, match=r"(?i)type|dtype|implemented for"):
        mobilenet_ext.fuse(make_block())(torch.zeros(1, 16, 8, 8, dtype=torch.uint8))


def test_07_half_precision():
    fused = mobilenet_ext.fuse(make_block()).bfloat16()
    with torch.no_grad(), fused_path(False):
        assert fused(example().bfloat16()).dtype == torch.bfloat16
    assert "kernels exist for dense tensors, float32 on the CPU" in reasons(fused)


def test_08_another_device():
    fused = mobilenet_ext.fuse(make_block()).to("meta")
    assert fused(example().to("meta")).device.type == "meta"
    assert "on meta" in reasons(fused)


def test_09_part_of_data():
    fused = mobilenet_ext.fuse(make_block())
    with torch.no_grad():
        fused(example())
        fused.conv[0][0].weight.data[0] *= 3
        mobilenet_ext.refresh(fused)
        assert_close(fused(example()), plain_result(fused, example()))


def test_10_strict_loading():
    fused = mobilenet_ext.fuse(make_block())
    fused.load_state_dict(make_block().state_dict(), strict=True)
    assert_fused_right(fused, example())


def test_11_fused_twice():
    fused = mobilenet_ext.fuse(mobilenet_ext.fuse(make_run()))
    assert_fused_right(fused, example())


def test_12_a_block_alone():
    fused = mobilenet_ext.fuse(make_run())
    assert isinstance(fused[1], models.InvertedResidual)
    assert_fused_right(fused[1], example())


def test_13_scripting():
    with pytest.raises(TypeError, match=r"torch\.jit\.script cannot compile the fused"):
        torch.jit.script(mobilenet_ext.fuse(make_block()))


def test_14_view_of_features():
    with torch.no_grad():
        y = mobilenet_ext.fuse(make_block())(example())
        with pytest.raises(RuntimeError, match="reshape"):
            y.view(2, -1)
        kept = mobilenet_ext.fuse(make_block(), preserve_format=True)(example())
        assert kept.view(2, -1).shape == (2, kept[0].numel())


def test_15_nothing_to_fuse():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    fused = mobilenet_ext.fuse(model)
    assert type(fused) is nn.Sequential
    assert all(row.reason for row in mobilenet_ext.fusion_report(fused).rows)


def test_16_a_layer_replaced_afterwards():
    fused = mobilenet_ext.fuse(make_block())
    fused.conv[0][2] = nn.Tanh()
    assert_close(fused(example()).detach(), plain_result(fused, example()))
    assert "was a ReLU6 and is a Tanh" in reasons(fused)


def test_17_operator_with_another_dtype():
    with pytest.raises(TypeError, match=r"x is torch.bfloat16; allowed: torch.float32"):
        mobilenet_ext.ops.depthwise_conv2d(example().bfloat16(), torch.randn(16, 1, 3, 3))


def test_18_operator_with_a_dense_weight():
    with pytest.raises(ValueError, match=r"weight has shape \(8, 16, 3, 3\); allowed: \(C, 1, kH, kW\)"):
        mobilenet_ext.ops.depthwise_conv2d(example(), torch.randn(8, 16, 3, 3))


def test_19_an_unknown_instruction_set():
    code = "import torch, mobilenet_ext; mobilenet_ext.ops.depthwise_conv2d(torch.ones(1,1,3,3), torch.ones(1,1,1,1))"
    environment = {**os.environ, "MOBILENET_EXT_ISA": "avx1024"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "MOBILENET_EXT_ISA is 'avx1024'" in ran.stderr
    assert "allowed here: " in ran.stderr


def test_20_a_wrong_model_name(capsys):
    assert cli.main(["verify", "reference:v7"]) == 2
    assert "no reference model 'v7'; allowed: v1, v2" in capsys.readouterr().err


def test_21_a_pickled_model(tmp_path, capsys):
    file = tmp_path / "model.pt"
    torch.save(make_run(), file)
    assert cli.main(["fuse", str(file)]) == 2
    assert "reading one can run any code that is in it; --allow-pickle" in capsys.readouterr().err
    assert cli.main(["fuse", str(file), "--allow-pickle", "--size", "16", "--markdown"]) == 0
    assert "| yes |" in capsys.readouterr().out


def test_22_compiled_before_fusing():
    compiled = torch.compile(make_block(), backend="eager")
    fused = mobilenet_ext.fuse(compiled, inplace=True)
    with torch.no_grad(), fused_path():
        assert_close(fused(example()), make_block()(example()))
