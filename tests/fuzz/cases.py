"""All families of random cases, and how one is judged."""

from typing import Any

import jax
import numpy as np

from tests.fuzz.messages import message_cases
from tests.fuzz.nouns import compressor_cases, norm_cases, sampling_cases
from tests.fuzz.steps import step_cases

STRATEGIES: dict[str, tuple[Any, int]] = {  # and each one's share
    "norms": (norm_cases(), 3),
    "compressors": (compressor_cases(), 3),
    "samplings": (sampling_cases(), 1),
    "steps": (step_cases(), 4),
    "messages": (message_cases(), 1),
}


def judge(case: Any) -> str:
    """What came of a case, in a word.

    Raises:
      AssertionError: if it is a fault; other errors than ours are faults too.
    """
    with jax.enable_x64("'float64'" in repr(case)), np.errstate(all="ignore"):
        try:
            return case.run()
        except AssertionError:
            raise
        except Exception as error:
            said = f"a bare {type(error).__name__}: {error}"
            raise AssertionError(said.splitlines()[0]) from error
