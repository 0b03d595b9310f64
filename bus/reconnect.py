"""How long to wait before the next try at a stream: full jitter, so that a thousand do not storm.

Each pause is drawn evenly between nothing and a ceiling that doubles with each failure
(the "full jitter" of Brooker, AWS Architecture Blog, 2015).  A stream that lasted resets it.

Once a server is back, everybody has tried within the last ceiling, so that is short.  A try while
nobody listens is two packets, and a server that is tried by more than it can let in at once lets
the others wait.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from spinal.protocols.retry import doubled


@dataclass(slots=True)
class Backoff:
    """Pauses between tries.

    Args:
        first: ceiling of the first pause in seconds.
        most: ceiling of every later one.
        lasted: seconds of a stream after which the count starts anew.
    """

    first: float = 0.5
    most: float = 5.0
    lasted: float = 5.0
    rng: random.Random = field(default_factory=random.Random, repr=False)
    failures: int = 0

    def pause(self) -> float:
        """Give the next pause in seconds and count a failure."""
        ceiling = doubled(self.first, self.failures, self.most)
        self.failures += 1
        return self.rng.uniform(0.0, ceiling)

    def ended(self, seconds: float) -> None:
        """Tell how long a stream lasted."""
        if seconds >= self.lasted:
            self.failures = 0
