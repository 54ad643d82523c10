"""What people do to models around a fused module: conversions, copies, checkpoints, processes, threads, odd numbers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from fused_cases import (
    assert_close,
    assert_fused_right,
    example,
    fused_path,
    make_block,
    make_run,
    plain_result,
    randomize,
)
from torch import nn

from mobilenet_ext.fusion import fuse, unfuse
from mobilenet_ext.models import MobileNetV2


def network() -> nn.Module:
    return randomize(MobileNetV2(num_classes=10, alpha=0.25)).eval()


def image(batch: int = 2) -> torch.Tensor:
    return example(batch, 3, 32)


def test_sync_batchnorm_before_fuse():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_run()).eval()
    assert_fused_right(fuse(model), example())


def test_sync_batchnorm_after_fuse():
    fused, x = fuse(make_run()), example()
    expected = assert_fused_right(fused, x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    with torch.no_grad(), fused_path(False):
        assert_close(converted(x), expected)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert_close(assert_fused_right(fuse(converted), x), expected)


def test_exponential_moving_average():
    fused, x = fuse(make_run()), example()
    average = torch.optim.swa_utils.AveragedModel(fused, use_buffers=True)
    assert_fused_right(fused, x)
    assert_fused_right(average, x)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.mul_(1.5)
    average.update_parameters(fused)
    average.update_parameters(fused)
    assert_close(assert_fused_right(average, x), assert_fused_right(fused, x))


def test_deepcopy_of_a_network():
    fused, x = fuse(network()), image()
    clone = copy.deepcopy(fused)
    assert torch.equal(assert_fused_right(clone, x), assert_fused_right(fused, x))
    assert not set(map(id, clone.modules())) & set(map(id, fused.modules()))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols(protocol: int):
    fused, x = fuse(make_run()), example()
    assert torch.equal(assert_fused_right(pickle.loads(pickle.dumps(fused, protocol)), x), assert_fused_right(fused, x))


def test_torchvision_checkpoints_both_ways():
    models = pytest.importorskip("torchvision.models")
    plain = randomize(models.mobilenet_v2(num_classes=10)).eval()
    fused, ours = fuse(randomize(models.mobilenet_v2(num_classes=10), seed=1)).eval(), fuse(network_like_torchvision())
    for model in (fused, ours):
        model.load_state_dict(plain.state_dict(), strict=True)
        with torch.no_grad():
            assert_close(assert_fused_right(model, image()), plain(image()))
        plain.load_state_dict(model.state_dict(), strict=True)


def network_like_torchvision() -> nn.Module:
    return MobileNetV2(num_classes=10).eval()


@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv2_050", "efficientnet_lite0", "tf_efficientnet_lite0"])
def test_timm_checkpoints_both_ways(name: str):
    timm = pytest.importorskip("timm")
    plain = randomize(timm.create_model(name, num_classes=10)).eval()
    fused = fuse(timm.create_model(name, num_classes=10)).eval()
    fused.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        assert_close(assert_fused_right(fused, image(1)), plain(image(1)))
        features = fused.forward_features(image(1))
        assert_close(features, plain.forward_features(image(1)))
    plain.load_state_dict(fused.state_dict(), strict=True)
    fused.reset_classifier(7)
    assert assert_fused_right(fused, image(1)).shape == (1, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_a_network(dtype: torch.dtype):
    model = network()
    fused = fuse(model)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        with fused_path():
            y = fused(image())
        assert y.dtype == model(image()).dtype
    exact = plain_result(fused, image())
    torch.testing.assert_close(y.float(), exact, rtol=4e-3, atol=4e-3 * float(exact.abs().max()))


def test_train_eval_train_again():
    plain, fused = network(), fuse(network())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.001) for model in (plain, fused)]
    for _ in range(2):
        losses = []
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            model.train()
            torch.manual_seed(0)  # the same dropout
            optimizer.zero_grad()
            loss = model(example(4, 3, 64)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            model.eval()
        assert_close(losses[1], losses[0])
        with torch.no_grad():
            assert_close(assert_fused_right(fused, image()), plain(image()))


def test_frozen_parameters():
    fused = fuse(network())
    for parameter in fused.features.parameters():
        parameter.requires_grad_(False)
    with fused_path():
        fused(image()).sum().backward()
    assert all(parameter.grad is None for parameter in fused.features.parameters())
    assert all(parameter.grad is not None for parameter in fused.classifier.parameters())
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    with fused_path():
        assert not fused(image()).requires_grad


def test_parameter_updates_by_hand_after_backward():
    fused, x = fuse(make_block()), example()
    before = assert_fused_right(fused, x)
    fused(x).square().mean().backward()
    for parameter in fused.parameters():
        parameter.data.sub_(parameter.grad)
    assert not torch.equal(assert_fused_right(fused, x), before)


def test_hook_on_a_child_of_a_network():
    fused, x = fuse(network()), image()
    seen = []
    handle = fused.features[4].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert_fused_right(fused, x)
    assert len(seen) == 2  # once fused around it, once with everything plain
    handle.remove()
    assert_fused_right(fused, x)
    assert len(seen) == 2


def test_dropout_still_applies():
    fused, x = fuse(network()), image()
    dropout = next(module for module in fused.modules() if isinstance(module, nn.Dropout))
    dropout.train()
    with torch.no_grad(), fused_path():
        assert not torch.equal(fused(x), fused(x))
    dropout.eval()
    assert_fused_right(fused, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_reaches_the_output(value: float):
    fused, x = fuse(make_block()), example()
    x[0, 3, 2, 2] = value
    with torch.no_grad(), fused_path():
        y = fused(x)
    expected = plain_result(fused, x)
    assert torch.equal(y.isnan(), expected.isnan())
    finite = expected.isfinite()
    assert torch.equal(y.isfinite(), finite)
    assert_close(y[finite], expected[finite])


def test_denormal_weights_are_zero():
    model, x = make_block(), example()
    with torch.no_grad():
        model.conv[2].weight[:3] *= 1e-41
    assert_fused_right(fuse(model), x)


def test_the_same_bits_every_time_and_at_every_place_in_the_batch():
    fused, x = fuse(network()), image(3)
    threads = torch.get_num_threads()
    with torch.no_grad(), fused_path():
        first = fused(x)
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(fused(x), first)
                for index in range(3):
                    assert torch.equal(fused(x[index : index + 1]), first[index : index + 1])
        finally:
            torch.set_num_threads(threads)


def test_default_device_does_not_catch_slots():
    with torch.device("meta"):
        fused = fuse(make_block_on_cpu())
    assert_fused_right(fused, example())


def make_block_on_cpu() -> nn.Module:
    with torch.device("cpu"):
        return make_block()


def test_to_other_devices_and_dtypes_and_back():
    fused, x = fuse(make_block()), example()
    before = assert_fused_right(fused, x)
    state = copy.deepcopy(fused.state_dict())
    fused.to("meta").to_empty(device="cpu")
    fused.load_state_dict(state)
    assert_close(assert_fused_right(fused, x), before)
    fused.to(torch.bfloat16)
    with torch.no_grad(), fused_path(False):
        assert fused(x.bfloat16()).dtype == torch.bfloat16
    fused.float()
    assert_fused_right(fused, x)
    fused.to(memory_format=torch.channels_last)
    assert_fused_right(fused, x)


def test_share_memory():
    fused, x = fuse(make_block()), example()
    before = assert_fused_right(fused, x)
    fused.share_memory()
    assert torch.equal(assert_fused_right(fused, x), before)


def test_state_dict_of_an_unpickled_unfused_model():
    fused = fuse(make_run())
    file = io.BytesIO()
    torch.save(unfuse(fused), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is nn.Sequential
    assert b"modules.mixin" not in file.getvalue()
