"""What stands in tables."""

from common.report import spread


def test_spread():
    assert spread([0.25]) == "0.250"
    assert spread([0.1, 0.2, 0.3]) == "0.200 ± 0.100"
