"""Machines of one vendor's account, as operations on the bus."""
