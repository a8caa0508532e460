"""A study: its file, its folder of results, and what it does when something is wrong."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from analysis import study as analysis_study
from analysis import upgrade
from checkpoints import checkpoint, loading
from checkpoints.checkpoint import Checkpoint
from checkpoints.models.resnet import ResNet
from landscape.core import cli, plan, store
from landscape.registry import PROBES
from landscape.study.__main__ import main
from landscape.study.file import read as read_study
from landscape.study.folder import Run

pytestmark = pytest.mark.timeout(240)

OPTIONS = {"width": 4, "channels": 1, "classes": 10}
TEXT = """
title = "Tiny"
[problem]
dtype = "float64"
examples = 20
batch_size = 20
[[arms]]
name = "vanilla"
role = "baseline"
checkpoints = "resnet-seed{seed}.pt"
seeds = [0, 1]
[[arms]]
name = "multiplicative"
role = "treatment"
checkpoints = "fmmnet-seed{seed}.pt"
seeds = [0, 1]
[[arms]]
name = "untrained vanilla"
role = "negative"
model = "resnet8"
options = { width = 4, channels = 1, classes = 10 }
reference = "resnet-seed0.pt"
seeds = [0, 3]
problem = { batch_norm = "recompute", calibration = 50 }
[probes.near]
probe = "sensitivity"
parts = ["norms"]
[probes.weights]
probe = "surface"
points = 3
extent = 0.5
orthogonal = true
[[endpoints]]
claim = "near"
name = "gradient"
primary = true
probe = "near"
variable = "gradient_l2"
average = "log_mean"
compare = "log_ratio"
predicts = "lower"
margin = 0.1
[[endpoints]]
claim = "weights"
name = "volume"
primary = true
probe = "weights"
variable = "loss"
select = { alpha = 0 }
average = "fraction_below"
level = 1
compare = "difference"
predicts = "higher"
margin = 1
[[endpoints]]
claim = "generalises"
name = "accuracy"
primary = true
probe = "checkpoint"
variable = "test_accuracy_validation_selected"
compare = "difference"
predicts = "higher"
margin = 0.002
"""
NAMES = (
    "vanilla-seed0",
    "vanilla-seed1",
    "multiplicative-seed0",
    "multiplicative-seed1",
    "untrained-vanilla-seed0",
    "untrained-vanilla-seed3",
)
FILES = {f"{name}.{label}.h5" for name in NAMES for label in ("near", "weights")}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small networks that say they were trained on Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("networks")
    for model, merge in (("resnet", "add"), ("fmmnet", "bn_product_mean1")):
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                state = ResNet(8, width=4, channels=1, merge=merge).state_dict()
            found = Checkpoint(
                state,
                f"{model}8",
                OPTIONS,
                10,
                (1, 28, 28),
                (0.286,),
                (0.353,),
                "fashion-mnist",
                seed=seed,
                metrics={"test_accuracy_validation_selected": 0.5 + seed / 8},
            )
            checkpoint.save(found, folder / f"{model}-seed{seed}.pt")
    return folder


@pytest.fixture(scope="module")
def whole(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran straight through."""
    (networks / "tiny.toml").write_text(TEXT)
    out = tmp_path_factory.mktemp("whole") / "results"
    assert main([str(networks / "tiny.toml"), "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture
def file(networks: Path) -> Path:
    path = networks / "tiny.toml"
    path.write_text(TEXT)
    return path


def run(file: Path, out: Path, *others: str) -> int:
    return main([str(file), "--out", str(out), "--device", "cpu", *others])


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    return found


def copied(whole: Path, to: Path) -> Path:
    to.mkdir()
    for path in whole.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".h5", ".pt")}


