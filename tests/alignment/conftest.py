import pathlib

import pytest

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def _folder(name: str) -> pathlib.Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the shared data of {name} is not beside the checkout")
    return SHARED / name


@pytest.fixture(scope="session")
def shared_alignment() -> pathlib.Path:
    """Folder of the human data; a test that needs it skips where it is not."""
    return _folder("alignment")


@pytest.fixture(scope="session")
def shared_images() -> pathlib.Path:
    """Folder of the photographs; a test that needs it skips where it is not."""
    return _folder("images")
