"""JSON functions for the codec: orjson where it is installed, else the standard library.

Both refuse the same values and write the same values; the test suite runs the codec over both.
"""

from __future__ import annotations

from spinal.protocols import Dumps, Loads
from spinal.protocols import values as standard

dumps: Dumps
loads: Loads

try:
    import orjson
except ImportError:
    dumps, loads = standard.dumps, standard.loads
else:
    dumps, loads = orjson.dumps, orjson.loads
