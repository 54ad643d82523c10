"""The benchmark's output and its command: tables, JSON, options, errors.  No test looks at a time."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mobilenet_ext._library import native
from mobilenet_ext.bench import cases, memory, report, results, statistics
from mobilenet_ext.bench.statistics import Interval
from mobilenet_ext.cli import main
from mobilenet_ext.loading import Files
from mobilenet_ext.models import MobileNetV2

TINY = "block 8->16->8 6x5 k3 s1 relu6 residual"


def synthetic(speedup):
    timed = statistics.Timing(1e-3, 2e-3, 3e-3, 9)
    entries = (
        results.Entry("mobilenet_ext", "1", "", True, "timed", "", 1e-7, 1e-6, 0.1, timed),
        results.Entry("engine", "2", "", False, "timed", "", 1e-7, 1e-6, 0.1, timed, Interval(speedup, 0.1, 9.0)),
        results.Entry("absent", "", "", False, "missing", "absent is not installed"),
    )
    shape = (2, 3, 8, 8)
    return results.Result("net", "network", shape, 1, "avx2", 10**6, 10**5, 4e9, 5, 5, False, {}, "", entries)


def test_where_we_lose_is_red_and_bold():
    losing = results.Report({"cpu": "x"}, {}, [synthetic(0.5), synthetic(2.0)])
    console = Console(record=True, width=120, force_terminal=True, color_system="standard", file=io.StringIO())
    report.print_report(losing, console)
    lines = [line for line in console.export_text(styles=True).splitlines() if "\x1b[31m" in line]
    assert any("0.50 [0.10, 9.00]" in line for line in lines)
    assert any("Slower: net, batch 2, 1 threads: engine" in line for line in lines)
    assert not any("2.00 [0.10, 9.00]" in line for line in lines)
    text = report.markdown(losing)
    assert "**0.50 [0.10, 9.00]**" in text
    assert "**2.00 [0.10, 9.00]**" not in text
    assert "Geometric mean over 2 configurations: 1.00" in text
    assert "Nowhere slower" in report.markdown(results.Report({}, {}, [synthetic(2.0)]))


def test_share_of_peak_and_time_per_image():
    result = synthetic(2.0)
    assert result.milliseconds(result.ours) == pytest.approx(1.0)
    assert result.share(result.ours) == pytest.approx(2e6 / 2e-3 / 4e9)
    assert report.best_rival(result).name == "engine"


ENTRY_KEYS = set(results.Entry.__dataclass_fields__) | {"milliseconds_per_image", "share_of_peak"}
RESULT_KEYS = set(results.Result.__dataclass_fields__) | {"batch"}


def reject(constant):
    raise AssertionError(f"{constant} is no JSON")


def check_schema(text):
    document = json.loads(text, parse_constant=reject)
    assert set(document) == {"schema", *results.Report.__dataclass_fields__}
    assert document["schema"] == results.SCHEMA_VERSION
    for result in document["results"]:
        assert set(result) == RESULT_KEYS
        for entry in result["entries"]:
            assert set(entry) == ENTRY_KEYS
            assert (entry["timing"] is not None) == (entry["status"] == "timed")
    return document


def test_json_has_no_nan():
    document = check_schema(results.Report({}, {}, [synthetic(2.0)]).to_json())
    assert document["results"][0]["entries"][2]["milliseconds_per_image"] is None


def test_command_on_a_shape_file(tmp_path, capsys):
    path = tmp_path / "shapes.txt"
    path.write_text(f"{TINY}\ndepthwise 8 6x6\n")
    arguments = ["bench", "--shapes", str(path), "--rounds", "1", "--threads", "1", "--batch", "1", "2"]
    assert main([*arguments, "--json", "-"]) == 0
    document = check_schema(capsys.readouterr().out)
    assert [r["case"] for r in document["results"]] == [TINY] * 2 + ["depthwise 8 6x6 k3 s1 relu6"] * 2
    assert [r["batch"] for r in document["results"]] == [1, 2, 1, 2]
    assert {"cpu", "cores", "caches", "torch", "load"} <= set(document["machine"])
    assert document["startup"] == {}
    assert main([*arguments, "--markdown", "--cold", "--rivals", "none"]) == 0
    assert "| " + TINY in capsys.readouterr().out


@pytest.mark.parametrize("name", [isa["name"] for isa in native.isas() if isa["supported"]])
def test_command_caps_the_instruction_set_for_itself_only(name, tmp_path, capsys):
    before = native.isa()
    path = tmp_path / "shapes.txt"
    path.write_text(TINY)
    arguments = ["--shapes", str(path), "--rounds", "1", "--threads", "1", "--rivals", "none", "--json", "-"]
    assert main(["bench", "--isa", name, *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["isa"] == name
    assert result["kernels"] == {f"block.{name}": 1}
    assert native.isa() == before


FACTORY = """
from mobilenet_ext.models import MobileNetV2
def build():
    return MobileNetV2(num_classes=5, alpha=0.1)
