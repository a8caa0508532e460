from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import landscape
from analysis import results
from checkpoints import checkpoint, loading, source
from checkpoints.checkpoint import Checkpoint
from checkpoints.data.images import Images, Split
from checkpoints.losses import cross_entropy, top1
from checkpoints.models.resnet import ResNet
from checkpoints.problem import Normalization, Problem
from checkpoints.source import Source


def load_problem(file: str | Path, **options: Any) -> Problem:
    """A checkpoint's problem on the data that it names, which the test itself has made."""
    if "data" not in options and Path(file).is_file():
        recorded = torch.load(file, weights_only=True).get("data", "")
        options |= {"data": recorded} if recorded.startswith("npz:") else {}
    return source.load_problem(file, **options)


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError that `call` raises, which must be one printable line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    return message


def linear(ins: int = 3, outs: int = 4) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(ins, outs)


def examples(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 3, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


# A problem of one's own.


def test_batches_may_be_a_loader_a_list_or_a_generator() -> None:
    inputs, targets = examples()
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    given: Any
    for given in (
        DataLoader(TensorDataset(inputs, targets), batch_size=3),
        batches,
        [list(batch) for batch in batches],
        (batch for batch in batches),
        [({"input": x}, y) for x, y in batches],
    ):
        made = Problem.of(linear(), given)
        assert len(made) == 7
        assert made.inputs["input"].equal(inputs)
        assert made.targets.equal(targets)
        assert made.correct is top1
        assert (made.device.type, made.dtype) == ("cpu", torch.float32)


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


def test_several_inputs_reach_the_model_by_their_names() -> None:
    left, right = torch.arange(6.0).view(3, 2), torch.ones(3, 2)
    made = Problem.of(TwoInputs(), [({"right": right, "left": left}, torch.zeros(3).long())])
    assert made.outputs(made.model, made.inputs).equal(left - 2 * right)
    assert made.dtype == torch.float32


@pytest.mark.parametrize(
    "targets", [torch.zeros(5), torch.zeros(5, 4), torch.zeros(5, 4).long()], ids=str
)
def test_accuracy_means_nothing_for_targets_that_are_no_labels(targets: Tensor) -> None:
    batches = [(torch.zeros(5, 3), targets)]
    assert Problem.of(linear(), batches).correct is None
    assert Problem.of(linear(), batches, correct=top1).correct is top1


@pytest.mark.parametrize(
    ("batches", "line"),
    [
        ([], "there are no batches"),
        ([torch.zeros(5, 3)], "a batch is a Tensor; expected a pair (inputs, targets)"),
        ([(torch.zeros(5, 3),)], "a batch is a tuple; expected a pair"),
        ([([1, 2], torch.zeros(2))], "a batch contains a list; expected tensors"),
        ([(torch.zeros(2, 3), [1, 2])], "a batch contains a list; expected tensors"),
        ([({"a": 3}, torch.zeros(2))], "a batch contains a int; expected tensors"),
        ([({}, torch.zeros(2))], "inputs have {} examples, targets 2"),
        ([(torch.zeros(2, 3), torch.zeros(3))], "inputs have {'input': 2} examples, targets 3"),
        ([(torch.zeros(0, 3), torch.zeros(0))], "there are no examples"),
        (
            [(torch.zeros(2, 3), torch.zeros(2)), ({"b": torch.zeros(2, 3)}, torch.zeros(2))],
            "a batch has the inputs ['b']; expected ['input']",
        ),
    ],
)
def test_batches_that_are_no_pairs_are_refused(batches: list[Any], line: str) -> None:
    assert line in refusal(lambda: Problem.of(linear(), batches))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"batch_norm": "frozen"}, "batch_norm='frozen'; expected running or recompute"),
        ({"batch_norm": "recompute"}, "needs a calibration set, and there is none"),
        ({"batch_size": -1}, "batch_size=-1; expected at least 1"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], line: str) -> None:
    assert line in refusal(lambda: Problem.of(linear(), [examples()], **change))


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        lambda outputs, targets: functional.cross_entropy(outputs, targets).item(),
        lambda outputs, targets: (outputs - 1) ** 2,
        lambda outputs, targets: cross_entropy(outputs, targets)[:-1],
    ],
)
def test_a_loss_that_is_not_one_value_an_example_is_refused(loss: Any) -> None:
    made = Problem.of(linear(), [examples()], loss)
    line = refusal(lambda: made.losses(made.outputs(made.model, made.inputs), made.targets))
    assert "for 7 examples; expected one value per example. Use reduction='none'" in line


