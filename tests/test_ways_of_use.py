"""What PyTorch users do to models, done to fused ones; docs/hazards.md lists every hazard with its test."""

import copy
import io
import warnings

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
from torch.nn.utils import parametrizations, prune

import mobilenet_ext
from mobilenet_ext import models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def squeezed_network():
    """A small network with squeeze-and-excitation, Hardswish and a late head, as one chain."""
    timm = pytest.importorskip("timm")
    return randomize(timm.create_model("lcnet_035", num_classes=7)).eval()


def test_scripting_is_refused_in_one_sentence():
    fused = mobilenet_ext.fuse(make_block())
    for model in (fused, nn.Sequential(fused, nn.ReLU())):
        with pytest.raises(TypeError, match=r"torch.jit.script cannot compile the fused .*unfuse\(model\)"):
            torch.jit.script(model)
    scripted = torch.jit.script(mobilenet_ext.unfuse(fused))
    with torch.no_grad():
        assert_close(scripted(example()), plain_result(fused, example()))


def test_tracing_records_the_plain_modules():
    fused = mobilenet_ext.fuse(make_block())
    traced = torch.jit.trace(fused, example())
    assert "mobilenet_ext::" not in str(traced.inlined_graph)
    with torch.no_grad():
        assert_close(traced(example()), plain_result(fused, example()))


def test_onnx_export_of_the_unfused_model():
    pytest.importorskip("onnxscript")
    plain = mobilenet_ext.unfuse(mobilenet_ext.fuse(make_block()))
    program = torch.onnx.export(plain, (example(),), dynamo=True)
    assert any("Conv" in node.op_type for node in program.model.graph)


def test_fusing_on_the_meta_device_and_loading_afterwards():
    with torch.device("meta"):
        empty = models.InvertedResidual(16, 16, 1, 4)
    fused = mobilenet_ext.fuse(empty.eval())
    assert fused(torch.empty(2, 16, 8, 8, device="meta")).shape == (2, 16, 8, 8)
    fused = fused.to_empty(device="cpu")
    fused.load_state_dict(make_block().state_dict())
    y = assert_fused_right(fused, example())
    assert_close(y, make_block()(example()).detach())


def test_assigned_checkpoint_on_a_meta_model():
    with torch.device("meta"):
        empty = models.InvertedResidual(16, 16, 1, 4).eval()
    fused = mobilenet_ext.fuse(empty)
    fused.load_state_dict(make_block().state_dict(), assign=True)
    assert_close(assert_fused_right(fused, example()), make_block()(example()).detach())


def test_skip_init():
    unit = nn.Sequential(torch.nn.utils.skip_init(nn.Conv2d, 16, 24, 1), nn.BatchNorm2d(24), nn.Hardswish())
    randomize(unit)
    with torch.no_grad():
        unit[0].bias.zero_()
    assert_fused_right(mobilenet_ext.fuse(unit.eval()), example())


def test_functional_call_of_a_squeezed_network():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(network)
    x = example(2, 3, 40)
    other = {name: 0.5 * value for name, value in network.named_parameters()}
    with torch.no_grad(), fused_path():
        y = torch.func.functional_call(fused, other, (x,))
    with torch.no_grad():
        expected = torch.func.functional_call(network, other, (x,))
        assert_close(y, expected)
        assert_close(fused(x), network(x))


def test_half_and_back():
    fused = mobilenet_ext.fuse(make_run())
    fused(example())
    fused.half().float()
    assert_fused_right(fused, example())


@pytest.mark.parametrize("make", [make_block, make_run, squeezed_network])
def test_no_images(make):
    model = make()
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    x = torch.empty(0, channels, 32, 32)
    with torch.no_grad(), fused_path(False):
        y = mobilenet_ext.fuse(model)(x)
        assert y.shape == model(x).shape


def test_slices_of_inputs_and_of_outputs():
    fused = mobilenet_ext.fuse(make_run())
    x = torch.randn(3, 20, 14, 13)[1:, 2:-2, ::2, 1:-1]
    y = assert_fused_right(fused, x)
    assert_fused_right(fused, y[:, :, 1:, :-1])


def test_pruning_and_parametrizations_inside():
    for change in (
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: prune.random_structured(conv, "weight", 0.5, dim=0),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ):
        fused = mobilenet_ext.fuse(make_block())
        conv = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
        change(conv)
        with torch.no_grad(), fused_path(False):
            fused(example())
        report = mobilenet_ext.fusion_report(fused)
        assert any(row.reason for row in report.rows)
    # Made permanent, the weights are plain again.
    fused = mobilenet_ext.fuse(make_block())
    conv = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
    prune.l1_unstructured(conv, "weight", 0.5)
    prune.remove(conv, "weight")
    assert_fused_right(fused, example())


