"""The step cache: evaluations of the model that a run can do without, and what stands in for them."""

from .cache import RunStepCache
from .log import Decision, Reason
from .settings import StepCacheSettings, nothing_to_gain

__all__ = ["Decision", "Reason", "RunStepCache", "StepCacheSettings", "nothing_to_gain"]