def test_losses_are_computed_in_float64() -> None:
    """In float32 the loss of a confident example, exp(-20) nat, would be lost."""
    made = Problem.of(linear(), [examples()])
    outputs = torch.tensor([[20.0, 0.0]])
    (found,) = made.losses(outputs, torch.tensor([0])).tolist()
    assert found == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-12)
    squares = Problem.of(
        linear(), [(torch.zeros(1, 3), torch.zeros(1, 1))], lambda o, t: ((o - t) ** 2).sum(1)
    )
    assert squares.losses(torch.ones(1, 1), torch.zeros(1, 1)).dtype == torch.float64


def test_cross_entropy_and_top1_are_their_definitions() -> None:
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    wanted = outputs.exp().sum(1).log() - outputs[torch.arange(6), targets]
    torch.testing.assert_close(cross_entropy(outputs, targets), wanted)
    assert top1(outputs, targets).tolist() == [
        int(np.argmax(row)) == target
        for row, target in zip(outputs.tolist(), targets.tolist(), strict=True)
    ]


@pytest.mark.parametrize("gap", [-600.0, -50.0, -38.0, -34.0, 0.0, 30.0, 36.0, 40.0, 80.0, 300.0])
@pytest.mark.second_derivative
def test_nothing_cancels_where_the_network_is_certain(gap: float) -> None:
    """Against 400 digits: softmax - 1 in float64 is off by 31 % at a margin of 36.

    Logits of hundreds are themselves rounded by as many epsilons, and so is their exponential.
    """
    outputs = torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    (loss,) = cross_entropy(outputs, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss, outputs, create_graph=True)
    (bend,) = torch.autograd.grad(slope[0, 0], outputs)
    with localcontext(prec=400):
        others = Decimal(0).exp() + Decimal(-1).exp()
        total = Decimal(gap).exp() + others
        miss = others / total  # 1 - p
        wanted_loss, wanted_bend = float((total / Decimal(gap).exp()).ln()), miss * (1 - miss)
    assert float(loss.detach()) == pytest.approx(wanted_loss, rel=1e-12, abs=0)
    assert float(slope[0, 0].detach()) == pytest.approx(-float(miss), rel=1e-12, abs=0)
    assert float(bend[0, 0]) == pytest.approx(float(wanted_bend), rel=1e-12, abs=0)


def test_masked_classes_and_ignored_labels_are_as_in_torch() -> None:
    low = -torch.inf
    outputs = torch.tensor([[0.5, low, 1.0], [2.0, low, low], [1.0, 2.0, 3.0]])
    found, wanted = (outputs.double().requires_grad_() for _ in range(2))
    for kind in (torch.int64, torch.int32, torch.uint8):
        targets = torch.tensor([2, 0, 1], dtype=kind)
        losses = cross_entropy(found, targets)
        expected = functional.cross_entropy(wanted, targets.long(), reduction="none")
        torch.testing.assert_close(losses, expected)
        (slope,) = torch.autograd.grad(losses.sum(), found)
        torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), wanted)[0])
    assert cross_entropy(found, torch.tensor([2, 0, -100])).tolist()[2] == 0
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        cross_entropy(found, torch.tensor([2, 0, -1]))


