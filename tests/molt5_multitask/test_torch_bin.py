"""The reader of pytorch_model.bin, on files assembled opcode by opcode, benign and not."""

import os
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from molt5_multitask.torch_bin import Refused, interpret, open_torch_bin

FLOATS = {
    np.float32: "FloatStorage",
    np.float16: "HalfStorage",
    ml_dtypes.bfloat16: "BFloat16Storage",
}
EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """Opcodes of a storage, as torch names it by a persistent id."""
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(key: str, count: int, shape, strides, *, offset: int = 0, kind="FloatStorage") -> bytes:
    """Opcodes of a tensor, as torch rebuilds it."""
    view = number(offset) + numbers(shape) + numbers(strides)
    arguments = storage(key, count, kind) + view + b"\x89" + EMPTY_ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state_dict(**entries: bytes) -> bytes:
    """Return the pickle of a dictionary."""
    items = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02" + EMPTY_ORDERED_DICT + b"(" + items + b"u."


def write(path: pathlib.Path, program: bytes, storages=(), **options) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", "little")
        for key, array in dict(storages).items():
            archive.writestr(f"model/data/{key}", array.tobytes())
    return path


@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_are_read(tmp_path, dtype):
    data = np.arange(24).astype(dtype)
    kind = FLOATS[dtype]
    program = state_dict(
        whole=tensor("0", 24, (4, 6), (6, 1), kind=kind),
        turned=tensor("0", 24, (6, 4), (1, 6), kind=kind),
        part=tensor("0", 24, (2, 3), (6, 1), offset=7, kind=kind),
        scalar=tensor("0", 24, (), (), offset=23, kind=kind),
        empty=tensor("0", 24, (0, 5), (5, 1), kind=kind),
    )
    stored = open_torch_bin(write(tmp_path / "a.bin", program, {"0": data}))
    whole = data.reshape(4, 6)
    for key, expected in {
        "whole": whole,
        "turned": whole.T,
        "part": whole[1:3, 1:4],
        "scalar": data[23],
        "empty": np.zeros((0, 5), dtype),
    }.items():
        assert stored[key].shape == expected.shape
        assert stored[key].read().dtype == dtype
        np.testing.assert_array_equal(stored[key].read(), expected)


def test_memo_and_metadata_are_understood():
    """As torch writes it: names kept in the memo, versions of the modules as an attribute."""
    one = tensor("0", 4, (2, 2), (2, 1))
    items = b"(" + text("a") + one + b"q\x05" + text("b") + b"h\x05u"
    metadata = b"}" + text("_metadata") + EMPTY_ORDERED_DICT + b"sb"
    found = interpret(b"\x80\x02" + EMPTY_ORDERED_DICT + items + metadata + b".")
    assert list(found) == ["a", "b"]
    assert found["a"] is found["b"]


SENTINEL = "executed"
ATTACKS = {
    "global of os": (b"cposix\nsystem\n" + text(f"touch {SENTINEL}") + b"\x85R.", "posix.system"),
    "builtin": (b"c__builtin__\neval\n" + text("1") + b"\x85R.", "__builtin__.eval"),
    "global by stack": (b"\x80\x04" + text("os") + text("system") + b"\x93.", "os.system"),
    "dotted name": (b"ctorch\nFloatStorage.__init__\n.", "torch.FloatStorage.__init__"),
    "another rebuild": (b"ctorch._utils\n_rebuild_tensor\n.", "torch._utils._rebuild_tensor"),
    "instance": (b"(" + text(f"touch {SENTINEL}") + b"ios\nsystem\n.", "INST"),
    "object": (b"(cos\nsystem\n" + text("x") + b"o.", "os.system"),
    "new object": (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "extension": (b"\x82\x01.", "EXT1"),
    "list": (b"].", "EMPTY_LIST"),
    "attributes": (b"}}" + text("__class__") + text("x") + b"sb.", "attributes"),
    "dict with arguments": (b"ccollections\nOrderedDict\n" + text("x") + b"\x85R.", "call"),
    "calls a storage": (b"ctorch\nFloatStorage\n)R.", "call"),
    "persistent id": (text("https://example.org") + b"Q.", "no storage"),
    "longs": (state_dict(a=tensor("0", 4, (4,), (1,), kind="LongStorage")), "torch.LongStorage"),
    "no dictionary": (b").", "not a dictionary"),
    "no tensor": (state_dict(a=text("x")), "'a' is no tensor"),
    "no end": (state_dict()[:-1], "damaged|no end"),
    "empty stack": (b"R.", "damaged"),
    "no mark": (b"t.", "damaged"),
    "unknown memo": (b"h\x07.", "damaged"),
    "no opcodes": (b"\xff\xff", "damaged"),
    "negative stride": (state_dict(a=tensor("0", 4, (2,), (-1,))), "call"),
    "ranks differ": (state_dict(a=tensor("0", 4, (2, 2), (1,))), "call"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_anything_else_is_refused_by_name_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, named = ATTACKS[name]
    path = write(tmp_path / "pytorch_model.bin", program)
    with pytest.raises(Refused, match=named) as refusal:
        open_torch_bin(path)
    assert str(path) in str(refusal.value)
    assert "weights_only=True" in str(refusal.value)
    assert os.listdir(tmp_path) == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((5,), (1,), 0), ((2,), (1,), 3), ((2, 2), (3, 1), 0), ((1 << 30,), (0,), 0)],
)
def test_views_beyond_their_storage_are_refused(tmp_path, shape, strides, offset):
    program = state_dict(a=tensor("0", 4, shape, strides, offset=offset))
    path = write(tmp_path / "a.bin", program, {"0": np.zeros(4, np.float32)})
    with pytest.raises(Refused, match=r"a of shape .* leaves its storage of 4"):
        open_torch_bin(path)


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    program = state_dict(a=tensor("0", 4, (4,), (1,)))
    four = np.zeros(4, np.float32)
    with pytest.raises(Refused, match="'0' of a is missing"):
        open_torch_bin(write(tmp_path / "a.bin", program))
    with pytest.raises(Refused, match="has 12 bytes, not 4 x 4"):
        open_torch_bin(write(tmp_path / "b.bin", program, {"0": four[:3]}))
    with pytest.raises(Refused, match="compressed"):
        open_torch_bin(
            write(tmp_path / "c.bin", program, {"0": four}, compression=zipfile.ZIP_DEFLATED)
        )
    (tmp_path / "legacy.bin").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(Refused, match="zip"):
        open_torch_bin(tmp_path / "legacy.bin")
    with zipfile.ZipFile(tmp_path / "d.bin", "w") as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", "big")
    with pytest.raises(Refused, match="little-endian"):
        open_torch_bin(tmp_path / "d.bin")
    with pytest.raises(FileNotFoundError):
        open_torch_bin(tmp_path / "absent.bin")
