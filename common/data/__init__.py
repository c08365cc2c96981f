"""Data as a function of the step, and its background transfer to the devices."""

from common.data.arrays import ArrayData, Data, OnePass
from common.data.prefetch import prefetch

__all__ = ["ArrayData", "Data", "OnePass", "prefetch"]
