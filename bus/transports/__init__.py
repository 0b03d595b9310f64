"""Ways to move stanzas that keep the contract of :mod:`spinal.bus.connection`.

Each is imported when it is wanted, because each brings a library of its own.
"""
