"""Data as a function of the step, and its background transfer to the devices."""

from common.data.arrays import ArrayData, Data, EpochOrder, OnePass, stack_steps
from common.data.prefetch import prefetch

__all__ = ["ArrayData", "Data", "EpochOrder", "OnePass", "prefetch", "stack_steps"]
