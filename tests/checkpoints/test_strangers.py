"""Files of other tools, damaged files and unusual tensors: a right network, or one clear line."""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from checkpoints.checkpoint import Checkpoint, save
from checkpoints.loading import load
from checkpoints.models.resnet import ResNet

OPTIONS = {"width": 2, "channels": 1, "classes": 3}


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return ResNet(8, **OPTIONS).state_dict()  # type: ignore[arg-type]


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(ValueError) as refused:
        load(path, mean=(0.0,), std=(1.0,), **how).network()
    line = str(refused.value)
    assert "\n" not in line and line.isprintable()
    assert len(line.replace(str(path), "net.pt")) <= 260, line
    return line


def zipped(*names: str) -> bytes:
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return image.getvalue()


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = np.zeros(3)


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "Keras, HDF5": ("net.h5", hdf5, "an HDF5 file, such as Keras writes"),
    "HDF5 under another name": ("net.pt", hdf5, "an HDF5 file"),
    "Keras 3": (
        "net.keras",
        lambda p: p.write_bytes(zipped("config.json", "metadata.json", "model.weights.h5")),
        "a Keras model",
    ),
    "TorchScript": ("net.pt", torchscript, "a TorchScript archive"),
    "torch.export": (
        "net.pt2",
        lambda p: p.write_bytes(zipped("net/archive_format", "net/models/model.json")),
        "an exported program",
    ),
    "ONNX": ("net.onnx", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), "an ONNX model"),
    "GGUF": ("net.gguf", lambda p: p.write_bytes(b"GGUF" + bytes(60)), "a GGUF file"),
    "TensorFlow Lite": ("a.bin", lambda p: p.write_bytes(bytes(4) + b"TFL3"), "TensorFlow Lite"),
    "TensorFlow graph": ("net.pb", lambda p: p.write_bytes(b"\x0a\x05abcde"), "a TensorFlow graph"),
    "NumPy": ("net.npy", lambda p: np.save(p, np.zeros(3)), "a NumPy array"),
    "NumPy archive": ("net.npz", lambda p: np.savez(p, a=np.zeros(3)), "an archive of NumPy"),
    "gzip": ("net.pt", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(40)), "a gzip archive"),
    "zip": ("net.zip", lambda p: p.write_bytes(zipped("readme.txt")), "a zip archive without"),
    "LFS": (
        "net.pt",
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "a Git LFS pointer, not the file itself; run git lfs pull",
    ),
    "web page": ("net.pt", lambda p: p.write_bytes(b"<!DOCTYPE html><html>"), "a web page"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_work_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    name, write, what = FILES[kind]
    write(tmp_path / name)
    assert what in refusal(tmp_path / name)


WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rounded": (lambda w: (w * 100).round().long(), "is int64, rounded to whole numbers"),
    "bytes": (lambda w: (w * 100).byte(), "is uint8, rounded to whole numbers"),
    "bool": (lambda w: w > 0, "is bool, rounded to whole numbers"),
    "complex": (lambda w: w.to(torch.complex64), "is complex"),
    "sparse": (lambda w: w.to_sparse(), "is sparse (sparse_coo)"),
    "meta": (lambda w: w.to("meta"), "is without values (on the meta device)"),
    "NaN": (lambda w: w * torch.nan, "NaN or infinite values"),
    "quantised": (
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
        "is quantised (torch.qint8)",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_no_dense_real_numbers_are_refused_by_name(
    kind: str, own: bool, tmp_path: Path
) -> None:
    change, what = WEIGHTS[kind]
    name = "layer2.0.conv1.weight"
    content: dict[str, Any] = state()
    content[name] = change(content[name])
    if own:
        about = {"format": "cnn-landscape checkpoint", "schema_version": 1, "model": "resnet8"}
        content = {**about, "options": OPTIONS, "mean": [0.0], "std": [1.0], "state_dict": content}
    torch.save(content, tmp_path / "net.pt")
    line = refusal(tmp_path / "net.pt")
    assert f"{name} " in line and what in line


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("fc._packed_params._packed_params", "was quantised"),
        ("conv1.weight_mask", "was pruned. Call torch.nn.utils.prune.remove"),
        ("_fsdp_wrapped_module._flat_param", "was flattened by FSDP"),
    ],
)
def test_what_torch_s_tools_leave_behind_is_named(key: str, what: str, tmp_path: Path) -> None:
    torch.save({**state(), key: torch.ones(3)}, tmp_path / "net.pt")
    assert what in refusal(tmp_path / "net.pt")


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(state(), tmp_path / "net.bin")
    found = load(tmp_path / "net.bin", mean=(0.0,), std=(1.0,))
    assert found.model == "resnet8"
    assert all(found.state_dict[name].equal(value) for name, value in state().items())


