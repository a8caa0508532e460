from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoints import fitting, loading, reader
from checkpoints.checkpoint import Checkpoint, build, find, save
from checkpoints.loading import load, load_end
from checkpoints.models.resnet import FAMILY, ResNet
from checkpoints.registry import MODELS

LEGACY = {"_use_new_zipfile_serialization": False}
OPTIONS = {"width": 4, "channels": 1, "classes": 5}


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError that `call` raises, which must be one printable line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert "Traceback" not in message
    assert "weights_only" not in message  # no advice to load the file unsafely
    return message


def network(seed: int = 0, depth: int = 8, **options: Any) -> ResNet:
    """A small network with uneven batch-norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ResNet(depth, **({"width": 4, "channels": 1, "classes": 5} | options))
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.add_(torch.randn(value.shape) * 0.1)
    return made.eval()


def example(**changes: Any) -> Checkpoint:
    whole = Checkpoint(
        state_dict=network().state_dict(),
        model="resnet8",
        options=dict(OPTIONS),
        classes=5,
        input_shape=(1, 8, 8),
        mean=(0.25,),
        std=(0.5,),
        data="fashion-mnist",
        recipe={"epochs": 2, "rate": 0.1, "flip": True, "precision": "float32"},
        seed=3,
        metrics={"test_accuracy_best": 0.9, "train_loss": 0.25},
        history=({"epoch": 1, "blocks": {"layer1.0": {"residual_mean": 0.5}}}, {"epoch": 2}),
    )
    return replace(whole, **changes)


def assert_same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].equal(value), name


def logits(of: nn.Module, channels: int = 1) -> Tensor:
    images = torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        result: Tensor = of.double().eval()(images.double())
    return result


# The file format of our own.


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_saved_is_what_is_loaded(tmp_path: Path, suffix: str) -> None:
    saved = example()
    save(saved, tmp_path / f"net{suffix}")
    loaded = load(tmp_path / f"net{suffix}")
    for field in fields(Checkpoint):
        if field.name not in ("state_dict", "file", "sha256"):
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert_same_tensors(loaded.state_dict, saved.state_dict)
    assert loaded.file == f"net{suffix}"
    assert [p.name for p in tmp_path.iterdir()] == [f"net{suffix}"]
    torch.testing.assert_close(logits(loaded.network()), logits(network()), rtol=0, atol=0)


def test_torch_load_alone_gives_the_described_entries(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert " ".join(sorted(content)) == (
        "classes data digest format history input_shape mean metrics model options recipe "
        "schema_version seed state_dict std"
    )
    assert content["model"] == "resnet8"
    assert content["input_shape"] == [1, 8, 8]
    assert content["metrics"]["train_loss"] == 0.25
    ResNet(8, **content["options"]).load_state_dict(content["state_dict"])


def test_safetensors_alone_gives_the_tensors_and_the_same_description(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    save(example(), tmp_path / "net.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert_same_tensors(tensors, example().state_dict)
    with safetensors.safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()[reader.FORMAT])
    pickled = torch.load(tmp_path / "net.pt", weights_only=True)
    assert described == {k: v for k, v in pickled.items() if k != "state_dict"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_rounds_weights_and_leaves_batch_norm_exact(tmp_path: Path, suffix: str) -> None:
    state = dict(example().state_dict)
    state["bn1.running_var"] = torch.full((4,), 1e6)  # beyond float16
    state["counts"] = torch.tensor([[70_000]])
    save(example(state_dict=state), tmp_path / f"net{suffix}", half=True)
    stored = reader.read(tmp_path / f"net{suffix}")["state_dict"]
    loaded = load(tmp_path / f"net{suffix}").state_dict
    for name, value in state.items():
        narrow = value.ndim > 1 and value.is_floating_point()
        assert stored[name].dtype == (torch.float16 if narrow else value.dtype), name
        assert loaded[name].dtype == value.dtype
        assert loaded[name].equal(value.half().float() if narrow else value), name


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path: Path) -> None:
    whole = torch.zeros(1000, 1000)
    save(example(state_dict={"a": whole[:2], "b": whole[0]}), tmp_path / "net.pt")
    assert (tmp_path / "net.pt").stat().st_size < 50_000
    save(example(state_dict={"a": whole[:2], "b": whole[0]}), tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").state_dict["a"].shape == (2, 1000)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_save_that_is_killed_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"net{suffix}"
    save(example(), path)
    before = path.read_bytes()

    def killed(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save(example(seed=4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_no_reader_could_load_is_not_written(tmp_path: Path, suffix: str) -> None:
    line = refusal(lambda: save(example(recipe={"path": tmp_path}), tmp_path / f"net{suffix}"))
    assert "Path is not JSON serializable" in line
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_loss_is_stored_as_it_is(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        save(example(metrics={"test_loss": float("inf")}), tmp_path / f"net{suffix}")
        assert load(tmp_path / f"net{suffix}").metrics["test_loss"] == float("inf")


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    wanted = hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    assert load(tmp_path / "net.pt").sha256 == wanted


def test_what_the_caller_says_overrides_the_file(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", mean=(0.0,), std=(1.0,), data="npz:x.npz")
    assert (loaded.mean, loaded.std, loaded.data) == ((0.0,), (1.0,), "npz:x.npz")
    options = load(tmp_path / "net.pt", options={"merge": "product"}).options
    assert options == OPTIONS | {"merge": "product"}


def test_the_file_s_own_model_may_be_named_again(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    assert load(tmp_path / "net.pt", model="resnet8").options == OPTIONS
    line = refusal(lambda: load(tmp_path / "net.pt", model="fmmnet8"))
    assert "layer1.0.merge.norm_residual.weight is not in the file" in line


def test_a_file_does_not_decide_what_code_runs(tmp_path: Path) -> None:
    """The model's name leads to code, and the options to its arguments."""
    trap = tmp_path / "trap"
    hostile = example(model="os:system", options={"command": f"touch {trap}"})
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"net{suffix}"
        save(hostile, path)
        line = refusal(lambda path=path: load(path).network())  # type: ignore[misc]
        assert "os:system" in line
        assert "--model" in line
        load_end(path, {"fc.bias": torch.zeros(5)}, {})
    assert not trap.exists()
    save(example(model="resnet21"), tmp_path / "newer.pt")
    line = refusal(load(tmp_path / "newer.pt").network)
    assert "model 'resnet21' is not known" in line


