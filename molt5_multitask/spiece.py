"""Reading a T5 `spiece.model` without the sentencepiece library.

The file is a protocol buffer: fields of (number, wire type, value). Needed of it are the pieces,
their scores and the table of the normaliser; the rest of a T5 tokenizer is fixed.
"""

import pathlib
import struct
from collections.abc import Iterator

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

SENTINELS = 100
"""`<extra_id_0>` to `<extra_id_99>`: not in the file, they follow its pieces in falling order."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM = 1


def read(path: str | pathlib.Path) -> tokenizers.Tokenizer:
    """Build the T5 tokenizer of a `spiece.model`, sentinels included.

    Raises:
      ValueError: for a file that is no unigram SentencePiece model.
    """
    try:
        vocabulary, special, model_type, charsmap = _parse(pathlib.Path(path).read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    if model_type != _UNIGRAM or not vocabulary:
        raise ValueError(f"{path} is not a SentencePiece model of the unigram kind")
    unknown = next((i for i, (piece, _) in enumerate(vocabulary) if piece == "<unk>"), None)
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    vocabulary += [(sentinel, 0.0) for sentinel in sentinels]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    # The order is that of SentencePiece: its table, then outer spaces, then runs of spaces.
    steps: list[normalizers.Normalizer] = [
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(tokenizers.Regex(" {2,}"), "▁"),
    ]
    if charsmap:
        steps.insert(0, normalizers.Precompiled(charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    backend.add_special_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in sentinels]
    )
    return backend


def _parse(data: bytes) -> tuple[list[tuple[str, float]], list[str], int, bytes]:
    """Return pieces with scores, names of control and unknown pieces, model type and table."""
    vocabulary: list[tuple[str, float]] = []
    special: list[str] = []
    model_type, charsmap = _UNIGRAM, b""  # Unigram is the format's default.
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):  # ModelProto.pieces
            fields = dict(_fields(value))
            piece, score = fields[1], fields.get(2, 0.0)
            assert isinstance(piece, bytes)
            vocabulary.append((piece.decode(), float(score)))
            if fields.get(3, 1) in (2, 3):  # unknown, control
                special.append(piece.decode())
        elif number == 2 and isinstance(value, bytes):  # ModelProto.trainer_spec
            model_type = int(dict(_fields(value)).get(3, _UNIGRAM))
        elif number == 3 and isinstance(value, bytes):  # ModelProto.normalizer_spec
            table = dict(_fields(value)).get(2, b"")
            assert isinstance(table, bytes)
            charsmap = table
    return vocabulary, special, model_type, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield number and value of each field of a message; a 32-bit value is read as a float."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {number} reaches beyond the end of the file")
        raw, at = data[at : at + size], at + size
        yield number, struct.unpack("<f", raw)[0] if wire == _FIXED32 else raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read an integer of 7 bits a byte; return it and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