def sharded(folder: Path, **other: Any) -> Path:
    names = sorted(state())
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        safetensors.torch.save_file({name: state()[name] for name in own}, folder / file)
    places = {name: file for file, own in parts.items() for name in own} | other
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_shards_are_read_together(tmp_path: Path) -> None:
    found = load(sharded(tmp_path), mean=(0.0,), std=(1.0,))
    assert found.model == "resnet8"
    assert all(found.state_dict[name].equal(value) for name, value in state().items())


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"x": "../secret.safetensors"}, "which is not a file beside it"),
        ({"x": "/etc/passwd"}, "which is not a file beside it"),
        ({"x": "c.safetensors"}, "which is not a file beside it"),
        ({"x": "a.safetensors"}, "names x, which its files do not hold"),
        ({"x": 3}, "no weight_map of names"),
    ],
)
def test_an_index_names_files_beside_it(other: Any, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    safetensors.torch.save_file(state(), tmp_path / "secret.safetensors")
    assert what in refusal(sharded(folder, **other))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_no_flipped_bit_goes_unnoticed(suffix: str, tmp_path: Path) -> None:
    """In a file of ours: refused, or the very same network and description."""
    plain = Checkpoint(
        state(), "resnet8", OPTIONS, 3, (1, 8, 8), (0.25,), (0.5,), "fashion-mnist", seed=3
    )
    path = tmp_path / f"net{suffix}"
    save(plain, path)
    whole, right = path.read_bytes(), load(path)
    flips, refused = random.Random(0), 0
    for _ in range(60):
        place, bit = flips.randrange(len(whole)), flips.randrange(8)
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        path.write_bytes(bytes(changed))
        try:
            found = load(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert (found.model, found.options, found.mean) == (right.model, right.options, right.mean)
        assert (found.std, found.data, found.seed) == (right.std, right.data, right.seed)
        assert set(found.state_dict) == set(right.state_dict)
        for name, value in right.state_dict.items():
            assert found.state_dict[name].equal(value)
    assert refused > 20


def test_a_foreign_zip_with_a_flipped_bit_is_damaged(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pt")
    content = bytearray((tmp_path / "net.pt").read_bytes())
    weights = state()["layer3.0.conv2.weight"].numpy().tobytes()
    content[content.index(weights) + 100] ^= 16
    (tmp_path / "net.pt").write_bytes(bytes(content))
    assert "does not have its checksum" in refusal(tmp_path / "net.pt")


NORMED = """
import torch
from torch import nn


def older():
    return nn.Sequential(nn.Flatten(), torch.nn.utils.weight_norm(nn.Linear(4, 3)))


def newer():
    return nn.Sequential(nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))


class Renamed(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *others):
        if prefix + "kernel" in state:
            state[prefix + "weight"] = state.pop(prefix + "kernel")
        super()._load_from_state_dict(state, prefix, *others)


def renamed():
    return nn.Sequential(nn.Flatten(), Renamed(4, 3))
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_normalisation_and_load_hooks_read_their_earlier_names(tmp_path: Path) -> None:
    code = tmp_path / "normed.py"
    code.write_text(NORMED)
    space: dict[str, Any] = {}
    exec(NORMED, space)
    inputs = torch.rand(5, 4)
    for wrote, reads in (("older", "newer"), ("newer", "older")):
        network = space[wrote]()
        torch.save(network.state_dict(), tmp_path / "net.pt")
        found = load(tmp_path / "net.pt", model=f"{code}:{reads}", mean=(0.0,), std=(1.0,))
        torch.testing.assert_close(found.network()(inputs), network(inputs))
    network = space["renamed"]()
    earlier = {k.replace("weight", "kernel"): v for k, v in network.state_dict().items()}
    torch.save(earlier, tmp_path / "net.pt")
    found = load(tmp_path / "net.pt", model=f"{code}:renamed", mean=(0.0,), std=(1.0,))
    torch.testing.assert_close(found.network()(inputs), network(inputs))


def test_the_options_of_a_file_do_not_decide_how_much_is_allocated(tmp_path: Path) -> None:
    huge = Checkpoint(state(), "resnet8", OPTIONS | {"width": 200_000}, 3, mean=(0.0,), std=(1.0,))
    save(huge, tmp_path / "net.pt")
    assert "does not fit the file" in refusal(tmp_path / "net.pt")


def test_deep_json_and_control_characters_end_in_a_line(tmp_path: Path) -> None:
    header = {"__metadata__": {"cnn-landscape checkpoint": "[" * 200_000}}
    text = json.dumps(header).encode()
    (tmp_path / "net.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refusal(tmp_path / "net.safetensors")
    torch.save({"\x1b[31mred\r\nline.weight": torch.ones(2, 2)}, tmp_path / "net.pt")
    refusal(tmp_path / "net.pt")
    torch.save({"\x1b]0;title\x07.weight": torch.ones(2, dtype=torch.int)}, tmp_path / "net.pt")
    refusal(tmp_path / "net.pt")


def test_a_stale_copy_in_another_shard_is_not_taken(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    places = json.loads(index.read_text())["weight_map"]
    name = next(name for name, file in places.items() if file == "a.safetensors")
    stale = safetensors.torch.load_file(tmp_path / "b.safetensors") | {name: state()[name] + 1}
    safetensors.torch.save_file(stale, tmp_path / "b.safetensors")
    assert load(index, mean=(0.0,), std=(1.0,)).state_dict[name].equal(state()[name])


def test_no_byte_of_a_directory_of_a_zip_ends_in_a_traceback(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pt")
    whole = (tmp_path / "net.pt").read_bytes()
    start = whole.index(b"PK\x01\x02")
    for place in range(start, start + 46):
        changed = bytearray(whole)
        changed[place] ^= 64
        (tmp_path / "net.pt").write_bytes(bytes(changed))
        try:
            load(tmp_path / "net.pt", mean=(0.0,), std=(1.0,))
        except ValueError as error:
            assert "\n" not in str(error)


def test_negative_variances_of_any_layer_are_refused(tmp_path: Path) -> None:
    changed = state()
    changed["layer1.0.bn1.running_var"][1] = -0.1
    torch.save(changed, tmp_path / "net.pt")
    assert "layer1.0.bn1.running_var has negative variances" in refusal(tmp_path / "net.pt")