def test_code_of_one_s_own_is_used_where_the_caller_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef build(n): return torch.nn.Linear(n, 2)\n")
    name = f"{tmp_path / 'mine.py'}:build"
    state = nn.Linear(3, 2).state_dict()
    save(example(state_dict=state, model="elsewhere.py:build", options={"n": 3}), tmp_path / "n.pt")
    assert name not in refusal(lambda: load(tmp_path / "n.pt"))
    loaded = load(tmp_path / "n.pt", model=name)
    assert loaded.network().state_dict()["weight"].equal(state["weight"])


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    for version, shown in ((2, "2"), (torch.ones(3), "tensor([1., 1., 1.])"), ("x", "x")):
        torch.save(content | {"schema_version": version}, tmp_path / "net.pt")
        line = refusal(lambda: load(tmp_path / "net.pt"))
        assert f"has schema version {shown}; this version reads 1" in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"state_dict": 3}, "is damaged: it holds no state dict"),
        ({"model": [1]}, "model = [1]; expected a string"),
        ({"options": "x"}, "options = 'x'; expected a table"),
        ({"mean": [[0.1]]}, "mean = [[0.1]]; expected a list of numbers"),
        ({"std": [True]}, "std = [True]; expected a list of numbers"),
        ({"classes": "10"}, "classes = '10'; expected a whole number"),
        ({"history": [3]}, "history = [3]; expected a list of tables"),
        ({"metrics": {"a": "b"}}, "metrics = {'a': 'b'}; expected a table"),
        ({"input_shape": 3.5}, "input_shape = 3.5; expected a list of whole numbers"),
    ],
)
def test_a_file_of_ours_with_wrong_entries_is_damaged(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    save(example(), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    del content["digest"]  # as a file of an earlier version, or one made by hand
    torch.save(content | change, tmp_path / "net.pt")
    assert line in refusal(lambda: load(tmp_path / "net.pt"))


def test_a_name_is_a_path_or_a_file_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    (tmp_path / "files").mkdir()
    assert "available: none" in refusal(lambda: find("resnet8"))
    save(example(), tmp_path / "files" / "resnet8.pt")
    assert find("resnet8") == find("resnet8.pt") == tmp_path / "files" / "resnet8.pt"
    assert find(tmp_path / "files" / "resnet8.pt").is_file()
    assert "available: resnet8.pt" in refusal(lambda: load("resnet9"))
    assert "is a folder" in refusal(lambda: load(tmp_path))


# Files that others saved.


def resnet20_of_2018(seed: int = 0) -> dict[str, Tensor]:
    """Tensors in the naming of the 2018 CIFAR ResNet-20 code: shortcut A, `linear`, no counters."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(name: str, outs: int, ins: int) -> None:
        state[f"{name}.weight"] = torch.randn(outs, ins, 3, 3, generator=generator) * 0.1

    def norm(name: str, count: int) -> None:
        state[f"{name}.weight"] = torch.rand(count, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(count, generator=generator) * 0.1
        state[f"{name}.running_mean"] = torch.randn(count, generator=generator) * 0.1
        state[f"{name}.running_var"] = torch.rand(count, generator=generator) + 0.5

    conv("conv1", 16, 3)
    norm("bn1", 16)
    before = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            for index in (1, 2):
                name = f"layer{stage}.{block}"
                conv(f"{name}.conv{index}", width, before if index == 1 else width)
                norm(f"{name}.bn{index}", width)
            before = width
    state["linear.weight"] = torch.randn(10, 64, generator=generator)
    state["linear.bias"] = torch.randn(10, generator=generator)
    return state


def reference_logits(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """That network, from its description, without any module."""

    def norm(features: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"].double()[:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (features - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(features: Tensor, name: str, stride: int) -> Tensor:
        return functional.conv2d(features, state[f"{name}.weight"].double(), None, stride, 1)

    features = norm(conv(images, "conv1", 1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            branch = norm(conv(features, f"{name}.conv1", stride), f"{name}.bn1").clamp(min=0)
            branch = norm(conv(branch, f"{name}.conv2", 1), f"{name}.bn2")
            if stride == 2:
                quarter = torch.zeros_like(branch[:, : branch.shape[1] // 4])
                features = torch.cat([quarter, features[:, :, ::2, ::2], quarter], dim=1)
            features = (branch + features).clamp(min=0)
    pooled = features.mean(dim=(2, 3))
    return pooled @ state["linear.weight"].double().T + state["linear.bias"].double()


@pytest.mark.parametrize("best", [91.7, torch.tensor(91.7)])
def test_a_resnet20_file_of_2018_is_recognised_and_computes_the_same(
    tmp_path: Path, best: object
) -> None:
    state = resnet20_of_2018()
    content = {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_prec1": best,
    }
    torch.save(content, tmp_path / "resnet20.th", **LEGACY)
    said: list[str] = []
    loaded = load(tmp_path / "resnet20.th", say=said.append)
    assert loaded.model == "resnet20"
    assert loaded.options == {"width": 16, "channels": 3, "classes": 10, "shortcut": "A"}
    assert loaded.classes == 10
    assert len(said) == 1
    assert "loaded as resnet20 with width=16, channels=3, classes=10, shortcut=A" in said[0]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        found = loaded.network().double()(images)
    torch.testing.assert_close(found, reference_logits(state, images))


def test_shortcuts_named_shortcut_in_a_net_entry_are_understood(tmp_path: Path) -> None:
    wanted = network(depth=18)
    state = {
        "module." + k.replace(".downsample.", ".shortcut.").replace("fc.", "linear."): v
        for k, v in wanted.state_dict().items()
    }
    assert "module.layer2.0.shortcut.1.running_var" in state
    torch.save({"net": state, "acc": 91.7, "epoch": 3}, tmp_path / "ckpt.pth")
    loaded = load(tmp_path / "ckpt.pth")
    assert (loaded.model, loaded.options["shortcut"]) == ("resnet18", "B")
    torch.testing.assert_close(logits(loaded.network()), logits(wanted), rtol=0, atol=0)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def with_optimizer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    moments = {0: {"momentum_buffer": torch.ones(4, 1, 3, 3), "step": torch.tensor(3.0)}}
    return {
        "model": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"last_epoch": 3},
        "epoch": 3,
        "rng_state": torch.zeros(16, dtype=torch.uint8),
    }


FORMS: dict[str, Callable[[dict[str, Tensor]], dict[Any, Any]]] = {
    "bare": dict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": 0.9, "name": "x", "none": None},
    "model": lambda s: {"model": s},
    "another entry": lambda s: {"weights": s, "loss": torch.tensor(0.3)},
    "beside other weights": lambda s: {"state_dict": s, "state_dict_ema": s, "epoch": 3},
    "scalars beside the tensors": lambda s: s | {"epoch": 3, "lr": 0.1, 0: "x"},
    "with optimizer": with_optimizer,
    "DataParallel": lambda s: prefixed("module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "DataParallel, then compiled": lambda s: prefixed("_orig_mod.module.", s),
    "compiled, then DataParallel": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "Lightning": lambda s: {
        "state_dict": prefixed("model.", s),
        "hyper_parameters": {"lr": 0.1},
        "epoch": 1,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}}],
        "pytorch-lightning_version": "2.4.0",
        "loops": {"fit_loop": {"x": torch.ones(2)}},
    },
    "Lightning, compiled": lambda s: {"state_dict": prefixed("net._orig_mod.", s)},
    "a compiled part": lambda s: {
        k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()
    },
    "parameters": lambda s: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()
    },
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "bfloat16": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "channels last": lambda s: {
        k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in s.items()
    },
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("settings", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_file_gives_its_network(
    tmp_path: Path, form: str, settings: dict[str, Any]
) -> None:
    wanted = network(merge="bn_product_mean1")
    torch.save(FORMS[form](wanted.state_dict()), tmp_path / "net.pth", **settings)
    loaded = load(tmp_path / "net.pth")
    assert loaded.model == "fmmnet8"
    assert loaded.options == OPTIONS | {"shortcut": "B"}
    assert (loaded.data, loaded.mean, loaded.seed) == ("", (), None)
    tolerance = {"half": 1e-2, "bfloat16": 1e-1}.get(form, 0)  # their rounding, some layers deep
    torch.testing.assert_close(
        logits(loaded.network()), logits(wanted), rtol=tolerance, atol=tolerance
    )


def test_foreign_safetensors_give_their_network(tmp_path: Path) -> None:
    wanted = network()
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(prefixed("module.", wanted.state_dict()), path, {"format": "pt"})
    loaded = load(path)
    assert loaded.model == "resnet8"
    torch.testing.assert_close(logits(loaded.network()), logits(wanted), rtol=0, atol=0)


def test_a_foreign_file_can_be_saved_as_one_of_ours(tmp_path: Path) -> None:
    torch.save(prefixed("module.", resnet20_of_2018()), tmp_path / "old.pth")
    save(load(tmp_path / "old.pth", mean=(0.5,), std=(0.2,), data="cifar10"), tmp_path / "new.pt")
    images = torch.rand(2, 3, 32, 32).double()
    with torch.no_grad():
        found = load(tmp_path / "new.pt").network().double()(images)
    torch.testing.assert_close(found, reference_logits(resnet20_of_2018(), images))


def test_the_model_s_name_may_be_given_with_options_beyond_the_shapes(tmp_path: Path) -> None:
    wanted = network(merge="product")
    torch.save(wanted.state_dict(), tmp_path / "net.pth")
    loaded = load(tmp_path / "net.pth", model="resnet8", options={"merge": "product"})
    torch.testing.assert_close(logits(loaded.network()), logits(wanted), rtol=0, atol=0)


BUILDER = """
from __future__ import annotations
from dataclasses import dataclass
import torch

@dataclass
class Settings:
    hidden: int

class Net(torch.nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.model = torch.nn.Linear(3, settings.hidden)
        self.head = torch.nn.Linear(settings.hidden, 2)

    def forward(self, x):
        return self.head(self.model(x))

def build(hidden=4):
    return Net(Settings(hidden))

def fails(**options):
    raise RuntimeError("no luck\\nat all")

def three():
    return 3

number = 3
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return package / "nets.py"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_an_architecture_comes_from_a_file_or_a_package(
    tmp_path: Path, own_code: Path, prefix: str
) -> None:
    """Its own attribute `model` is not taken for a wrapper."""
    wanted = build("own_package.nets:build", {"hidden": 7})
    torch.save({"state_dict": prefixed(prefix, wanted.state_dict())}, tmp_path / "net.pth")
    for name in (f"{own_code}:build", "own_package.nets:build"):
        loaded = load(tmp_path / "net.pth", model=name, options={"hidden": 7})
        assert (loaded.model, loaded.options, loaded.classes) == (name, {"hidden": 7}, 2)
        assert_same_tensors(loaded.network().state_dict(), wanted.state_dict())


def test_an_architecture_comes_from_a_library(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "net.pth")
    options = {"in_features": 3, "out_features": 2}
    assert load(tmp_path / "net.pth", model="torch.nn:Linear", options=options).classes == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("resnet21", "model 'resnet21' is not known. Known: resnet8, "),
        ("FILE:fails", "cannot be built with hidden=7: RuntimeError: no luck"),
        ("FILE:three", " has no option hidden. It has: none."),
        ("FILE:number", "has no function 'number'"),
        ("FILE:absent", "has no function 'absent'"),
        ("FILE:", "has no function ''"),
        ("FILEx.py:build", "cannot be imported: FileNotFoundError: "),
        ("FOLDER/broken.py:build", "cannot be imported: SyntaxError: "),
        ("FOLDER/raising.py:build", "cannot be imported: ZeroDivisionError: "),
        ("no_such_package:build", "cannot be imported: ModuleNotFoundError: "),
        (":build", "cannot be imported: Empty module name"),
        (".relative:build", "cannot be imported: TypeError: "),
    ],
)
def test_a_builder_that_does_not_build_is_refused_in_one_line(
    own_code: Path, name: str, line: str
) -> None:
    (own_code.parent / "broken.py").write_text("def build(:\n")
    (own_code.parent / "raising.py").write_text("1 / 0\n")
    given = name.replace("FILE", str(own_code)).replace("FOLDER", str(own_code.parent))
    assert line in refusal(lambda: build(given, {"hidden": 7}))


def test_a_builder_must_return_a_module(own_code: Path) -> None:
    line = refusal(lambda: build(f"{own_code}:three", {}))
    assert line.endswith("returned a int; expected a torch.nn.Module.")
    assert "resnet8 has no option colour. It has: width, " in refusal(
        lambda: build("resnet8", {"colour": "red"})
    )
    assert "resnet8: shortcut=C; expected 'A' or 'B'." in refusal(
        lambda: build("resnet8", {"shortcut": "C"})
    )


def test_misfits_are_counted_and_the_first_named(tmp_path: Path) -> None:
    state = network().state_dict()
    state["conv1.weight"] = torch.zeros(4, 1, 5, 5)
    state["extra\nline"] = torch.zeros(3)
    del state["fc.bias"], state["bn1.weight"], state["bn1.num_batches_tracked"]
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "net.pth")
    line = refusal(lambda: load(tmp_path / "net.pth", model="resnet8"))
    assert line == (
        f"{tmp_path / 'net.pth'}: resnet8 does not fit the file: conv1.weight is (4, 1, 5, 5) in "
        "the file and (4, 1, 3, 3) in the model; and 3 more (4 in all). It has conv1.weight, "
        "bn1.bias, bn1.running_mean, and 51 more."
    )
    del state["bn1.running_var"], state["bn1.running_mean"], state["bn1.bias"]
    save(example(state_dict=state), tmp_path / "own.pt")
    assert "and 6 more (7 in all)" in refusal(load(tmp_path / "own.pt").network)


