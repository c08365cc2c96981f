import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real data beside the checkout; a test that needs it skips where it is not."""
    folder = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "molt5_multitask"
    if not folder.is_dir():
        pytest.skip("the shared data of molt5_multitask is not beside the checkout")
    return folder