def test_targets_of_another_form_are_left_to_torch() -> None:
    outputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    soft = outputs.flip(0).softmax(dim=1)
    assert torch.equal(
        cross_entropy(outputs, soft), functional.cross_entropy(outputs, soft, reduction="none")
    )


def test_a_single_output_has_no_cross_entropy() -> None:
    line = refusal(lambda: cross_entropy(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)))
    assert line.startswith(
        "the network has 1 output, but the loss is a cross-entropy over classes;"
    )


def test_normalization_is_its_closed_form() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = Normalization(mean, std)(images)
    for channel in range(3):
        wanted = (images[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(found[:, channel], wanted)
    assert found.dtype == torch.float64
    torch.testing.assert_close(Normalization((0.5,), (2.0,))(images), (images - 0.5) / 2)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((), ()), ((0.5,), ()), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5,), (float("nan"),))],
)
def test_a_normalization_that_is_none_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    assert "expected one value per channel each, finite, std positive" in refusal(
        lambda: Normalization(mean, std)
    )


def test_a_problem_elsewhere_leaves_the_original_as_it_is() -> None:
    made = Problem.of(
        linear(), [examples()], batch_norm="recompute", calibration={"input": torch.ones(2, 3)}
    )
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    moved = made.to("cpu", torch.float64)
    assert moved.dtype == torch.float64
    assert moved.inputs["input"].dtype == moved.calibration["input"].dtype == torch.float64
    assert moved.targets.dtype == torch.int64
    with torch.no_grad():
        next(moved.model.parameters()).zero_()
    assert made.dtype == made.inputs["input"].dtype == torch.float32
    for name, value in made.model.state_dict().items():
        assert value.equal(before[name])
    outputs = made.to("cpu", torch.float64).outputs(made.model, made.inputs)
    torch.testing.assert_close(outputs, made.outputs(made.model, made.inputs))


def test_regression_targets_change_precision_with_the_problem() -> None:
    made = Problem.of(linear(), [(torch.zeros(5, 3), torch.zeros(5, 4))])
    assert made.to("cpu", torch.float64).targets.dtype == torch.float64


def test_fingerprints_change_with_what_decides_a_result_and_with_nothing_else() -> None:
    made = Problem.of(linear(), [examples()])
    told = made.fingerprints()
    assert told["data"]["examples"] == 7
    assert told["batch_norm"] == {"policy": "running", "calibration": {"examples": 0}}
    assert (told["device"], told["dtype"]) == ("cpu", "float32")
    assert Problem.of(linear(), [examples()]).fingerprints() == told
    batched = replace(made, batch_size=3, kernels="native").fingerprints()
    assert batched == told | {"batch_size": 3, "kernels": "native"}
    other_data = Problem.of(linear(), [examples(8)]).fingerprints()
    assert other_data["data"] != told["data"]
    assert other_data["checkpoint"] == told["checkpoint"]
    other_model = linear()
    with torch.no_grad():
        other_model.bias[0] += 1e-6
    assert replace(made, model=other_model).fingerprints()["checkpoint"] != told["checkpoint"]
    calibrated = replace(
        made, batch_norm="recompute", calibration={"input": torch.ones(2, 3)}
    ).fingerprints()["batch_norm"]
    assert calibrated["policy"] == "recompute"
    assert calibrated["calibration"]["examples"] == 2
    assert len(calibrated["calibration"]["sha256"]) == 64


# The problem of a checkpoint file.