def test_a_file_that_fits_no_model_asks_for_one(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "linear.pth")
    line = refusal(lambda: load(tmp_path / "linear.pth"))
    assert "no registered model fits. Pass --model NAME" in line
    state = network().state_dict() | {"layer1.0.extra": torch.zeros(3)}
    torch.save(state, tmp_path / "extra.pth")
    assert "no registered model fits" in refusal(lambda: load(tmp_path / "extra.pth"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_that_fits_several_models_asks_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    def other(**options: Any) -> nn.Module:
        return ResNet(8, merge="product", **options)

    def strict() -> nn.Module:
        return nn.Linear(2, 2)

    alike = replace(FAMILY, builders={"other8": other}, candidates=None)
    monkeypatch.setattr(fitting, "FAMILIES", [FAMILY, alike])
    monkeypatch.setitem(MODELS, "other8", other)
    monkeypatch.setitem(MODELS, "takes-no-options", strict)
    torch.save(prefixed(prefix, network().state_dict()), tmp_path / "net.pth")
    line = refusal(lambda: load(tmp_path / "net.pth"))
    assert "2 registered models fit (resnet8, other8). Pass --model NAME" in line
    assert load(tmp_path / "net.pth", model="other8").model == "other8"


def test_a_second_family_is_recognised_without_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "line", lambda: nn.Linear(3, 2))
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "net.pth")
    assert load(tmp_path / "net.pth").model == "line"


