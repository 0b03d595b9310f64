"""Machines of one vendor's account, as operations on the bus.

Nothing is imported here: the dispatcher reads offers and settings, and needs no vendor's driver.
"""
