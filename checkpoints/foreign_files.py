"""Files that hold no state dict, told apart by their first bytes and by their contents' names.

Only these are looked at: nothing is unpacked or loaded.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from pathlib import Path

# (first bytes, from where, what it is)
SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file, such as Keras writes"),
    (b"MATLAB 5.0 MAT-file", 0, "a MATLAB file"),
    (b"GGUF", 0, "a GGUF file of quantised weights"),
    (b"lmgg", 0, "a GGML file of quantised weights"),
    (b"ftrt", 0, "a TensorRT engine"),
    (b"\x12\x01" + bytes(6), 0, "an MXNet parameter file"),
    (b"\x81\xa6params", 0, "a MessagePack file, such as Flax writes"),
    (b"PAR1", 0, "a Parquet table"),
    (b"\x89PNG", 0, "an image"),
    (b"\xff\xd8\xff", 0, "an image"),
    (b"%PDF", 0, "a PDF"),
    (b"\x7fELF", 0, "a program"),
    (b"BZh", 0, "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ", 0, "an xz archive; unpack it"),
    (b"Rar!", 0, "a RAR archive; unpack it"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x1f\x8b", 0, "a gzip archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", 0, "a Zstandard archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive; unpack it"),
    (b"ustar", 257, "a tar archive; unpack it"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", -8, "the index of a TensorFlow checkpoint"),
)
# Of files whose bytes are not told apart easily.
ENDINGS = {
    ".onnx": "an ONNX model",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".h5": "not the HDF5 file that its name says",
    ".mlmodel": "a Core ML model",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".msgpack": "a MessagePack file, such as Flax writes",
    ".caffemodel": "a Caffe model",
    ".pdparams": "a PaddlePaddle parameter file",
    ".weights": "not a state dict, but perhaps Darknet's weights",
    ".joblib": "a joblib file",
}
FIRST = 300  # bytes that are looked at


def described(path: Path) -> str:
    """What a file is, if it is of a known kind that holds no state dict; otherwise empty.

    Args:
        path: of a regular file.
    """
    with path.open("rb") as file:
        first = file.read(FIRST)
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        last = file.read()
    if not size:
        return "empty"
    if re.match(rb"\s*<(!doctype|html|\?xml)", first, re.IGNORECASE):
        return "a web page: the download did not give the file"
    if re.search(r"\.data-\d+-of-\d+$", path.name):
        return "a part of a TensorFlow checkpoint"
    for signature, start, what in SIGNATURES:
        found = last if start < 0 else first[start:]
        if found.startswith(signature):
            return what
    if first.startswith(b"PK"):
        return _archive(path)
    if first.startswith(b"\x80") and path.suffix != ".joblib":  # a pickle, which its reader names
        return ""
    if path.suffix == ".onnx" or _is_onnx(first):
        return ENDINGS[".onnx"]
    return ENDINGS.get(path.suffix.lower(), "")


def _is_onnx(first: bytes) -> bool:
    """Whether a file begins as ONNX models do: a version, and the name of what wrote it."""
    if first[:1] != b"\x08" or first[2:3] != b"\x12" or len(first) < 5:
        return False
    writer = first[4 : 4 + first[3]]
    return len(writer) == first[3] > 2 and writer.decode("latin-1").isprintable()


def _archive(path: Path) -> str:
    """What a zip file is, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises various types for damaged files
        return ""  # damaged, which its reader says
    return _of_names(names)


def _of_names(names: Collection[str]) -> str:
    last = {name.rpartition("/")[2] for name in names}
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        return "a TorchScript archive; save the state_dict() of the module that it was made of"
    if any("exported_program" in name or name == "archive_format" for name in last):
        return "an exported program (torch.export); save the module's state_dict() instead"
    if "model.weights.h5" in last or {"config.json", "metadata.json"} <= last:
        return "a Keras model"
    if ".metadata" in last:
        return "a distributed checkpoint; convert it with dcp_to_torch_save"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays"
    return "" if "data.pkl" in last else "a zip archive without a state dict; unpack it"