def images(count: int, seed: int, channels: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    shape = (count, 8, 8) if channels == 1 else (count, 8, 8, channels)
    return random.integers(0, 256, shape, np.uint8), np.arange(count) % 5


@pytest.fixture
def data(tmp_path: Path) -> str:
    (x, y), (x_test, y_test) = images(60, 0), images(40, 1)
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    np.savez(tmp_path / "test.npz", x_test=x_test, y_test=y_test)
    return f"npz:{tmp_path / 'both.npz'}"


def network(channels: int = 1, classes: int = 5) -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet(8, width=4, channels=channels, classes=classes).eval()


def saved(path: Path, channels: int = 1, classes: int = 5, **changes: Any) -> Path:
    whole = Checkpoint(
        network(channels, classes).state_dict(),
        "resnet8",
        {"width": 4, "channels": channels, "classes": classes},
        classes,
        (channels, 8, 8),
        (0.25,) * channels,
        (0.5,) * channels,
        seed=4,
    )
    checkpoint.save(replace(whole, **changes), path)
    return path


@pytest.fixture
def file(tmp_path: Path, data: str) -> Path:
    return saved(tmp_path / "net.pt", data=data)


def pixels_of(inputs: Mapping[str, Tensor]) -> set[bytes]:
    return {image.numpy().tobytes() for image in inputs["input"]}


def test_a_checkpoint_s_problem_is_its_network_on_its_images(file: Path) -> None:
    said: list[str] = []
    made = load_problem(file, say=said.append)
    x, y = images(40, 1)
    order = np.argsort(np.arange(40) % 5 + 5 * (np.arange(40) // 5), kind="stable")
    assert made.inputs["input"].dtype == torch.float32
    assert made.inputs["input"].equal(torch.from_numpy(x[order]).float()[:, None] / 255)
    assert made.targets.tolist() == y[order].tolist()
    with torch.no_grad():
        wanted = network()((made.inputs["input"] - 0.25) / 0.5)
        torch.testing.assert_close(made.outputs(made.model, made.inputs), wanted)
    assert said == []
    told = made.fingerprints()
    assert told["checkpoint"]["file"] == "net.pt"
    assert told["checkpoint"]["sha256"] == loading.load(file).sha256
    assert (told["checkpoint"]["model"], told["checkpoint"]["seed"]) == ("resnet8", 4)
    assert (told["checkpoint"]["mean"], told["checkpoint"]["std"]) == ([0.25], [0.5])
    assert (told["data"]["split"], told["data"]["examples"]) == ("test", 40)


def test_fewer_examples_are_balanced_and_zero_means_all(file: Path) -> None:
    assert np.bincount(load_problem(file, examples=15).targets).tolist() == [3] * 5
    assert len(load_problem(file, examples=0)) == len(load_problem(file, examples=40)) == 40
    assert len(load_problem(file, split="train")) == 60
    line = refusal(lambda: load_problem(file, examples=41))
    assert line.startswith("examples 41 exceeds the 40 of npz:")
    assert line.endswith(" (test). Pass fewer, or 0 for all.")
    line = refusal(lambda: load_problem(file, examples=-1))
    assert line == "examples -1; expected a whole number, at least 0."


def test_unless_asked_for_a_few_hundred_are_measured_or_all_where_there_are_fewer(
    tmp_path: Path, file: Path
) -> None:
    assert len(load_problem(file)) == 40
    x, y = images(310, 1)
    np.savez(tmp_path / "many.npz", x_test=x, y_test=y)
    assert len(load_problem(file, data=f"npz:{tmp_path / 'many.npz'}")) == source.USUAL == 300


def test_a_problem_has_the_precision_that_is_asked_for(file: Path) -> None:
    assert load_problem(file, dtype="float64").dtype == torch.float64
    line = refusal(lambda: load_problem(file, dtype="float16"))
    assert line == "dtype float16; expected 'float32' or 'float64'."


def test_float64_divides_the_pixels_in_float64(file: Path) -> None:
    made = load_problem(file, dtype="float64", batch_norm="recompute", calibration=20)
    for values in (made.inputs["input"], made.calibration["input"]):
        assert values.dtype == torch.float64
        bytes_ = values * 255
        assert (bytes_ - bytes_.round()).abs().max() < 1e-12
        assert values.equal(bytes_.round() / 255)


def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(file: Path) -> None:
    line = refusal(lambda: load_problem(file, exmples=3))
    assert line.startswith("there is no option exmples. Known: ckpt, data, data_root,")


def test_what_was_asked_for_is_recorded_without_this_machine_s_folders(file: Path) -> None:
    data = f"npz:{file.parent / 'both.npz'}"
    asked = Source(str(file), data, examples=15, data_root=file.parent, device="cpu")
    told = asked.problem().fingerprints()["source"]
    assert told["ckpt"] == "net.pt"
    assert told["examples"] == 15
    assert not {"data_root", "device"} & set(told)
    assert json.loads(json.dumps(told)) == told | {"mean": [], "std": []}


def test_a_file_that_does_not_say_asks_for_what_is_missing(tmp_path: Path, data: str) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pth")
    line = refusal(lambda: load_problem(tmp_path / "net.pth"))
    assert "Pass mean and std and data (mean 0 std 1 for inputs in [0, 1]" in line
    line = refusal(lambda: load_problem(tmp_path / "net.pth", mean=(0.0,), data=data))
    assert "Pass std (" in line
    made = load_problem(tmp_path / "net.pth", mean=(0.0,), std=(1.0,), data=data)
    with torch.no_grad():
        wanted = network()(made.inputs["input"])
        torch.testing.assert_close(made.outputs(made.model, made.inputs), wanted)


def test_one_mean_serves_all_channels_and_a_wrong_number_is_refused(tmp_path: Path) -> None:
    x, y = images(10, 0, channels=3)
    np.savez(tmp_path / "rgb.npz", x_test=x, y_test=y)
    file = saved(tmp_path / "net.pt", 3, data=f"npz:{tmp_path / 'rgb.npz'}", mean=(0.5,))
    made = load_problem(file)
    assert made.normalization == Normalization((0.5,) * 3, (0.5,) * 3)
    assert made.fingerprints()["checkpoint"]["mean"] == [0.5] * 3
    line = refusal(lambda: load_problem(file, mean=(0.1, 0.2)))
    assert "has 3 channels; mean has 2 values, std 3. Pass mean and std" in line


def test_images_that_the_network_does_not_take_are_refused(tmp_path: Path, data: str) -> None:
    rgb = saved(tmp_path / "rgb.pt", 3, data=data, mean=(0.5,), std=(0.5,))
    line = refusal(lambda: load_problem(rgb))
    assert "rgb.pt was trained on examples of shape (3, 8, 8), npz:" in line
    unsaid = saved(tmp_path / "unsaid.pt", 3, data=data, mean=(0.5,), std=(0.5,), input_shape=())
    line = refusal(lambda: load_problem(unsaid))
    assert "unsaid.pt: resnet8 does not take images of shape (1, 8, 8) of npz:" in line
    large = saved(tmp_path / "large.pt", data=data, input_shape=(1, 9, 9))
    assert "was trained on examples of shape (1, 9, 9), npz:" in refusal(
        lambda: load_problem(large)
    )
    seven = saved(tmp_path / "seven.pt", classes=7, data=data)
    line = refusal(lambda: load_problem(seven))
    assert "seven.pt has 7 classes, npz:" in line
    assert "has 5. Pass the data that it was trained on" in line


def test_a_network_that_returns_no_logits_is_refused(tmp_path: Path, data: str) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, what):\n"
        "        super().__init__()\n"
        "        self.what = what\n"
        "        self.fc = torch.nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return {'tuple': (x, x), 'map': x}[self.what]\n"
    )
    state = nn.Linear(2, 2).state_dict()
    torch.save({f"fc.{name}": value for name, value in state.items()}, tmp_path / "net.pth")
    for what, line in (
        ("tuple", "returns tuple for images of npz:"),
        ("map", "expected logits of shape (N, 5)."),
        ("fails", "does not take images of shape (1, 8, 8)"),
    ):
        given: dict[str, Any] = {"model": f"{tmp_path / 'mine.py'}:Net", "options": {"what": what}}
        call = lambda given=given: load_problem(  # noqa: E731
            tmp_path / "net.pth", data=data, mean=(0.0,), std=(1.0,), **given
        )
        assert line in refusal(call)


def test_a_file_does_not_decide_what_code_makes_the_data(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.py").write_text(f"open({str(trap)!r}, 'w')\n")
    file = saved(tmp_path / "net.pt", data=f"{tmp_path / 'evil.py'}:images")
    line = refusal(lambda: load_problem(file))
    assert "which lies outside this package" in line
    assert "pass it as data if you trust it" in line
    assert not trap.exists()
    unknown = saved(tmp_path / "unknown.pt", data="no-such-data")
    assert "'no-such-data' is not a known data set" in refusal(lambda: load_problem(unknown))


def test_a_network_of_fashion_mnist_is_probed_on_the_sample_that_ships(tmp_path: Path) -> None:
    file = saved(tmp_path / "net.pt", classes=10, input_shape=(1, 28, 28), data="fashion-mnist")
    said: list[str] = []
    made = load_problem(file, examples=30, say=said.append)
    assert made.fingerprints()["data"]["name"] == "fashion-mnist-sample"
    assert said == ["data: fashion-mnist-sample; the whole test split is --data fashion-mnist."]


def test_its_training_split_is_the_whole_set_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def loaded(name: str, split: Split, root: Path | None, size: object) -> Images:
        asked.append((name, split))
        x, y = images(20, 0)
        return Images(x[:, None], y, tuple("abcde"), name, split)

    monkeypatch.setattr(source, "load_images", loaded)
    load_problem(saved(tmp_path / "net.pt", data="fashion-mnist"), split="train")
    assert asked == [("fashion-mnist", "train")]


# The examples that batch-norm statistics are recomputed from.


def test_calibration_examples_are_of_the_training_split(file: Path) -> None:
    said: list[str] = []
    made = load_problem(file, batch_norm="recompute", calibration=20, say=said.append)
    train = pixels_of(load_problem(file, split="train").inputs)
    found = pixels_of(made.calibration)
    assert len(found) == 20
    assert found <= train
    assert not found & pixels_of(made.inputs)
    told = made.fingerprints()["batch_norm"]
    assert told["policy"] == "recompute"
    assert told["calibration"]["split"] == "train"
    assert told["calibration"]["examples"] == 20
    assert len(said) == 1
    assert "statistics of 20 train examples of npz:" in said[0]


def test_without_a_training_split_they_are_those_that_are_not_measured(
    file: Path, tmp_path: Path
) -> None:
    data = f"npz:{tmp_path / 'test.npz'}"
    made = load_problem(file, data=data, examples=15, batch_norm="recompute", calibration=25)
    found = pixels_of(made.calibration)
    assert len(found) == 25
    assert found | pixels_of(made.inputs) == pixels_of(load_problem(file, data=data).inputs)
    assert made.fingerprints()["batch_norm"]["calibration"]["split"] == "test"
    for examples_, left in ((16, 24), (0, 0), (40, 0)):
        line = refusal(
            lambda count=examples_: load_problem(  # type: ignore[misc]
                file, data=data, examples=count, batch_norm="recompute", calibration=25
            )
        )
        assert f"has no training split and {left} examples that are not measured" in line
        assert "expected at least calibration 25. Pass a smaller examples" in line


def test_the_sample_s_unmeasured_images_are_balanced(tmp_path: Path) -> None:
    file = saved(tmp_path / "net.pt", classes=10, input_shape=(1, 28, 28), data="fashion-mnist")
    said: list[str] = []
    made = load_problem(
        file, examples=300, batch_norm="recompute", calibration=500, say=said.append
    )
    assert len(made) == 300
    assert len(pixels_of(made.calibration)) == 500
    assert not pixels_of(made.calibration) & pixels_of(made.inputs)
    assert "statistics of 500 test examples of fashion-mnist-sample" in said[-1]


def test_a_damaged_training_split_is_told_and_not_replaced(file: Path, tmp_path: Path) -> None:
    (x, y), (x_test, y_test) = images(60, 0), images(40, 1)
    np.savez(
        tmp_path / "bad.npz", x_train=x.astype(float) * 7, y_train=y, x_test=x_test, y_test=y_test
    )
    data = f"npz:{tmp_path / 'bad.npz'}"
    assert len(load_problem(file, data=data)) == 40
    line = refusal(
        lambda: load_problem(file, data=data, examples=15, batch_norm="recompute", calibration=20)
    )
    assert "(train)" in line


@pytest.mark.parametrize("count", [-1, 0, 1, 61])
def test_a_calibration_needs_two_examples_and_no_more_than_there_are(
    file: Path, count: int
) -> None:
    line = refusal(lambda: load_problem(file, batch_norm="recompute", calibration=count))
    allowed = "a whole number, at least 2" if count < 2 else "2 to 60 examples"
    assert line == f"calibration {count}; expected {allowed}."


def test_measuring_the_training_split_calibrates_on_it(file: Path) -> None:
    made = load_problem(file, split="train", batch_norm="recompute", calibration=60)
    assert made.calibration["input"].equal(made.inputs["input"])


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets) ** 2


@pytest.mark.parametrize(
    ("images", "loss", "given", "loss_unit", "slope"),
    [
        (True, cross_entropy, {}, "nat", "nat / pixel range"),
        (True, nn.CrossEntropyLoss(reduction="none"), {}, "nat", "nat / pixel range"),
        (False, cross_entropy, {}, "nat", "nat / input unit"),
        (True, squared, {}, "1", "1 / pixel range"),
        (True, squared, {"loss_unit": "m²"}, "m²", "m² / pixel range"),
        (False, squared, {"input_unit": "cm"}, "1", "1 / cm"),
    ],
)
def test_units_are_those_of_the_loss_and_the_inputs(
    images: bool, loss: Any, given: dict[str, str], loss_unit: str, slope: str
) -> None:
    inputs = torch.rand(12, 1, 4, 4) if images else torch.randn(12, 16)
    targets = torch.arange(12) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    problem = Problem.of(model, [(inputs, targets)], loss, correct=None, **given)
    measured = landscape.measure("sensitivity", problem, parts=("norms",))
    assert measured["loss"].attrs["units"] == loss_unit
    assert measured["gradient_l2"].attrs["units"] == slope
    recorded = json.loads(measured.attrs["provenance"]).get("units", {})
    usual = {"loss": "nat", "input": "pixel range"}
    assert (recorded or usual) == {"loss": problem.loss_unit, "input": problem.input_unit}


def test_images_outside_the_unit_range_are_in_a_unit_of_their_own() -> None:
    inputs = torch.randn(4, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    assert Problem.of(model, [(inputs, torch.zeros(4).long())]).input_unit == "input unit"
    normalization = Normalization((0.0,), (1.0,))
    problem = Problem.of(
        model, [(inputs.sigmoid(), torch.zeros(4).long())], normalization=normalization
    )
    assert problem.input_unit == "pixel range"


def test_your_own_network_may_have_a_name_a_device_and_a_precision() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    batches = [(torch.rand(6, 1, 4, 4), torch.arange(6) % 3)]
    problem = Problem.of(model, batches, name="mine", device="cpu", dtype=torch.float64)
    assert problem.dtype == problem.inputs["input"].dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32
    measured = landscape.measure("surface", problem, points=3, dimensions=1)
    assert results.name(measured) == "mine"
    assert Problem.of(model, batches).provenance == {}


def test_what_a_notebook_shows_of_a_problem_is_a_line(problem: Problem) -> None:
    line = repr(problem)
    assert line.startswith("<Problem: ")
    assert "examples of input (" in line
    assert len(line) < 200