def test_the_folder_holds_a_result_for_each_network_and_probe(whole: Path, file: Path) -> None:
    found = manifest(whole)
    assert {row["file"] for row in found["results"]} == FILES
    assert found["missing"] == []
    assert {path.name for path in whole.glob("*.h5")} == FILES
    assert found["schema_version"] == 2
    assert found["title"] == "Tiny"
    assert found["study"]["endpoints"][0]["margin"] == 0.1
    assert found["study_sha256"] == read_study(str(file)).sha256
    assert not list(whole.glob("*.partial"))
    rows = {(row["arm"], row["seed"]): row for row in found["checkpoints"]}
    first = rows["vanilla", 0]
    assert first["metrics"] == {"test_accuracy_validation_selected": 0.5}
    assert first["sha256"] == loading.load(file.parent / "resnet-seed0.pt").sha256
    assert first["model"] == "resnet8"
    network = ResNet(8, width=4, channels=1)
    assert first["parameters"] == sum(p.numel() for p in network.parameters())
    entry = next(row for row in found["results"] if row["file"] == "vanilla-seed1.near.h5")
    assert (entry["arm"], entry["seed"], entry["probe"]) == ("vanilla", 1, "near")


def test_the_stored_command_makes_the_same_file_byte_for_byte(whole: Path, tmp_path: Path) -> None:
    for row in manifest(whole)["results"]:
        if row["seed"] == 0:
            python, m, module, *arguments = shlex.split(row["command"])
            assert (python, m) == ("python", "-m")
            out = tmp_path / row["file"]
            place = arguments.index("--out") + 1
            assert arguments[place] == str(whole / row["file"])
            arguments[place] = str(out)
            assert cli.main(PROBES[module.removeprefix("landscape.")], arguments) == 0
            assert out.read_bytes() == (whole / row["file"]).read_bytes(), row["command"]


