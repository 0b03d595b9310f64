"""Spinal: a message bus for automation, on XMPP.

The parts live in :mod:`spinal.protocols`, :mod:`spinal.bus`, :mod:`spinal.agents` and
:mod:`spinal.dispatcher`.  This module imports none of them, because it runs before each.
"""

from os import path as _path

__version__ = "0.1.0"

if _path.isfile(_path.join(_path.dirname(__file__), "bus")):
    raise ImportError(
        "this checkout has no symbolic links (src/spinal/bus is a text file): clone it with "
        "'git clone -c core.symlinks=true', or install it without -e"
    )
