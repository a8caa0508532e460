from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import landscape
from checkpoints.data import archive, arrays, cifar, fashion_mnist, folder, npz, pickled, sample
from checkpoints.data.images import Images, Split, interleave
from checkpoints.registry import DATASETS, load_images
from checkpoints.source import load_problem

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SAMPLE_FINGERPRINT = "56cec863ca39bbf19a4d8b5e7362877ad010a5be43104733211c39ccdaaf58f2"
TEST_FINGERPRINT = "3581bf52f521803120533f28e81ae934decd1771980630083c739dc6da7d3bc6"


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, no packages, no data folder and no public address but what a test sets up."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("LANDSCAPE_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", "http://127.0.0.1:9/")
    monkeypatch.setattr(cifar, "ADDRESS", "http://127.0.0.1:9/")


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError that `call` raises, which must be one line."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_below(place: Path) -> list[str]:
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())


def fill(place: Path, files: dict[str, bytes]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by name; says of each that it is `missing` bytes longer than it is."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.missing = 0
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.missing))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(fashion_mnist, "ADDRESS", running.address)
        monkeypatch.setattr(cifar, "ADDRESS", running.address)
        yield running
        running.shutdown()
        thread.join()


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def clothes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files of a Fashion-MNIST of 12 images a split, packed; their digests are known."""
    random = np.random.default_rng(0)
    plain = {}
    for prefix in ("train", "t10k"):
        plain[f"{prefix}-images-idx3-ubyte"] = idx(random.integers(0, 256, (12, 28, 28)))
        plain[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(12) % 10)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in plain.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", digests)
    return {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}


@pytest.mark.parametrize("subfolder", ["", "fashion-mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_root_packed_or_plain(
    clothes: dict[str, bytes], tmp_path: Path, subfolder: str, packed: bool
) -> None:
    plain = {name.removesuffix(".gz"): gzip.decompress(c) for name, c in clothes.items()}
    fill(tmp_path / "root" / subfolder, clothes if packed else plain)
    images = fashion_mnist.load("train", tmp_path / "root")
    assert images.pixels.shape == (12, 1, 28, 28)
    assert images.pixels.tobytes() == plain["train-images-idx3-ubyte"][16:]
    assert images.labels.tolist() == [*range(10), 0, 1]
    assert (images.name, images.split) == ("fashion-mnist", "train")
    assert len(images.classes) == 10


def test_splits_of_fashion_mnist_come_from_different_files(
    clothes: dict[str, bytes], tmp_path: Path
) -> None:
    fill(tmp_path, clothes)
    train, test = (fashion_mnist.load(split, tmp_path) for split in ("train", "test"))
    assert train.fingerprint() != test.fingerprint()


def test_root_comes_before_the_variable_before_debian_before_the_cache(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "home" / ".cache" / "cnn-landscape" / "fashion-mnist"
    root, variable = tmp_path / "root", tmp_path / "variable"
    places = [root, root / "fashion-mnist", variable, variable / "fashion-mnist"]
    places += [tmp_path / "debian", cache]
    monkeypatch.setenv("LANDSCAPE_DATA", str(variable))
    for place in places:
        fill(place, clothes)
    for place in places:  # what lies in the first place is damaged, so its name is in the refusal
        fill(place, {"t10k-images-idx3-ubyte.gz": b"damaged"})
        message = refusal(lambda: fashion_mnist.load("test", root))
        assert f"{place / 't10k-images-idx3-ubyte.gz'} is not Fashion-MNIST's" in message
        for name in clothes:
            (place / name).unlink()


def test_download_is_verified_and_kept_in_root(
    clothes: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    server.files = clothes
    first = fashion_mnist.load("test", tmp_path / "root")
    again = fashion_mnist.load("test", tmp_path / "root")
    assert first.fingerprint() == again.fingerprint()
    assert server.asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert files_below(tmp_path) == [f"root/fashion-mnist/{name}" for name in server.asked]


def test_download_without_root_goes_to_the_variable_or_the_cache(
    clothes: dict[str, bytes], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = clothes
    fashion_mnist.load("test")
    assert len(files_below(tmp_path / "home" / ".cache" / "cnn-landscape" / "fashion-mnist")) == 2
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path / "variable"))
    fashion_mnist.load("train")
    assert len(files_below(tmp_path / "variable" / "fashion-mnist")) == 2


def test_download_with_other_content_is_refused_and_leaves_nothing(
    clothes: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    other = idx(np.zeros((12, 28, 28)))
    server.files = clothes | {"t10k-images-idx3-ubyte.gz": gzip.compress(other)}
    message = refusal(lambda: fashion_mnist.load("test", tmp_path))
    assert hashlib.sha256(other).hexdigest() in message
    assert fashion_mnist.SHA256["t10k-images-idx3-ubyte"] in message
    assert files_below(tmp_path) == []


def test_web_page_in_place_of_the_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.files = {"t10k-images-idx3-ubyte.gz": b"<html>Please log in</html>"}
    assert "3c68746d" in refusal(lambda: fashion_mnist.load("test", tmp_path))
    assert files_below(tmp_path) == []


def test_absent_address_is_named_with_the_folders_tried_and_the_remedy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path / "variable"))
    root = tmp_path / "root"
    message = refusal(lambda: fashion_mnist.load("train", root))
    assert "404" in message
    assert f"{server.address}train-images-idx3-ubyte.gz" in message
    for place in (root, root / "fashion-mnist", tmp_path / "variable", tmp_path / "debian"):
        assert str(place) in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert message.endswith(
        f"put train-images-idx3-ubyte.gz in {root / 'fashion-mnist'} and pass --data-root "
        f"{root / 'fashion-mnist'}."
    )
    assert not root.exists()


def test_truncated_download_is_refused_and_leaves_nothing(
    clothes: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    server.files, server.missing = clothes, 10
    size = len(clothes["t10k-images-idx3-ubyte.gz"])
    message = refusal(lambda: fashion_mnist.load("test", tmp_path))
    assert f"it ended after {size} of {size + 10} bytes" in message
    assert files_below(tmp_path) == []


def test_unreachable_server_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, so that nobody else listens there, but not listening
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(fashion_mnist, "ADDRESS", address)
        message = refusal(lambda: fashion_mnist.load("test", tmp_path))
    assert address in message
    assert "refused" in message


def test_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("checkpoints.data.archive.TIMEOUT", 0.05)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(fashion_mnist, "ADDRESS", address)
        assert "timed out" in refusal(lambda: fashion_mnist.load("test", tmp_path))


def test_root_that_is_a_file_gives_one_line(
    clothes: dict[str, bytes], server: Server, tmp_path: Path
) -> None:
    server.files = clothes
    (tmp_path / "root").write_text("")
    assert str(tmp_path / "root") in refusal(lambda: fashion_mnist.load("test", tmp_path / "root"))


def test_other_data_set_with_the_same_file_names_is_refused(
    clothes: dict[str, bytes], tmp_path: Path
) -> None:
    digits = idx(np.full((12, 28, 28), 7))
    fill(tmp_path, clothes | {"train-images-idx3-ubyte.gz": gzip.compress(digits)})
    message = refusal(lambda: fashion_mnist.load("train", tmp_path))
    assert "is not Fashion-MNIST's train-images-idx3-ubyte" in message
    assert hashlib.sha256(digits).hexdigest() in message


@pytest.mark.parametrize("kept", [1, 5, 15, 200])
def test_truncated_gzip_is_refused(clothes: dict[str, bytes], tmp_path: Path, kept: int) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    fill(tmp_path, clothes | {name: clothes[name][:kept]})
    assert str(tmp_path / name) in refusal(lambda: fashion_mnist.load("test", tmp_path))


def test_more_images_than_labels_are_refused(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = idx(np.arange(11) % 10)
    digest = hashlib.sha256(fewer).hexdigest()
    monkeypatch.setitem(fashion_mnist.SHA256, "t10k-labels-idx1-ubyte", digest)
    fill(tmp_path, clothes | {"t10k-labels-idx1-ubyte.gz": gzip.compress(fewer)})
    message = refusal(lambda: fashion_mnist.load("test", tmp_path))
    assert "(11,)" in message
    assert "(12,)" in message


def test_label_beyond_nine_is_refused(
    clothes: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = idx(np.full(12, 10))
    digest = hashlib.sha256(labels).hexdigest()
    monkeypatch.setitem(fashion_mnist.SHA256, "t10k-labels-idx1-ubyte", digest)
    fill(tmp_path, clothes | {"t10k-labels-idx1-ubyte.gz": gzip.compress(labels)})
    assert "10 to 10; expected 0 to 9" in refusal(lambda: fashion_mnist.load("test", tmp_path))


def test_idx_file_gives_back_its_array() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(fashion_mnist.parse_idx(idx(array), axes=3), array)


@pytest.mark.parametrize(
    ("content", "axes", "reason"),
    [
        (b"", 1, "starts with nothing"),
        (b"\0\0\x08", 1, "starts with 000008"),
        (idx(np.zeros(3)), 3, "expected 00000803"),
        (b"\0\0\x0d\x01" + idx(np.zeros(3))[4:], 1, "starts with 00000d01"),
        (b"\0\0\x08\x03\0\0", 3, "has 6 bytes"),
        (idx(np.zeros(3))[:-1], 1, "holds 2 values; expected 3"),
        (idx(np.zeros(3)) + b"\0", 1, "holds 4 values; expected 3"),
    ],
)
def test_idx_file_of_another_form_is_refused(content: bytes, axes: int, reason: str) -> None:
    assert reason in refusal(lambda: fashion_mnist.parse_idx(content, axes))


# CIFAR


def photographs(count: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, random.integers(0, classes, count).tolist()


def python_2_pickle(batch: dict[str, object]) -> bytes:
    """The batch as Python 2 and the numpy of 2009 wrote it: byte strings, protocol 2."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content

    def value(v: object) -> bytes:
        if isinstance(v, bytes):
            return text(v)
        if isinstance(v, int):
            return b"J" + struct.pack("<i", v)
        if isinstance(v, list):
            return b"](" + b"".join(value(item) for item in v) + b"e"
        assert isinstance(v, np.ndarray)
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + value(0) + b"\x85"
        made += text(b"b") + b"\x87R(" + value(1) + value(v.shape[0]) + value(v.shape[1]) + b"\x86"
        made += b"cnumpy\ndtype\n" + text(b"u1") + value(0) + value(1) + b"\x87R"
        made += b"(" + value(3) + text(b"|") + b"NNN" + value(-1) + value(-1) + value(0) + b"tb"
        return made + b"\x89" + text(v.tobytes()) + b"tb"

    items = b"".join(text(key.encode()) + value(item) for key, item in batch.items())
    return b"\x80\x02}(" + items + b"u."