def test_an_untrained_network_is_what_training_with_its_seed_begins_with(whole: Path) -> None:
    made = loading.load(whole / "untrained-vanilla-seed3.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = ResNet(8, width=4, channels=1).state_dict()
    assert all(torch.equal(made.state_dict[name], value) for name, value in expected.items())
    assert (made.data, made.mean, made.std, made.seed) == ("fashion-mnist", (0.286,), (0.353,), 3)
    assert made.metrics == {}
    found = store.load(whole / "untrained-vanilla-seed3.near.h5")
    assert json.loads(found.attrs["provenance"])["batch_norm"]["policy"] == "recompute"


def test_a_study_killed_at_any_moment_continues_to_the_same_files(
    whole: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    count = []
    original = plan._fill

    def stopping(*arguments: Any) -> None:
        original(*arguments)
        count.append(1)
        if len(count) == 5:  # in the middle of the second result, a surface of 9 points
            raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_fill", stopping)
    assert run(file, out) == 130
    monkeypatch.undo()
    assert len(manifest(out)["results"]) == 1
    assert len(manifest(out)["missing"]) == len(FILES) - 1
    half = store.load(out / "vanilla-seed0.weights.h5")
    assert 0 < int(half["measured"].sum()) < 9
    assert run(file, out, "--seeds", "0") == 0
    expected = contents(whole)
    assert set(contents(out)) >= {name for name in expected if "seed0" in name}
    assert all(expected[name] == found for name, found in contents(out).items())


@pytest.mark.slow
def test_two_processes_end_on_a_signal_and_continue_to_the_same_files(
    whole: Path, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    command = [sys.executable, "-m", "landscape.study", str(file), "--out", str(out), "--jobs", "2"]
    command += ["--device", "cpu"]
    everything = len(list(whole.glob("*.h5")))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list(out.glob("*.h5")):
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 143
    assert said.endswith("Stopped. What was measured is saved; the same command continues.\n")
    assert "Traceback" not in said
    assert 0 < len(list(out.glob("*.h5"))) < everything
    assert run(file, out) == 0
    for path in out.glob("*.h5"):
        # Another number of threads rounds otherwise: float64, a few operations deep.
        xr.testing.assert_allclose(store.load(path), store.load(whole / path.name), rtol=1e-8)
    assert len(list(out.glob("*.h5"))) == everything


def test_a_finished_study_measures_nothing_again(
    whole: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(whole, tmp_path / "results")
    monkeypatch.setattr(plan, "_work", lambda *_, **__: pytest.fail("something was measured"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert run(file, out, "--arms", "multiplicative", "--seeds", "0") == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5")} == before


def test_a_deleted_or_truncated_result_is_measured_again(
    whole: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path / "results")
    (out / "vanilla-seed0.near.h5").unlink()
    cut = out / "multiplicative-seed1.weights.h5"
    cut.write_bytes(cut.read_bytes()[:-500])
    empty = out / "vanilla-seed1.weights.h5"
    empty.write_bytes(b"")
    (out / "untrained-vanilla-seed0.pt").write_bytes(b"PK")
    assert run(file, out) == 0
    notes = out / "vanilla-seed0.near.h5"
    kept = notes.read_bytes()
    notes.write_text("notes of the user")  # no result: not ours to delete
    assert run(file, out) == 1
    assert notes.read_text() == "notes of the user"
    notes.write_bytes(kept)
    assert contents(out) == contents(whole)
    said = capsys.readouterr().err
    for each in (cut, empty):
        assert f"{each} is damaged: moved to {each.name}.damaged, and measured again." in said
    assert (out / f"{cut.name}.damaged").is_file()


def test_one_failure_does_not_stop_the_others(
    whole: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path / "results")
    file.write_text(TEXT.replace("fmmnet-seed{seed}", "absent-seed{seed}"))
    foreign = out / "vanilla-seed0.near.h5"
    foreign.write_bytes((out / "vanilla-seed1.near.h5").read_bytes())  # of another checkpoint
    (out / "vanilla-seed1.weights.h5").unlink()
    assert run(file, out, "--amend") == 1
    found = manifest(out)
    reasons = {row["file"]: row["reason"] for row in found["missing"]}
    assert "absent-seed0.pt: no such file" in reasons["multiplicative-seed0.near.h5"]
    assert "was measured with checkpoint.file=resnet-seed1.pt" in reasons["vanilla-seed0.near.h5"]
    assert len(found["results"]) == len(FILES) - 5
    assert all("python -m landscape." in row["command"] for row in found["missing"])
    lines = capsys.readouterr().err.splitlines()
    assert sum("absent-seed" in line for line in lines) == 4
    assert any(line.startswith("5 of 12 results are missing") for line in lines)
    # The reason stays while another part is measured.
    assert run(file, out, "--arms", "untrained vanilla", "--seeds", "3") == 0
    kept = {row["file"]: row["reason"] for row in manifest(out)["missing"]}
    assert kept == reasons


def test_a_part_of_a_study_can_be_measured(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    assert run(file, out, "--only", "near", "--arms", "vanilla", "--seeds", "1") == 0
    assert [path.name for path in out.glob("*.h5")] == ["vanilla-seed1.near.h5"]
    found = manifest(out)
    assert [row["file"] for row in found["results"]] == ["vanilla-seed1.near.h5"]
    assert {row["reason"] for row in found["missing"]} == {"not measured yet"}
    assert run(file, out, "--only", "near", "--arms", "vanilla", "--seeds", "0") == 0
    assert len(manifest(out)["results"]) == 2


def test_a_dry_run_lists_and_touches_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert run(file, out, "--dry-run", "--arms", "vanilla") == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert "4 of 4 results to measure." in printed.err
    assert not out.exists()
    (file.parent / "resnet-seed1.pt").rename(tmp_path / "elsewhere.pt")
    status = run(file, out, "--dry-run", "--arms", "vanilla")
    (tmp_path / "elsewhere.pt").rename(file.parent / "resnet-seed1.pt")
    assert status == 1
    assert "1 of 2 networks are missing, such as resnet-seed1.pt." in capsys.readouterr().err


def test_a_study_that_changed_is_refused_unless_the_change_is_to_be_recorded(
    whole: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path / "results")
    before = manifest(out)
    file.write_text(TEXT.replace("margin = 0.1", "margin = 0.3"))
    assert run(file, out) == 1
    said = capsys.readouterr().err
    assert "was begun with another study, or may have been: endpoints.gradient.margin was " in said
    assert "--amend" in said
    assert manifest(out) == before
    assert run(file, out, "--amend", "--only", "near", "--seeds", "0") == 0
    found, change = manifest(out), "endpoints.gradient.margin was 0.1, now 0.3"
    assert found["amendments"] == [{"study_sha256": before["study_sha256"], "changes": [change]}]
    # What has not been checked against the new study does not count as its result.
    assert {(row["probe"], row["seed"]) for row in found["results"]} == {("near", 0)}
    assert run(file, out, "--only", "weights", "--seeds", "0") == 0
    assert len(manifest(out)["results"]) == 6
    assert len(manifest(out)["amendments"]) == 1


def test_every_change_is_recorded_in_full(file: Path, whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "results")
    more = TEXT[TEXT.index("[[endpoints]]") :].split("[[endpoints]]")[1]
    more = more.replace("primary = true", "").replace('"gradient"', f'"{"long " * 40}"')
    file.write_text(f"{TEXT.replace('margin = 0.1', 'margin = 0.3')}\n[[endpoints]]{more}")
    assert run(file, out, "--amend", "--only", "near", "--arms", "vanilla") == 0
    (amendment,) = manifest(out)["amendments"]
    assert amendment["changes"][0] == "endpoints.gradient.margin was 0.1, now 0.3"
    assert amendment["changes"][1].count("long ") == 80  # where, and the table that was added
    assert len(amendment["changes"]) == 2


@pytest.mark.parametrize("content", ["{", "", "[]", '{"schema_version": 1}'])
def test_endpoints_cannot_be_changed_by_damage(
    content: str, whole: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path / "results")
    (out / "study.json").write_text(content)
    file.write_text(TEXT.replace("margin = 0.1", "margin = 0.3"))
    assert run(file, out) == 1
    assert "study.json was damaged" in capsys.readouterr().err
    assert run(file, out, "--amend", "--only", "near", "--arms", "vanilla") == 0
    assert "study.json was damaged" in manifest(out)["amendments"][0]["changes"][0]


def test_a_copy_is_no_other_seed(
    file: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (networks / "copy-seed0.pt").write_bytes((networks / "resnet-seed0.pt").read_bytes())
    (networks / "copy-seed1.pt").write_bytes((networks / "resnet-seed0.pt").read_bytes())
    file.write_text(TEXT.replace("resnet-seed{seed}.pt", "copy-seed{seed}.pt", 1))
    assert run(file, tmp_path / "results", "--only", "near", "--arms", "vanilla") == 1
    assert "copy-seed1.pt is the checkpoint of seed 0 as well" in capsys.readouterr().err
    assert [row["seed"] for row in manifest(tmp_path / "results")["results"]] == [0]


def test_a_result_that_another_process_measures_is_left_to_it(
    whole: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(whole, tmp_path / "results")
    path = out / "vanilla-seed0.near.h5"
    before = path.read_bytes()
    path.unlink()
    with store.locked(path):
        assert run(file, out, "--only", "near", "--arms", "vanilla", "--seeds", "0") == 1
        assert f"{path}: another process measures it now." in capsys.readouterr().err
    assert not path.exists()
    assert run(file, out, "--only", "near", "--arms", "vanilla", "--seeds", "0") == 0
    assert path.read_bytes() == before
    assert not list(out.glob(".*"))


def test_an_amended_probe_is_not_mixed_with_the_old_one(
    whole: Path, file: Path, tmp_path: Path
) -> None:
    out = copied(whole, tmp_path / "results")
    file.write_text(TEXT.replace("extent = 0.5", "extent = 0.25"))
    assert run(file, out, "--amend", "--only", "weights", "--arms", "vanilla") == 1
    reasons = {row["file"]: row["reason"] for row in manifest(out)["missing"]}
    assert (
        "was measured with extent=0.5 0.5, this run asks for extent=0.25 0.25"
        in reasons["vanilla-seed0.weights.h5"]
    )


def test_comments_may_change(whole: Path, file: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "results")
    file.write_text(TEXT + "# a remark\n")
    assert run(file, out, "--only", "near", "--arms", "vanilla", "--seeds", "0") == 0
    assert manifest(out)["amendments"] == []


@pytest.mark.parametrize(
    ("was", "now", "line"),
    [
        ('title = "Tiny"', "", "[the file] title is missing; expected a string."),
        ('title = "Tiny"', "title = ", "is no TOML file"),
        ("[problem]", "[problems]", "[the file] has no key 'problems'"),
        ("examples = 20", "example = 20", "[problem] has no key 'example'. Known: "),
        ("examples = 20", 'examples = "20"', "[problem] examples = '20'; expected a whole number."),
        ("examples = 20", 'temperature = "fitted"', "expected a number or 'fit'."),
        ('role = "baseline"', 'role = "base"', "[arms 1] role = 'base'; expected 'baseline', "),
        ('role = "baseline"', 'role = "control"', "[arms]: 0 have the role 'baseline'"),
        ("resnet-seed{seed}.pt", "resnet.pt", "expected {seed} in it, since there are 2 seeds."),
        ("seeds = [0, 1]", "seeds = []", "[arms 1] seeds = []; expected one or more"),
        ('name = "vanilla"', 'name = "a/b"', "[arms 1] name = 'a/b'; expected letters"),
        ('name = "vanilla"', 'name = "multiplicative"', "multiplicative is the name of two"),
        ('model = "resnet8"', "", "[arms 3] needs either checkpoints, or a model"),
        ('role = "negative"', 'role = "control"', "expected role = 'negative'"),
        ("calibration = 50", "calib = 50", "[arms 3.problem] has no key 'calib'"),
        ("[probes.near]", "[probes.checkpoint]", "expected a label of letters"),
        ('probe = "sensitivity"', 'probe = "sense"', "[probes.near] probe: there is no probe"),
        ('probe = "sensitivity"', "", "[probes.near] probe is missing"),
        ('parts = ["norms"]', 'part = ["norms"]', "[probes.near] has no key 'part'. Known: parts"),
        (
            'parts = ["norms"]',
            'parts = ["norm"]',
            "parts = ['norm']; expected some of norms",
        ),
        ('parts = ["norms"]', "parts = [1]", "parts = [1]; expected some of norms, jacobian"),
        ("orthogonal = true", "orthogonal = 1", "[probes.weights] orthogonal = 1; expected true"),
        ("orthogonal = true", 'to = "{next}"', ""),
        ("orthogonal = true", "seed = -1", "[probes.weights] seed -1; expected a whole number, at"),
        ("orthogonal = true", 'space = "inputs"\nto = "a"', "[probes.weights] to and directions"),
        ("examples = 20", "examples = -3", "[problem] examples -3; expected a whole number, at "),
        ("examples = 20", "temperature = -1", "[problem] temperature -1.0; expected a number"),
        ("examples = 20", 'data = "fashion"', "[problem] 'fashion' is not a known data set"),
        ("calibration = 50", "calibration = 0", "[arms 3.problem] calibration 0; expected"),
        (
            "options = { width = 4,",
            'options = { width = "x",',
            "[arms 3] resnet8: width=x; expected",
        ),
        ('claim = "near"', 'claim = "far"', "[endpoints 1] claim = 'far'; expected 'near'"),
        ("primary = true", "primary = false", "0 of claim 'near' are primary; expected exactly"),
        ('claim = "weights"', 'claim = "near"', "2 of claim 'near' are primary"),
        ('name = "volume"', 'name = "gradient"', "'gradient' is the name of two"),
        ('probe = "near"', 'probe = "nearby"', "[endpoints 1] probe = 'nearby'; expected a label"),
        ("margin = 0.1", "margin = 0.0", "[endpoints 1] margin = 0.0; expected above 0"),
        ("margin = 0.1", "", "[endpoints 1] margin is missing; expected a number."),
        ("level = 1", "", "[endpoints 2] level goes with average = 'fraction_below'"),
        ("alpha = 0 }", "alpha = [0] }", "[endpoints 2] select = {'alpha': [0]}; expected a table"),
        ('predicts = "lower"', 'predicts = "less"', "'lower', 'higher', 'above', "),
    ],
)
def test_a_mistake_in_a_study_file_is_reported_in_a_line(
    was: str, now: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert was in TEXT
    path = tmp_path / "wrong.toml"
    path.write_text(TEXT.replace(was, now, 1))
    if not line:
        read_study(str(path))
        return
    assert run(path, tmp_path / "results") == 1
    said = capsys.readouterr().err
    assert line in said
    assert said.startswith(str(path))
    assert said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_next_network_needs_two_seeds(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(TEXT.replace("orthogonal = true", 'to = "{next}"').replace("[0, 3]", "[0]"))
    with pytest.raises(ValueError, match=r"\[probes.weights\] {next}; expected two seeds"):
        read_study(str(path))


def test_the_next_network_is_that_of_the_next_seed(file: Path, tmp_path: Path) -> None:
    file.write_text(TEXT.replace("orthogonal = true", 'to = "{next}"'))
    task = Run(read_study(str(file)), tmp_path, torch.device("cpu"))
    first, second, *_, untrained = task.networks()
    assert task.spec(first, "weights")["to"] == second.file
    assert task.spec(second, "weights")["to"] == first.file
    assert task.spec(untrained, "weights")["to"] == str(tmp_path / "untrained-vanilla-seed0.pt")


@pytest.mark.parametrize(
    ("was", "now", "line"),
    [
        ('"gradient_l2"', '"gradient"', "near measures no 'gradient'. It measures loss, "),
        ("alpha = 0", "gamma = 0", "loss cannot be selected by 'gamma'; it has alpha, beta."),
    ],
)
def test_an_endpoint_that_no_probe_measures_is_reported_before_measuring(
    was: str, now: str, line: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(TEXT.replace(was, now))
    out = tmp_path / "results"
    assert run(file, out, "--arms", "vanilla", "--seeds", "0") == 1
    assert line in capsys.readouterr().err
    assert len(list(out.glob("*.h5"))) == 1


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (["--only", "far"], "--only far; expected some of near, weights."),
        (["--arms", "x"], "--arms x; expected some of vanilla, multiplicative"),
        (["--seeds", "7"], "--seeds 7; expected some of 0, 1, 3."),
        (["--jobs", "0"], "--jobs 0; expected at least 1."),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    others: list[str], line: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, tmp_path / "results", *others) == 1
    assert line in capsys.readouterr().err


def test_a_study_that_is_not_there_is_reported_with_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["absent"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "absent: no such file, nor a study that ships (there are: attention, cifar10, "
        "cross-attention, cross-attention-reverse, cross-attention-sort, "
        "cross-attention-translate, demo, fashion-mnist, spatial-attention).\n"
    )


@pytest.mark.parametrize("name", ["demo", "fashion-mnist", "cifar10"])
def test_a_study_that_ships_is_whole(name: str) -> None:
    found = read_study(name)
    assert {e.claim for e in found.endpoints} == {"near", "between", "weights", "generalises"}
    seeds = {arm.role: len(arm.seeds) for arm in found.arms}
    if name == "demo":
        assert all(checkpoint.find(arm.checkpoints) for arm in found.arms)
    else:
        # Eight pairs can reach p = 2 / 2^8 < 0.05 / 4, what Holm asks of the smallest of four.
        assert seeds["baseline"] == seeds["treatment"] == 8
        assert seeds["control"] >= 3
        assert seeds["negative"] >= 2


@pytest.mark.parametrize(
    ("name", "others"),
    [("spatial-attention", 6), ("cross-attention", 0), ("cross-attention-translate", 0)],
)
def test_a_factorial_that_ships_is_whole(name: str, others: int) -> None:
    found = read_study(name)
    assert len(found.arms) == 16 + others
    assert found.arms[6].name == "0110"
    assert {arm.seeds for arm in found.arms} == {(0, 1, 2, 3, 4)}
    files = [arm.checkpoints for arm in found.arms]
    assert len(set(files)) == len(files) and all(
        file.startswith(f"{name.removesuffix('-translate')}/") for file in files
    )
    assert len(found.content["arms"]) == len(found.arms)  # as study.json holds them
    assert set(found.content["claims"]) == {endpoint.claim for endpoint in found.endpoints}
    assert all(e.contrast and (e.test == "t" or e.probe == "cost") for e in found.endpoints)


DESIGN = """
title = "Two factors"
[problem]
examples = 20
[design]
factors = ["A"]
checkpoints = "{setting}net-seed{seed}.pt"
seeds = [0]
[[arms]]
name = "vanilla"
checkpoints = "resnet-seed{seed}.pt"
seeds = [0, 1]
[probes.near]
probe = "sensitivity"
parts = ["norms"]
arms = ["vanilla"]
[claims]
gain = "A gains"
[[endpoints]]
claim = "gain"
name = "gain"
primary = true
probe = "checkpoint"
variable = "test_accuracy_last"
contrast = { "1" = 1, "0" = -1 }
compare = "difference"
predicts = "above"
margin = 0.0
[[endpoints]]
claim = "gain"
name = "cheaper"
primary = true
probe = "cost"
variable = "flops"
contrast = { "A" = 1 }
compare = "difference"
predicts = "below"
margin = 0.0
"""


@pytest.mark.parametrize(
    ("was", "now", "line"),
    [
        ('factors = ["A"]', 'factors = ["1"]', "[design] factors = ['1']; expected 1 to 8"),
        ('factors = ["A"]', "", "[design] factors is missing"),
        ("{setting}net", "net", "[design] checkpoints = 'net-seed{seed}.pt'; expected {setting}"),
        (
            "seeds = [0]",
            "seeds = [0]\nreference = 'x'",
            "[design] reference = 'x'; expected an arm",
        ),
        ('"1" = 1', '"2" = 1', "[endpoints 1] contrast: '2' is no arm and no contrast"),
        ('"1" = 1', '"1" = 2', "[endpoints 1] contrast = {'1': 2, '0': -1}: its arms' weights"),
        ('arms = ["vanilla"]', 'arms = ["x"]', "[probes.near] arms: 'x'; expected some of"),
        ('probe = "checkpoint"', 'probe = "near"', "arm '1', on which near is not measured"),
        ('contrast = { "A" = 1 }', "", "'below' needs a contrast of arms"),
        ('name = "vanilla"', 'name = "B"\nrole = "x"', "[arms 3] role = 'x'; expected"),
        ('gain = "A gains"', "", "[endpoints 1] claim = 'gain'; expected"),
    ],
)
def test_a_mistake_in_a_design_is_reported_in_a_line(
    was: str, now: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert was in DESIGN
    (tmp_path / "wrong.toml").write_text(DESIGN.replace(was, now, 1))
    assert run(tmp_path / "wrong.toml", tmp_path / "results") == 1
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_factorial_is_measured_where_its_probes_are_asked_for_and_costs_once(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, name in (("0", "resnet"), ("1", "fmmnet")):
        shutil.copy(networks / f"{name}-seed0.pt", tmp_path / f"{setting}net-seed0.pt")
    for seed in (0, 1):
        shutil.copy(networks / f"resnet-seed{seed}.pt", tmp_path)
    (tmp_path / "own.toml").write_text(DESIGN)
    out = tmp_path / "results"
    assert run(tmp_path / "own.toml", out) == 0
    assert {path.name for path in out.glob("*.h5")} == {
        f"vanilla-seed{seed}.near.h5" for seed in (0, 1)
    }
    first = manifest(out)
    costs = [row["cost"] for row in first["checkpoints"]]
    assert len(costs) == 4 and all(cost["flops"] > 0 for cost in costs)

    def again(*_: object) -> dict[str, float]:
        raise AssertionError("measured twice")

    monkeypatch.setattr("landscape.study.folder.cost", again)
    assert run(tmp_path / "own.toml", out) == 0
    assert [row["cost"] for row in manifest(out)["checkpoints"]] == costs


def test_a_study_that_ships_is_the_one_of_the_results_that_ship() -> None:
    """Under today's names of options, which its folder records under earlier ones."""
    folder = Path(__file__).parents[3] / "results" / "fashion-mnist"
    stored = json.loads((folder / "study.json").read_text())
    assert stored["study"]["probes"]["scaled-curvature"]["scale"] == "filter"
    content = json.loads(json.dumps(read_study("fashion-mnist").content))
    assert upgrade.study(stored)["study"] == upgrade.study({**stored, "study": content})["study"]


def test_an_option_by_its_earlier_name_is_no_change(tmp_path: Path) -> None:
    text = 'base = "fashion-mnist"\ntitle = "t"\n[probes.scaled-curvature]\nscale = "{}"\n'
    found = []
    for name in ("filter", "relative"):
        (tmp_path / "own.toml").write_text(text.format(name))
        found.append(read_study(str(tmp_path / "own.toml")))
    assert found[0].content == found[1].content
    assert found[0].probes == found[1].probes


def test_a_study_replaces_what_it_says_otherwise_than_its_base(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        f"base = {str(file)!r}\ntitle = 'Own'\n[problem]\nexamples = 7\n"
        "[probes.near]\nradii = [0.5]\n"
    )
    base, made = read_study(str(file)), read_study(str(own))
    assert made.title == "Own"
    assert made.problem == {**base.problem, "examples": 7}
    assert made.arms == base.arms
    changed = ("sensitivity", {**base.probes["near"][1], "radii": (0.5,)})
    assert made.probes == {**base.probes, "near": changed}
    assert made.endpoints == base.endpoints
    digest = made.sha256
    file.write_text(TEXT + "# a remark\n")
    assert read_study(str(own)).sha256 != digest


def test_a_study_leaves_out_a_probe_of_its_base_with_its_endpoints() -> None:
    base, made = read_study("fashion-mnist"), read_study("demo")
    assert set(base.probes) - set(made.probes) == {"barrier"}
    assert made.endpoints == tuple(e for e in base.endpoints if e.probe != "barrier")
    assert len(made.endpoints) < len(base.endpoints)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base = 3\n", "base = 3; expected a string."),
        ("base = 'nowhere'\n", "nowhere: no such file, nor a study that ships"),
        ("base = 'own.toml'\n", "base = 'own.toml' leads back to the file itself."),
        ("base = 'cifar10'\nprobes = 3\n", "probes = 3; expected a table."),
        ("base = 'cifar10'\nend = 3\n", "has no key 'end'"),
        ("base = 'cifar10'\n[probes.near]\nradius = 1\n", "[probes.near] has no key 'radius'"),
        (
            "base = 'cifar10'\nprobes = { far = false }\n",
            "far = false; its base has no such probe.",
        ),
        ("base = 'demo'\nprobes = { between = false }\n", "claim 'between' without an endpoint"),
        ("base = 'other.toml'\n", "other.toml: [the file] title is missing"),
    ],
)
def test_a_mistake_about_the_base_is_reported_in_a_line(
    tmp_path: Path, text: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "other.toml").write_text("[probes]\n")
    assert run(tmp_path / "own.toml", tmp_path / "results") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert found in lines[0]


def test_one_killed_worker_costs_its_own_results_alone(
    networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kill.py").write_text(
        "import multiprocessing, os, signal\n"
        "from checkpoints.models.resnet import ResNet\n"
        "def build(**options):\n"
        "    if multiprocessing.parent_process() is not None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return ResNet(8, merge='bn_product_mean1', **options)\n"
    )
    own = 'seeds = [0, 1]\n[[arms]]\nname = "untrained'
    assert own in TEXT
    options = "options = { width = 4, channels = 1, classes = 10 }"
    model = f'problem = {{ model = "{tmp_path}/kill.py:build", {options} }}\n'
    (tmp_path / "tiny.toml").write_text(
        TEXT.replace(own, model + own)
        .replace("seeds = [0, 1]", "seeds = [0]")  # every network costs a process of its own
        .replace("seeds = [0, 3]", "seeds = [0]")
        .replace('"resnet-seed', f'"{networks}/resnet-seed')
        .replace('"fmmnet-seed{seed}.pt"', f'"{networks}/fmmnet-seed{{seed}}.pt"')
    )
    out = tmp_path / "results"
    assert run(tmp_path / "tiny.toml", out, "--jobs", "2") == 1
    missing = {row["file"] for row in manifest(out)["missing"]}
    files = {name for name in FILES if "seed0" in name}
    assert missing == {name for name in files if name.startswith("multiplicative")}
    assert {path.name for path in out.glob("*.h5")} == files - missing
    assert "its process was killed" in capsys.readouterr().err


def test_edits_of_a_finished_study_are_noticed(whole: Path, tmp_path: Path) -> None:
    """A prediction turned round, or a result of another run in a result's place."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    assert not analysis_study.read(folder).manifest["missing"]
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace('"predicts": "lower"', '"predicts": "higher"'))
    with pytest.raises(ValueError, match="its study table was edited after it was written"):
        analysis_study.read(folder)
    (folder / "study.json").write_text(text)
    name = "vanilla-seed0.near.h5"
    other = store.load(folder / name)
    other["loss"].values[0] = 7.0
    store.save(other, folder / name)
    with pytest.raises(ValueError, match="is not the file that the study measured"):
        analysis_study.read(folder).load("vanilla", 0, "near", name)
