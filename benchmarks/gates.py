"""What a benchmark's number must be to be accepted."""

import math
from typing import NamedTuple


class Gate(NamedTuple):
    """A number and what it must lie between; a NaN does not."""

    text: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def is_accepted(self) -> bool:
        """Whether the number lies between the limits."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        """A line that says what was found and what was wanted."""
        if self.low == -math.inf:
            wanted = f"at most {self.high:.3g}"
        elif self.high == math.inf:
            wanted = f"at least {self.low:.3g}"
        else:
            wanted = f"{self.low:.3g} to {self.high:.3g}"
        mark = "ok " if self.is_accepted else "NOT"
        return f"{mark}  {self.text}: {self.value:#.4g} ({wanted})"