"""


def test_command_on_a_network(tmp_path, capsys, monkeypatch):
    (tmp_path / "bench_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    plot = [] if not _has_matplotlib() else ["--plot", "figure.svg"]
    arguments = ["--model", "bench_factory:build", "--size", "32x33", "--rounds", "1", "--threads", "1"]
    assert main(["bench", *arguments, "--batch", "1", "2", "--rivals", "eager", "--json", "out.json", *plot]) == 0
    assert "Nowhere slower" in (out := capsys.readouterr().out) or "Slower" in out
    document = check_schema(Path("out.json").read_text())
    network = document["results"][0]
    assert network["case"] == "bench_factory:build 32x33"
    assert network["shape"] == [1, 3, 32, 33]
    assert network["kernels"][f"block.{native.isa()}"] == 17
    (model,) = document["startup"]["models"]
    assert (model["first_call_packs"], model["second_call_packs"]) == (1, 0)
    assert document["startup"]["imports"]["import_torch"] > 0
    if plot:
        assert "Roofline" in Path("figure.svg").read_text()


def _has_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isa", "sse9"], "sse9"),
        (["--rivals", "tflite"], "rival 'tflite'; allowed: "),
        (["--model", "no_such_net"], "no model 'no_such_net'"),
        (["--shapes", "no_such_file.txt"], "no_such_file.txt"),
        (["--json", "no_such_directory/out.json"], "--json is 'no_such_directory/out.json'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert main(["bench", *arguments, "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plot_without_matplotlib_says_what_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", "figure.png"]) == 2
    assert "mobilenet_ext[plot]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--size", "3x"], ["--batch", "0"], ["--kernels", "conv"]])
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2


def test_weights_and_models_from_files(tmp_path, capsys):
    """A state_dict and a pickled module are what is timed; the processes that measure memory read them too."""
    model = MobileNetV2(num_classes=3, alpha=0.35)
    torch.nn.init.constant_(model.classifier[1].bias, 7.0)
    torch.save(model, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "small.py").write_text(
        "from mobilenet_ext.models import MobileNetV2\nmake = lambda: MobileNetV2(num_classes=3, alpha=0.35)\n"
    )
    files = Files(str(tmp_path / "weights.pth"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found = cases.network("small:make", (32, 32), files).model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
        both = ["--model", "small:make", "--model", "reference:v1"]
        assert main(["bench", *both, "--weights", files.weights]) == 2
        assert "--weights is given for 2 models; allowed: one --model" in capsys.readouterr().err
    name = str(tmp_path / "model.pt")
    assert main(["bench", "--model", name]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert isinstance(cases.network(name, (32, 32), Files(None, True)).model, MobileNetV2)
    threads = str(torch.get_num_threads())
    assert memory._main(name, "1", "[32, 32]", threads, "eager", json.dumps(Files(None, True))) >= 0