def test_several_state_dicts_or_none_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "gan.pth")
    line = refusal(lambda: load(tmp_path / "gan.pth"))
    assert "holds several state dicts, generator, critic. Say which: --weights generator." in line
    for content, listed in (({}, "none"), ({"epoch": 3, 4: "x"}, "epoch, 4")):
        torch.save(content, tmp_path / "none.pth")
        assert f"contains no state dict; its entries: {listed}." in refusal(
            lambda: load(tmp_path / "none.pth")
        )
    for other in (torch.zeros(3), [1, 2], 3):
        torch.save(other, tmp_path / "other.pth")
        assert "expected a dict of tensors" in refusal(lambda: load(tmp_path / "other.pth"))


# Which of several state dicts, and which of their entries.


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_another_state_dict_of_the_network_is_named_and_can_be_asked_for(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    raw, ema = network().state_dict(), network(seed=5).state_dict()
    torch.save({names[0]: raw, names[1]: prefixed("module.", ema)}, tmp_path / "net.pt")
    said: list[str] = []
    found = load(tmp_path / "net.pt", say=said.append)
    assert said[0] == (
        f"net.pt: took {names[0]}; there is also {names[1]} (--weights {names[1]} takes it)."
    )
    assert found.state_dict["fc.weight"].equal(raw["fc.weight"])
    other = load(tmp_path / "net.pt", weights=names[1])
    assert other.state_dict["fc.weight"].equal(ema["fc.weight"])
    line = refusal(lambda: load(tmp_path / "net.pt", weights="average"))
    assert line.startswith(f"--weights average: {tmp_path / 'net.pt'} has no such state dict (it")


# How one state dict that fits lies in a file beside others.
BESIDE: dict[str, Callable[[Any, Any], Any]] = {
    "generator": lambda fitting, other: {"critic": other, "generator": fitting},
    "other": lambda fitting, other: {"model": other, "other": fitting},
    "checkpoint.state_dict": lambda fitting, other: {
        "checkpoint": {"state_dict": fitting, "epoch": 3},
        "losses": torch.ones(5),
    },
    "nested.checkpoint.model": lambda fitting, other: {
        "nested": {"checkpoint": {"model": fitting}},
        "args": {"x": other},
    },
    "1": lambda fitting, other: [other, fitting, {"lr": 0.1}],
    "nets.0": lambda fitting, other: {"nets": (fitting, other)},
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("model", [None, "resnet8"])
def test_of_several_state_dicts_the_one_that_alone_fits_is_taken_and_said(
    tmp_path: Path, name: str, model: str | None
) -> None:
    fitting, other = network().state_dict(), nn.Linear(3, 2).state_dict()
    torch.save(BESIDE[name](fitting, other), tmp_path / "net.pt")
    said: list[str] = []
    found = load(tmp_path / "net.pt", model=model, say=said.append)
    assert said[0] == f"net.pt: took {name}, which alone fits."
    assert_same_tensors(found.state_dict, fitting)
    assert_same_tensors(load(tmp_path / "net.pt", weights=name).state_dict, fitting)
    heard: list[str] = []
    parameters = dict(network(4).named_parameters())
    end = load_end(tmp_path / "net.pt", parameters, {}, fitting, say=heard.append)
    assert heard == said[:1]
    assert_same_tensors(end, {key: fitting[key] for key in parameters})


def test_an_average_beside_the_weights_is_named_whatever_its_prefix(tmp_path: Path) -> None:
    raw, average = network().state_dict(), network(seed=5).state_dict()
    ema = prefixed("online_model.", raw) | prefixed("ema_model.", average)
    ema |= {"initted": torch.tensor([True]), "step": torch.tensor([7])}
    torch.save({"model": raw, "ema": ema}, tmp_path / "net.pt")
    said: list[str] = []
    assert_same_tensors(load(tmp_path / "net.pt", say=said.append).state_dict, raw)
    assert said[0] == "net.pt: took model; there is also ema (--weights ema takes it)."
    found = load(tmp_path / "net.pt", weights="ema_model").state_dict
    assert_same_tensors(found, average)
    torch.save(ema, tmp_path / "ema.pt")
    assert "under online_model., ema_model. fit alike" in refusal(lambda: load(tmp_path / "ema.pt"))


def test_a_file_of_ours_has_no_entries_to_choose_from(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.pt")
    line = refusal(lambda: load(tmp_path / "net.pt", weights="ema"))
    assert "is of this toolkit, and holds one network. Leave --weights out." in line
    said: list[str] = []
    load_end(tmp_path / "net.pt", network().state_dict(), {}, weights="ema", say=said.append)
    assert said == ["net.pt holds one network: --weights ema is not for it."]


class Renamed(nn.Module):
    """A layer that reads the name that its weight had in an earlier version."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_load_state_dict_pre_hook(self.earlier)

    @staticmethod
    def earlier(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}linear.weight"] = state.pop(f"{prefix}kernel").T


def test_the_end_of_a_line_is_read_by_the_first_network_s_load_hooks(tmp_path: Path) -> None:
    first, kernel = Renamed(), torch.arange(6.0).view(3, 2)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    torch.save({"kernel": kernel, "linear.bias": torch.ones(2)}, tmp_path / "end.pt")
    origin, names = dict(first.named_parameters()), first.state_dict()
    found = load_end(tmp_path / "end.pt", origin, {}, names, network=first)
    assert found["linear.weight"].equal(kernel.T)
    assert_same_tensors(first.state_dict(), before)
    torch.save({"kernel": torch.ones(9, 9), "linear.bias": torch.ones(2)}, tmp_path / "end.pt")
    line = refusal(lambda: load_end(tmp_path / "end.pt", origin, {}, names, network=first))
    assert "linear.weight is not in the file" in line


def test_an_optimizer_s_state_is_not_taken_for_weights(tmp_path: Path) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer}, tmp_path / "net.pt")
    said: list[str] = []
    load(tmp_path / "net.pt", say=said.append)
    assert not [line for line in said if "there is also" in line]


HELD: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "an attribute": lambda state: prefixed("backbone.", state),
    "two attributes": lambda state: prefixed("student.encoder.", state),
    "beside a criterion": lambda state: {
        **prefixed("model.", state), "criterion.weight": torch.ones(10)
    },
    "AveragedModel": lambda state: {
        "n_averaged": torch.tensor(3), **prefixed("module.", state)
    },
}  # fmt: skip


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("model", [None, "resnet8"])
def test_the_one_prefix_that_makes_all_fit_is_taken_off_and_said(
    tmp_path: Path, how: str, model: str | None
) -> None:
    state = network().state_dict()
    torch.save({"state_dict": HELD[how](state)}, tmp_path / "net.pt")
    said: list[str] = []
    found = load(tmp_path / "net.pt", model=model, say=said.append)
    assert found.state_dict["fc.weight"].equal(state["fc.weight"])
    assert any("took the entries under" in line for line in said), said
    found.network()


def test_two_parts_that_both_fit_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    both = {**prefixed("student.", state), **prefixed("teacher.", network(seed=5).state_dict())}
    torch.save(both, tmp_path / "net.pt")
    line = refusal(lambda: load(tmp_path / "net.pt", model="resnet8"))
    assert "the entries under student., teacher. fit alike" in line
    assert "Say which: --weights student." in line
    assert refusal(lambda: load(tmp_path / "net.pt")) == line
    found = load(tmp_path / "net.pt", weights="teacher").state_dict
    assert found["fc.bias"].equal(network(seed=5).state_dict()["fc.bias"])


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (torch.full((10,), torch.nan), "fc.bias has 10 NaN or infinite values of 10"),
        (torch.tensor([torch.inf] + [0.0] * 9), "fc.bias has 1 NaN or infinite values of 10"),
        (torch.zeros(10, dtype=torch.complex64), "fc.bias is complex"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_weights_that_are_no_real_numbers_are_refused(
    tmp_path: Path, value: Tensor, line: str, own: bool
) -> None:
    state = network(classes=10).state_dict() | {"fc.bias": value}
    if own:
        save(example(state_dict=state), tmp_path / "net.pt")
    else:
        torch.save(state, tmp_path / "net.pt")
    assert line in refusal(lambda: load(tmp_path / "net.pt"))


def test_the_end_of_a_line_may_have_nothing_that_the_first_network_lacks(tmp_path: Path) -> None:
    first, deeper = network(), network(depth=14)
    torch.save(deeper.state_dict(), tmp_path / "deeper.pt")
    origin = dict(first.named_parameters())
    names = first.state_dict()
    line = refusal(lambda: loading.load_end(tmp_path / "deeper.pt", origin, {}, names))
    assert "has layer1.1.conv1.weight" in line
    assert "which the first checkpoint's network lacks" in line


# Files that want more than tensors, and files that are none.


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trap}",)


def saved_in(path: Path, content: Any, how: str) -> None:
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
    elif how == "zip, protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        torch.save(content, path, **(LEGACY if how == "legacy" else {}))


WAYS = ("zip", "legacy", "zip, protocol 4", "pickle 0", "pickle 2", "pickle 4", "pickle 5")


@pytest.mark.parametrize("how", WAYS)
def test_code_in_a_pickle_never_runs(tmp_path: Path, how: str) -> None:
    path, trap = tmp_path / "net.pth", tmp_path / "trap"
    saved_in(path, {"state_dict": {"weight": 3}, "evil": Payload(trap)}, how)
    line = refusal(lambda: load(path))
    if how == "zip":
        assert f"asks for more than tensors: {os.system.__module__}.system. It was not" in line
    else:  # torch lists the names in its own files of its own pickle protocol alone
        assert "or a pickle that could run code (" in line
    assert not trap.exists()
    # The file is what it should be: an unsafe reader does run it.
    if how == "pickle 4":
        pickle.loads(path.read_bytes())
        assert trap.exists()


def test_classes_of_other_modules_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = types.ModuleType("made_up")
    for name in ("First", "Second"):
        setattr(made_up, name, type(name, (), {"__module__": "made_up"}))
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    content = {"a": made_up.First(), "b": made_up.Second(), "c": made_up.First()}
    saved_in(tmp_path / "net.pth", content, "zip")
    monkeypatch.delitem(sys.modules, "made_up")
    line = refusal(lambda: load(tmp_path / "net.pth"))
    assert "made_up.First, made_up.Second" in line


def test_a_whole_pickled_network_is_refused_with_its_classes(tmp_path: Path) -> None:
    saved_in(tmp_path / "net.pth", network(), "zip")
    line = refusal(lambda: load(tmp_path / "net.pth"))
    assert (
        "holds a whole pickled module (checkpoints.hooks.Exposed, and 9 more), and loading one "
        "runs code. Save its state_dict() alone."
    ) in line


def test_a_global_with_a_line_break_in_its_name_is_told_in_one_line(tmp_path: Path) -> None:
    hostile = b"\x80\x02cos\x1bx\nsys\x1btem\n)R."
    torch.save({"a": 1}, tmp_path / "net.pth")
    with (
        zipfile.ZipFile(tmp_path / "net.pth") as whole,
        zipfile.ZipFile(tmp_path / "evil.pth", "w", zipfile.ZIP_STORED) as changed,
    ):
        for name in whole.namelist():
            changed.writestr(name, hostile if name.endswith("data.pkl") else whole.read(name))
    assert "os x.sys tem" in refusal(lambda: load(tmp_path / "evil.pth"))
    (tmp_path / "net.pth").write_bytes(hostile)
    refusal(lambda: load(tmp_path / "net.pth"))


@pytest.mark.parametrize("settings", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_truncated_pickle_is_refused_wherever_it_ends(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, tmp_path / "net.pth", **settings)
    whole = (tmp_path / "net.pth").read_bytes()
    cuts = {0, 1, 2, 3, 10, 30, 100, 999, 1000, 1001, 3000, len(whole) // 2}
    for cut in cuts | {len(whole) - back for back in (1, 2, 10, 100, 1000)}:
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        line = refusal(lambda: load(tmp_path / "cut.pth"))
        wanted = "is not a checkpoint, or damaged, or a pickle that could run code ("
        assert f"cut.pth {wanted if cut else 'is empty'}" in line


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    save(example(), tmp_path / "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    damaged = {
        "length": b"\xff" * 8 + whole[8:],
        "header": whole[:20] + b"}{" + whole[22:],
        "cut in the header": whole[:100],
        "cut in the tensors": whole[:-1],
        "longer": whole + b"\0",
        "description": whole.replace(b'\\"model\\"', b'\\"model\\\\'),
    }
    for what, content in damaged.items():
        (tmp_path / "bad.safetensors").write_bytes(content)
        line = refusal(lambda: load(tmp_path / "bad.safetensors"))
        assert "bad.safetensors is not a checkpoint, or damaged" in line, what


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"hello\nworld\n",
        b'{"weights: 3}\n',
        b"connect\nto\nthis\n",
        b"PK\x03\x04" + bytes(100),
        bytes(100),
        b"\x80\x02" + bytes(range(256)),
    ],
    ids=("text", "JSON", "like an opcode", "zip", "zeros", "bytes"),
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    assert "is not a checkpoint, or damaged" in refusal(lambda: load(tmp_path / f"net{suffix}"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_random_bytes_are_refused(tmp_path: Path, suffix: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 8, 9, 50, 200, 1000):
        for start in (b"", b"\x80\x02", b"\x80\x04"):
            noise = torch.randint(0, 256, (length,), generator=generator).tolist()
            (tmp_path / f"net{suffix}").write_bytes(start + bytes(noise))
            refusal(lambda: load(tmp_path / f"net{suffix}"))


# The far end of a line between two networks.


@pytest.mark.parametrize("form", ["bare", "DataParallel, then compiled", "Lightning"])
def test_a_second_network_is_named_as_the_first(tmp_path: Path, form: str) -> None:
    origin, end = network(0), network(1)
    torch.save(FORMS[form](end.state_dict()), tmp_path / "end.pth")
    parameters = {name: p.detach() for name, p in origin.named_parameters()}
    found = load_end(tmp_path / "end.pth", parameters, {"model": "resnet8"})
    assert_same_tensors(found, {name: p.detach() for name, p in end.named_parameters()})


def test_a_second_network_in_another_naming_is_translated(tmp_path: Path) -> None:
    torch.save(prefixed("module.", resnet20_of_2018(1)), tmp_path / "end.th", **LEGACY)
    torch.save(prefixed("module.", resnet20_of_2018(0)), tmp_path / "origin.th", **LEGACY)
    origin = dict(load(tmp_path / "origin.th").network().named_parameters())
    found = load_end(tmp_path / "end.th", origin, {})
    assert found["fc.weight"].equal(resnet20_of_2018(1)["linear.weight"])


def test_a_second_network_of_another_architecture_or_normalisation_is_refused(
    tmp_path: Path,
) -> None:
    origin = network().state_dict()
    known = {"model": "resnet8", "options": dict(OPTIONS), "mean": [0.25], "std": [0.5]}
    save(example(), tmp_path / "end.pt")
    assert_same_tensors(load_end(tmp_path / "end.pt", origin, known), origin)
    spelled = known | {"options": OPTIONS | {"shortcut": "B", "merge": "add"}}
    assert_same_tensors(load_end(tmp_path / "end.pt", origin, spelled), origin)
    for change, told in (
        ({"model": "fmmnet8"}, "has model resnet8, the first checkpoint fmmnet8"),
        ({"options": OPTIONS | {"merge": "product"}}, "has options {"),
        ({"mean": [0.5]}, r"has mean [0.25], the first checkpoint [0.5]"),
    ):
        line = refusal(lambda change=change: load_end(tmp_path / "end.pt", origin, known | change))  # type: ignore[misc]
        assert told in line
    torch.save(network(depth=14).state_dict() | {"fc.bias": torch.ones(6)}, tmp_path / "end.pth")
    line = refusal(lambda: load_end(tmp_path / "end.pth", origin, known))
    assert "fc.bias is (6,) in the file and (5,) in the model" in line


def test_what_a_notebook_shows_of_a_checkpoint_has_no_weights() -> None:
    shown = repr(load(find("resnet8.pt")))
    assert "resnet8" in shown
    assert "tensor(" not in shown
    assert len(shown) < 2000


def test_the_outline_of_a_network_imports_no_compiler() -> None:
    """Seconds for every command, where values that are not there are drawn."""
    program = (
        "import sys\n"
        "from checkpoints import network_file\n"
        "from checkpoints.registry import MODELS\n"
        "for name in MODELS:\n"
        "    if '8' in name or not any(c.isdigit() for c in name):\n"
        "        network_file.outline(name, {})\n"
        "print([m for m in sys.modules if m.startswith(('sympy', 'torch._dynamo.'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