def test_dynamic_quantization_of_a_classifier_is_seen():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(network)
    if not torch.backends.quantized.supported_engines or torch.backends.quantized.engine == "none":
        pytest.skip("this PyTorch has no quantized engine")
    quantized = torch.ao.quantization.quantize_dynamic(fused, {nn.Linear}, dtype=torch.qint8)
    x = example(1, 3, 40)
    reason = str(mobilenet_ext.fusion_report(quantized))
    assert "Linear" in reason
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y, exact = quantized(x), network(x)
    assert y.shape == exact.shape
    assert not torch.equal(y, exact)


def test_observers_of_static_quantization_are_hooks_that_are_respected():
    quantization = torch.ao.quantization
    fused = mobilenet_ext.fuse(make_block())
    fused.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine or "onednn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantization.prepare(fused)
    with torch.no_grad(), fused_path(False):
        prepared(example())
    assert any("hook" in row.reason or "changed" in row.reason for row in mobilenet_ext.fusion_report(prepared).rows)


def test_quantization_aware_modules_are_refused():
    block = make_block()
    conv = nn.Sequential(block.conv[0][0], nn.Identity())
    kind = torch.ao.nn.qat.Conv2d
    conv[0] = kind(16, 64, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig("onednn"))
    block.conv[0][0] = conv[0]
    fused = mobilenet_ext.fuse(block)
    assert "quantized" in str(mobilenet_ext.fusion_report(fused)) or not isinstance(fused, mobilenet_ext.FusedModule)
    with torch.no_grad():
        torch.testing.assert_close(fused(example()), block(example()))


def test_fully_sharded_data_parallel(tmp_path):
    """FSDP2 gives plain parameters to the forward; a fused block must use those, whatever it packed before."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        torch.manual_seed(0)
        plain = nn.Sequential(make_block(), nn.Conv2d(16, 4, 1))
        networks = [mobilenet_ext.fuse(plain), plain]
        for network in networks:
            fsdp.fully_shard(network[0], mesh=mesh)
            fsdp.fully_shard(network, mesh=mesh)
        optimizers = [torch.optim.SGD(network.parameters(), 1e-3) for network in networks]
        for _ in range(3):
            with torch.no_grad():
                with fused_path():
                    y = networks[0](example())
                assert_close(y, networks[1](example()))
            for network, optimizer in zip(networks, optimizers, strict=True):
                network(example()).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        dist.destroy_process_group()


def test_dynamic_batch_and_size_compile_once_more_and_no_further():
    network = mobilenet_ext.fuse(squeezed_network())
    frames = []

    def count(graph, inputs):
        frames.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(network, backend=count, fullgraph=True)
    with torch.no_grad():
        for batch, height, width in ((1, 40, 40), (2, 48, 56), (3, 64, 33), (5, 40, 72), (2, 33, 40)):
            x = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(compiled(x), network(x))
    assert len(frames) <= 2


def test_squeezed_network_compiles_to_one_operator_and_exports():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(network)
    x = example(2, 3, 40)
    with torch.no_grad(), fused_path():
        assert_close(torch.compile(fused, fullgraph=True)(x), network(x))
        program = torch.export.export(fused, (x,))
    calls = [node for node in program.graph.nodes if "mobilenet_ext" in str(node.target)]
    assert len(calls) == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad(), fused_path():
        assert_close(torch.export.load(file).module()(x), network(x))


def test_gradients_through_a_squeezed_network():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(network)
    x = example(2, 3, 40)
    for model in (network, fused):
        model(x).square().mean().backward()
    for (name, a), b in zip(network.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-2, atol=1e-3 * float(a.grad.abs().max()), msg=name)


def test_autocast_of_a_squeezed_network():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(network)
    x = example(1, 3, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), fused_path():
        y = fused(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(x)
    assert y.dtype == expected.dtype
    with torch.no_grad():
        exact = network(x)
    assert (y - exact).abs().max() <= (expected - exact).abs().max() + 1e-2 * exact.abs().max()


def test_training_statistics_of_a_squeezed_network_are_seen():
    network = squeezed_network()
    fused = mobilenet_ext.fuse(copy.deepcopy(network))
    for model in (network, fused):
        model.train()
        torch.manual_seed(0)
        model(example(4, 3, 40))
        model.eval()
    with torch.no_grad(), fused_path():
        torch.testing.assert_close(fused(example(1, 3, 40)), network(example(1, 3, 40)), rtol=1e-3, atol=1e-3)