def python_3_pickle(batch: dict[str, object]) -> bytes:
    return pickle.dumps(batch, protocol=2)


def cifar10_batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {name: photographs(4, 10, seed) for seed, name in enumerate(names)}


def binary_10() -> dict[str, bytes]:
    files = {}
    for name, (pixels, labels) in cifar10_batches().items():
        rows = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
        files[f"{name}.bin"] = rows.tobytes()
    names = "\n".join(cifar._CLASSES_10) + "\n\n"
    return files | {"batches.meta.txt": names.encode()}


def python_10(write: Callable[[dict[str, object]], bytes] = python_2_pickle) -> dict[str, bytes]:
    files = {}
    for name, (pixels, labels) in cifar10_batches().items():
        batch = {"batch_label": b"a batch", "labels": labels, "data": pixels}
        files[name] = write(batch | {"filenames": [b"one.png", b"two.png"]})
    names: list[object] = [name.encode() for name in cifar._CLASSES_10]
    return files | {"batches.meta": write({"num_vis": 3072, "label_names": names})}


FINE = [f"fine{label}" for label in range(100)]


def binary_100() -> dict[str, bytes]:
    files = {}
    for seed, name in enumerate(("train", "test")):
        pixels, fine = photographs(6, 100, seed)
        labels = np.array([[label // 5, label] for label in fine], dtype=np.uint8)
        files[f"{name}.bin"] = np.concatenate([labels, pixels], axis=1).tobytes()
    return files | {"fine_label_names.txt": "\n".join(FINE).encode()}


def python_100() -> dict[str, bytes]:
    files = {}
    for seed, name in enumerate(("train", "test")):
        pixels, fine = photographs(6, 100, seed)
        coarse = [label // 5 for label in fine]
        files[name] = python_2_pickle(
            {"coarse_labels": coarse, "fine_labels": fine, "data": pixels}
        )
    names: list[object] = [name.encode() for name in FINE]
    return files | {"meta": python_2_pickle({"fine_label_names": names})}


def packed(files: dict[str, bytes], top: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


FORMS_10 = {
    "cifar-10-batches-bin": binary_10,
    "cifar-10-batches-py": python_10,
}
ARCHIVES_10 = {
    "cifar-10-binary.tar.gz": "cifar-10-batches-bin",
    "cifar-10-python.tar.gz": "cifar-10-batches-py",
}
FORMS_100 = {"cifar-100-binary": binary_100, "cifar-100-python": python_100}


@pytest.mark.parametrize("form", [*FORMS_10, *ARCHIVES_10])
@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_every_form_of_cifar10_gives_the_same_images(
    tmp_path: Path, form: str, subfolder: str
) -> None:
    place = tmp_path / subfolder
    if form in FORMS_10:
        fill(place / form, FORMS_10[form]())
    else:
        top = ARCHIVES_10[form]
        fill(place, {form: packed(FORMS_10[top](), top)})
    before = files_below(tmp_path)
    train, test = cifar.load10("train", tmp_path), cifar.load10("test", tmp_path)
    *batches, (test_pixels, test_labels) = cifar10_batches().values()
    assert train.pixels.shape == (20, 3, 32, 32)
    assert train.pixels.tobytes() == b"".join(pixels.tobytes() for pixels, _ in batches)
    assert train.labels.tolist() == [label for _, labels in batches for label in labels]
    assert test.pixels.tobytes() == test_pixels.tobytes()
    assert test.labels.tolist() == test_labels
    assert (test.classes, test.name) == (cifar._CLASSES_10, "cifar10")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("form", FORMS_100)
@pytest.mark.parametrize("archived", [True, False])
def test_every_form_of_cifar100_gives_the_fine_labels(
    tmp_path: Path, form: str, archived: bool
) -> None:
    files = FORMS_100[form]()
    if archived:
        fill(tmp_path, {f"{form}.tar.gz": packed(files, form)})
    else:
        fill(tmp_path / form, files)
    for seed, split in enumerate(("train", "test")):
        images = cifar.load100(split, tmp_path)
        pixels, fine = photographs(6, 100, seed)
        assert images.pixels.tobytes() == pixels.tobytes()
        assert images.labels.tolist() == fine
        assert images.classes == tuple(FINE)


def test_channels_of_cifar_are_planes_of_rows(tmp_path: Path) -> None:
    row = np.arange(3072) // 32 % 32  # the number of the image row, in each of the three planes
    files = binary_10() | {"test_batch.bin": bytes([3]) + row.astype(np.uint8).tobytes()}
    fill(tmp_path / "cifar-10-batches-bin", files)
    pixels = cifar.load10("test", tmp_path).pixels
    expected = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None], (1, 3, 32, 32))
    np.testing.assert_array_equal(pixels, expected)


def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "cifar-10-batches-py", python_10(python_3_pickle))
    fill(tmp_path / "b" / "cifar-10-batches-py", python_10(python_2_pickle))
    one, other = (cifar.load10("train", tmp_path / place) for place in "ab")
    assert one.fingerprint() == other.fingerprint()


def test_pickled_array_stored_by_columns_is_read_right() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    loaded = pickled.read(pickle.dumps({"data": array}, protocol=2), "batch")["data"]
    assert isinstance(loaded, np.ndarray)
    np.testing.assert_array_equal(loaded, array)


def test_classes_without_meta_file_have_default_names(tmp_path: Path) -> None:
    files = binary_10()
    del files["batches.meta.txt"]
    fill(tmp_path / "cifar-10-batches-bin", files)
    assert cifar.load10("test", tmp_path).classes[:2] == ("airplane", "automobile")
    hundred = python_100()
    del hundred["meta"]
    fill(tmp_path / "cifar-100-python", hundred)
    classes = cifar.load100("test", tmp_path).classes
    assert (classes[0], classes[-1], len(classes)) == ("class 0", "class 99", 100)


def test_cifar_is_fetched_as_binary_archive_and_verified(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cifar-10-binary.tar.gz"
    content = packed(binary_10(), "cifar-10-batches-bin")
    server.files = {name: content}
    message = refusal(lambda: cifar.load10("test", tmp_path))
    assert "MD5" in message
    assert cifar.MD5[name] in message
    assert files_below(tmp_path) == []
    monkeypatch.setitem(cifar.MD5, name, hashlib.md5(content).hexdigest())
    assert len(cifar.load10("test", tmp_path)) == 4
    assert files_below(tmp_path) == [f"cifar10/{name}"]


class Hostile:
    """Makes a folder when its pickle is read by pickle.load."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path, file: str) -> None:
    trap = tmp_path / "trap"
    attack = pickle.dumps({"data": Hostile(trap)}, protocol=2)
    fill(tmp_path / "cifar-10-batches-py", python_10() | {file: attack})
    message = refusal(lambda: cifar.load10("test", tmp_path))
    assert f"asks for the Python object {os.mkdir.__module__}.mkdir" in message
    assert not trap.exists()
    pickle.loads(attack)  # the trap works
    assert trap.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"c_codecs\ndecode\n.",
        b"cnumpy\nload\n.",
    ],
)
def test_every_way_to_import_in_a_pickle_is_closed(attack: bytes) -> None:
    assert "asks for the Python object" in refusal(lambda: pickled.read(attack, "batch"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        python_2_pickle({"data": np.zeros((2, 3), np.uint8)})[:-20],
        pickle.dumps({"data": np.array([None, "object"])}, protocol=2),
        pickle.dumps({"data": np.zeros(3, np.float32)}, protocol=2),
        pickle.dumps([1, 2], protocol=2),
        b"c_codecs\nencode\n(Vtext\nVbz2\ntR.",
        b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.",
    ],
)
def test_pickle_of_anything_but_a_dictionary_of_bytes_is_refused(content: bytes) -> None:
    assert refusal(lambda: pickled.read(content, "the batch")).startswith("the batch ")


def test_members_outside_the_folder_of_the_archive_are_ignored(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in ("../evil", str(tmp_path / "evil"), "elsewhere/test_batch.bin"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    fill(tmp_path / "root", {"cifar-10-binary.tar.gz": stream.getvalue()})
    message = refusal(lambda: cifar.load10("test", tmp_path / "root"))
    assert "has no test_batch.bin" in message
    assert files_below(tmp_path) == ["root/cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_archive_is_refused(tmp_path: Path, part: float) -> None:
    content = packed(binary_10(), "cifar-10-batches-bin")
    fill(tmp_path, {"cifar-10-binary.tar.gz": content[: int(part * len(content))]})
    message = refusal(lambda: cifar.load10("test", tmp_path))
    assert str(tmp_path / "cifar-10-binary.tar.gz") in message


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (binary_10() | {"test_batch.bin": bytes(3073 * 2 - 1)}, "has 6145 bytes; expected rows"),
        (binary_10() | {"test_batch.bin": b""}, "has 0 bytes"),
        (binary_10() | {"test_batch.bin": bytes([10]) + bytes(3072)}, "the label 10"),
        (binary_10() | {"batches.meta.txt": b"airplane\nautomobile\n"}, "names 2 classes"),
        (
            {name: c for name, c in binary_10().items() if name != "test_batch.bin"},
            "has no test_batch.bin",
        ),
    ],
)
def test_binary_cifar_of_another_form_is_refused(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    fill(tmp_path / "cifar-10-batches-bin", files)
    assert reason in refusal(lambda: cifar.load10("test", tmp_path))


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"labels": [0]}, "`data` is NoneType"),
        ({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, "`data` is (2, 5)"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "`labels` must be a list of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "`labels` must be"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, b"1"]}, "`labels` must be"),
    ],
)
def test_python_cifar_of_another_form_is_refused(
    tmp_path: Path, batch: dict[str, object], reason: str
) -> None:
    files = python_10() | {"test_batch": python_2_pickle(batch)}
    fill(tmp_path / "cifar-10-batches-py", files)
    assert reason in refusal(lambda: cifar.load10("test", tmp_path))


# npz and arrays

PIXELS = np.random.default_rng(1).integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def made(x: object, y: object = LABELS, split: Split = "test") -> Images:
    return arrays.to_images(x, y, classes=None, name="mine", split=split)


def test_every_order_of_axes_gives_the_same_images() -> None:
    np.testing.assert_array_equal(made(PIXELS).pixels, PIXELS)
    np.testing.assert_array_equal(made(PIXELS.transpose(0, 2, 3, 1)).pixels, PIXELS)
    grey = PIXELS[:, :1]
    np.testing.assert_array_equal(made(grey).pixels, grey)
    np.testing.assert_array_equal(made(grey[:, 0]).pixels, grey)
    np.testing.assert_array_equal(made(grey.transpose(0, 2, 3, 1)).pixels, grey)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_float_pixels_of_8_bits_come_back_exactly(dtype: str) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    floats = (levels / 255).astype(dtype)
    np.testing.assert_array_equal(made(floats, [0]).pixels, levels)
    rounded = np.clip(floats + np.asarray(5e-7, dtype), 0, 1)  # half of what is allowed
    np.testing.assert_array_equal(made(rounded, [0]).pixels, levels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, ">i2"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_labels_of_any_integer_type_are_taken(dtype: str, shape: tuple[int, ...]) -> None:
    images = made(PIXELS, LABELS.astype(dtype).reshape(shape))
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == LABELS.tolist()
    assert images.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (np.zeros((6, 3, 8, 3), np.uint8), LABELS, "may be (N, C, H, W) or (N, H, W, C)"),
        (np.zeros((6, 2, 8, 8), np.uint8), LABELS, "where C is 1 (grey) or 3 (RGB)"),
        (np.zeros((6, 64), np.uint8), LABELS, "the shape (6, 64)"),
        (np.zeros((6, 3, 8, 8, 1), np.uint8), LABELS, "the shape (6, 3, 8, 8, 1)"),
        (np.zeros((0, 3, 8, 8), np.uint8), LABELS[:0], "there are no images"),
        (np.zeros((6, 3, 8, 8), np.int64), LABELS, "the pixels are int64"),
        (PIXELS / 254, LABELS, "run from 0 to 1.0039"),
        (PIXELS / 255 - 0.5, LABELS, "expected 0 to 1"),
        (np.where(PIXELS > 9, np.nan, 0.0), LABELS, "run from nan to nan"),
        (PIXELS / 256, LABELS, "away from a multiple of 1/255"),
        (PIXELS / 255 * (1 - 3e-6), LABELS, "away from a multiple of 1/255"),
        (PIXELS, LABELS[:5], "shape (5,)"),
        (PIXELS, LABELS / 1.0, "the labels are float64"),
        (PIXELS, np.eye(6, dtype=int), "of shape (6, 6)"),
        (PIXELS, LABELS - 1, "run from -1 to 1"),
        (PIXELS, LABELS + 2**40, "at most 65536 classes"),
        (PIXELS, np.full(6, 2**64 - 1, np.uint64), "run from -1"),
    ],
)
def test_arrays_that_are_no_images_are_refused(x: object, y: object, reason: str) -> None:
    message = refusal(lambda: made(x, y))
    assert message.startswith("mine (test): ")
    assert reason in message


def test_npz_gives_back_what_was_stored(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    names = np.array(["cat", "dog", "owl"])
    np.savez(
        file, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:2], y_test=[2, 2], class_names=names
    )
    train, test = (load_images(f"npz:{file}", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.pixels, PIXELS)
    np.testing.assert_array_equal(test.pixels, PIXELS[:2])
    assert test.labels.tolist() == [2, 2]
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert (train.name, train.split) == (f"npz:{file}", "train")


def test_unnamed_classes_are_counted_over_both_splits(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, x_test=PIXELS, y_test=LABELS * 0, y_train=[4])
    assert npz.load("test", file).classes == tuple(f"class {label}" for label in range(5))


def test_npz_needs_only_the_keys_of_the_split(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, x_test=PIXELS, y_test=LABELS)
    assert len(npz.load("test", file)) == 6
    message = refusal(lambda: npz.load("train", file))
    assert "has no x_train and no y_train; its keys are x_test, y_test" in message


def test_npz_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    file, trap = tmp_path / "some.npz", tmp_path / "trap"
    np.savez(file, x_test=PIXELS, y_test=np.array([Hostile(trap)], dtype=object))
    assert "allow_pickle=False" in refusal(lambda: npz.load("test", file))
    assert not trap.exists()


def test_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    absent, text, single, cut = (tmp_path / name for name in ("a.npz", "b.npz", "c.npy", "d.npz"))
    text.write_text("not arrays")
    np.save(single, PIXELS)
    np.savez(tmp_path / "whole.npz", x_test=PIXELS, y_test=LABELS)
    cut.write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    assert refusal(lambda: npz.load("test", absent)) == f"npz:{absent}: there is no such file."
    for file in (text, single, cut):
        assert f"npz:{file} is not an npz file" in refusal(lambda file=file: npz.load("test", file))


def test_npz_with_damaged_content_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, x_test=PIXELS, y_test=LABELS)
    content = bytearray(file.read_bytes())
    content[300] ^= 255
    file.write_bytes(content)
    assert f"npz:{file} cannot be read" in refusal(lambda: npz.load("test", file))


def test_class_names_that_are_no_list_of_strings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, x_test=PIXELS, y_test=LABELS, class_names=np.arange(3))
    assert "class_names is int64" in refusal(lambda: npz.load("test", file))
    np.savez(file, x_test=PIXELS, y_test=LABELS, class_names=np.array(["a", "b"]))
    assert "for 2 classes" in refusal(lambda: npz.load("test", file))


@pytest.mark.parametrize(
    ("name", "train", "test"), [("cifar10-12k", 10000, 2000), ("clothing10-cc0", 3068, 372)]
)
def test_real_npz_files_are_read(name: str, train: int, test: int) -> None:
    file = SHARED / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    for split, count in (("train", train), ("test", test)):
        images = load_images(f"npz:{file}", split)
        assert images.pixels.shape == (count, 3, 32, 32)
        assert len(images.classes) == 10
        with np.load(file) as stored:
            expected = stored[f"x_{split}"][count - 1, :, 0, 2]
        np.testing.assert_array_equal(images.pixels[-1, 2, :, 0], expected)


# folders of image files


def picture(file: Path, mode: str = "RGB", height: int = 4, width: int = 6, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values).save(file)


def test_folder_gives_the_pixels_of_its_files_in_order_of_names(tmp_path: Path) -> None:
    for seed, file in enumerate(("dog/b.png", "cat/2.png", "dog/a.bmp", "cat/1.png")):
        picture(tmp_path / "test" / file, seed=seed)
    images = load_images(f"folder:{tmp_path}", "test")
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.name == f"folder:{tmp_path}"
    for pixels, file in zip(
        images.pixels, ("cat/1.png", "cat/2.png", "dog/a.bmp", "dog/b.png"), strict=True
    ):
        with Image.open(tmp_path / "test" / file) as image:
            np.testing.assert_array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


def test_splits_of_a_folder_share_their_classes(tmp_path: Path) -> None:
    for file in ("train/cat/1.png", "train/dog/1.png", "train/owl/1.png", "test/owl/1.png"):
        picture(tmp_path / file)
    test = folder.load("test", tmp_path)
    assert test.classes == folder.load("train", tmp_path).classes == ("cat", "dog", "owl")
    assert test.labels.tolist() == [2]


def test_folder_without_splits_serves_as_test_only(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    assert folder.load("test", tmp_path).split == "test"
    assert "serve as test only" in refusal(lambda: folder.load("train", tmp_path))


def test_split_that_the_folder_lacks_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "1.png")
    message = refusal(lambda: folder.load("test", tmp_path))
    assert message == f"folder:{tmp_path}: there is train, but no folder named test."


def test_folder_stays_grey_only_where_all_images_are(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png", "L")
    assert folder.load("test", tmp_path).pixels.shape == (1, 1, 4, 6)
    picture(tmp_path / "cat" / "2.png", "RGBA")
    pixels = folder.load("test", tmp_path).pixels
    assert pixels.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(pixels[0, 0], pixels[0, 2])


def test_bilevel_image_is_black_and_white(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "cat" / "1.png")
    np.testing.assert_array_equal(folder.load("test", tmp_path).pixels[0, 0], 255 * np.eye(4))


def test_palette_image_with_transparency_shows_its_colours(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "cat" / "1.png", transparency=b"\x00\x80")
    pixels = folder.load("test", tmp_path).pixels
    np.testing.assert_array_equal(pixels[0, :, 0, 0], [10, 20, 30])


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png", height=4, width=6)
    picture(tmp_path / "cat" / "2.png", height=4, width=6)
    picture(tmp_path / "dog" / "1.png", height=6, width=4)
    message = refusal(lambda: folder.load("test", tmp_path))
    assert str(tmp_path / "cat" / "1.png") in message
    assert str(tmp_path / "dog" / "1.png") in message
    assert "--size 4 6" in message
    assert load_images(f"folder:{tmp_path}", "test", size=(5, 8)).pixels.shape == (3, 3, 5, 8)
    assert folder.load("test", tmp_path, size=5).pixels.shape == (3, 3, 5, 5)


def test_shrinking_averages_over_the_whole_image(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing some columns would come out black or white
    (tmp_path / "cat").mkdir()
    Image.fromarray(stripes).save(tmp_path / "cat" / "1.png")
    small = folder.load("test", tmp_path, size=8).pixels
    assert small.min() > 100
    assert small.max() < 155


def test_notes_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    for name in ("README.md", "cat/labels.TXT", "cat/about.json", "cat/.DS_Store", ".git"):
        (tmp_path / name).write_text("a note")
    assert len(folder.load("test", tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("cat/2.csv", "cat/2.csv is not an image that Pillow can read"),
        ("loose.png", "loose.png is out of place"),
        ("cat/inner/1.png", "cat/inner is out of place"),
    ],
)
def test_what_does_not_belong_in_the_folder_is_named(
    tmp_path: Path, file: str, reason: str
) -> None:
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("no image")
    assert f"{tmp_path}/{reason}" in refusal(lambda: folder.load("test", tmp_path))


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_truncated_image_is_named(tmp_path: Path, extension: str) -> None:
    file = tmp_path / "cat" / f"1.{extension}"
    picture(file, height=40, width=40)
    assert len(folder.load("test", tmp_path)) == 1
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert str(file) in refusal(lambda: folder.load("test", tmp_path))


def test_image_of_16_bits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "cat" / "1.png")
    assert "expected 8-bit grey or RGB" in refusal(lambda: folder.load("test", tmp_path))


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert "no such folder" in refusal(lambda: folder.load("test", absent))
    assert "contains no images" in refusal(lambda: folder.load("test", tmp_path))
    assert "at least 1" in refusal(lambda: folder.load("test", tmp_path, size=0))


# the sample


def test_sample_is_balanced_at_every_length() -> None:
    images = sample.load("test")
    assert images.pixels.shape == (2000, 1, 28, 28)
    assert images.labels.tolist() == [*range(10)] * 200
    assert images.classes == fashion_mnist.CLASSES


def test_sample_has_its_known_fingerprint() -> None:
    assert sample.load("test").fingerprint() == SAMPLE_FINGERPRINT


def test_sample_states_where_it_comes_from() -> None:
    file = Path(sample.__file__).parents[1] / "files" / sample.FILE
    with np.load(file, allow_pickle=False) as stored:
        assert str(stored["provenance"]) == sample.PROVENANCE
        index = stored["index"]
    assert len(set(index.tolist())) == 2000
    for start in range(10):  # within a class the order of the test set is kept
        assert (np.diff(index[start::10]) > 0).all()
    assert "MIT" in (file.parent / "LICENSE-fashion-mnist").read_text(encoding="utf-8")


def test_sample_has_no_training_images() -> None:
    assert "--data fashion-mnist" in refusal(lambda: sample.load("train"))


def test_sample_equals_what_is_made_from_the_full_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Path("/usr/share/datasets/fashion-mnist")
    if not installed.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", installed)
    full = fashion_mnist.load("test")
    assert full.fingerprint() == TEST_FINGERPRINT
    sample.make(tmp_path / "made.npz")
    with np.load(tmp_path / "made.npz") as again:
        x, y, index = again["x_test"], again["y_test"], again["index"]
    stored = sample.load("test")
    np.testing.assert_array_equal(x, stored.pixels)
    np.testing.assert_array_equal(y, stored.labels)
    np.testing.assert_array_equal(full.pixels[index], x)
    np.testing.assert_array_equal(full.labels[index], y)


# functions of the user


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "landscape_test_images.py"
    file.write_text(
        "import numpy as np\n"
        "from checkpoints.data.images import Images\n"
        "def arrays(split):\n"
        "    count = {'train': 4, 'test': 2}[split]\n"
        "    return np.zeros((count, 8, 9), np.uint8), list(range(count))\n"
        "def images(split):\n"
        "    return Images(np.zeros((1, 1, 8, 9), np.uint8), np.array([0]), ('a',), 'x', split)\n"
        "def only_test(split):\n"
        "    return images('test')\n"
        "def nothing(split):\n"
        "    pass\n"
        "def three(split):\n"
        "    return 1, 2, 3\n"
        "def words(split):\n"
        "    return 'ab', 'cd'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return file


def test_function_is_found_by_module_and_by_file(module: Path) -> None:
    for source in (module.stem, str(module)):
        images = load_images(f"{source}:arrays", "train")
        assert images.pixels.shape == (4, 1, 8, 9)
        assert (images.name, images.split) == (f"{source}:arrays", "train")
        assert len(load_images(f"{source}:arrays", "test")) == 2
        assert load_images(f"{source}:images", "test").name == f"{source}:images"


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("absent", "has no function 'absent'"),
        ("number", "has no function 'number'"),
        ("only_test", "returned the split 'test'; expected 'train'"),
        ("nothing", "returned NoneType; expected (x, y) or Images"),
        ("three", "returned a tuple of 3"),
        ("words", "the pixels are <U2"),
    ],
)
def test_function_that_returns_no_images_is_refused(
    module: Path, attribute: str, reason: str
) -> None:
    target = f"{module.stem}:{attribute}"
    message = refusal(lambda: load_images(target, "train"))
    assert message.startswith(target)
    assert reason in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_module_that_cannot_be_imported_gives_one_line(
    tmp_path: Path, content: str, reason: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content)
    assert reason in refusal(lambda: load_images(f"{file}:images", "test"))


def test_absent_module_or_file_gives_one_line(tmp_path: Path) -> None:
    assert "cannot be imported" in refusal(lambda: load_images("no_such_package.m:f", "test"))
    assert "cannot be imported" in refusal(lambda: load_images(f"{tmp_path}/no.py:f", "test"))


# by name


@pytest.mark.parametrize("name", ["nonsense", "npz:", "folder:", ":f", ""])
def test_unknown_name_lists_what_is_known(name: str) -> None:
    message = refusal(lambda: load_images(name, "test"))
    for known in (*DATASETS, "npz:FILE", "folder:DIR", "package.module:function"):
        assert known in message


def test_unknown_split_is_refused() -> None:
    message = refusal(lambda: load_images("fashion-mnist-sample", "validation"))
    assert "'validation'" in message


def test_size_resizes_folders_only() -> None:
    images = load_images("fashion-mnist-sample", "test", size=(28, 28))
    assert len(images) == 2000
    message = refusal(lambda: load_images("fashion-mnist-sample", "test", size=(32, 32)))
    assert "28 x 28 pixels; expected 32 x 32" in message


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_arrives_under_its_own_name(
    name: str, clothes: dict[str, bytes], tmp_path: Path
) -> None:
    fill(tmp_path, clothes)
    fill(tmp_path / "cifar-10-batches-bin", binary_10())
    fill(tmp_path / "cifar-100-binary", binary_100())
    images = load_images(name, "test", tmp_path)
    assert (images.name, images.split) == (name, "test")
    assert images.pixels.flags.writeable  # torch.from_numpy warns about arrays that are not


def test_interleaved_classes_take_turns() -> None:
    labels = np.array([1, 1, 1, 0, 0, 2])
    assert interleave(labels).tolist() == [3, 0, 5, 4, 1, 2]


def test_images_keep_their_positions_in_the_set_that_they_are_from(tmp_path: Path) -> None:
    shipped = sample.load("test")
    with np.load(Path(sample.__file__).parents[1] / "files" / sample.FILE) as stored:
        index = stored["index"]
    problem = load_problem(examples=30, split="test")
    assert problem.index_label == "position in fashion-mnist (test)"
    for row, position in enumerate(problem.indices):
        (at,) = np.flatnonzero(index == position)
        np.testing.assert_array_equal(
            (problem.inputs["input"][row] * 255).round().numpy(), shipped.pixels[at]
        )
    twice = shipped.take(slice(10, 20)).take(np.array([3, 1]))
    np.testing.assert_array_equal(twice.indices, index[[13, 11]])
    assert twice.source == "fashion-mnist"
    measured = landscape.measure("sensitivity", problem.take(slice(3)), parts=("norms",))
    np.testing.assert_array_equal(measured["index"], problem.indices[:3])
    assert measured["index"].attrs["long_name"] == problem.index_label


def test_a_fifo_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "image.png")
    assert "image.png is not a regular file" in refusal(lambda: folder.load("test", tmp_path))


def test_a_member_of_an_archive_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "cifar.tar.gz"
    header = tarfile.TarInfo("cifar/data_batch_1")
    header.size = 2**40
    with gzip.open(file, "wb") as stream:
        stream.write(header.tobuf() + bytes(1024))
    line = refusal(lambda: archive.read_members(file, "cifar", ["data_batch_1"]))
    assert f"data_batch_1 says that it has {2**40} bytes; expected at most" in line
