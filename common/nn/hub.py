"""Checkpoints in folders, as Hugging Face lays them out, and on its hub."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any


def download(name: str, patterns: Sequence[str], *, revision: str | None = None) -> pathlib.Path:
    """Fetch files of a repository from the Hugging Face hub, or find them in its cache.

    Args:
      name: the repository.
      patterns: which files, as in a shell.
      revision: branch, tag or commit.

    Returns:
      The folder that they are in.

    Raises:
      FileNotFoundError: if the hub does not give them.
    """
    import huggingface_hub  # slow to import, and only needed here

    missing = f"there is no folder {name!r}"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(f"{missing}, and the Hugging Face hub has no such names")
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns)
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{missing}, and the Hugging Face hub does not give it "
            f"({str(error).splitlines()[0]}); without a network, give the folder of a "
            "downloaded checkpoint"
        ) from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: a checkpoint is a folder with config and weights"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is no JSON object")
    return raw
