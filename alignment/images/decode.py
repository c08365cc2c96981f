"""Image files as RGB pixels."""

import io
import pathlib
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Pillow warns of images beyond this limit, and refuses those of twice as many pixels. One such
# image takes 270 MB a worker: here both are refused.
warnings.simplefilter("error", Image.DecompressionBombWarning)
_LIMIT = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

File = pathlib.Path | bytes
"""A file, or its content."""


class BadImageError(ValueError):
    """An image that cannot be used; says which and why."""


def decode(file: File, *, where: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image; grey ones get three equal channels, and transparency is left out.

    An orientation that a camera has noted (EXIF) is not applied.

    Args:
      file: the image.
      where: what to call it in errors.

    Raises:
      BadImageError: if it is damaged, huge, or has more than 8 bits a channel.
    """
    return np.asarray(_open(file, where, whole=True))


def check_header(file: File, *, where: str) -> None:
    """Check what can be seen without decoding: that it is an image, its size and bits.

    Raises:
      BadImageError: if something is wrong.
    """
    _open(file, where, whole=False)


def _open(file: File, where: str, *, whole: bool) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.mode in _DEEP:
                raise BadImageError(
                    f"{where} has more than 8 bits a channel (mode {image.mode}); save it with 8"
                )
            if not whole:
                return None
            if "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except BadImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImageError(
            f"{where} has more than {_LIMIT} pixels, too many to be an ordinary picture; scale it "
            "down"
        ) from None
    except Exception as error:  # Pillow's formats raise many kinds for damaged files
        raise BadImageError(f"{where} cannot be decoded: {error}") from None
