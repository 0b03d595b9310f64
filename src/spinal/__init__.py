"""Spinal: a message bus for automation, on XMPP.

The parts live in :mod:`spinal.protocols`, :mod:`spinal.bus`, :mod:`spinal.agents` and
:mod:`spinal.dispatcher`.  This module imports none of them, because it runs before each.
"""

__version__ = "0.1.0"
