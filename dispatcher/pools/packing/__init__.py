"""Mixed jobs packed onto rented machines for the least money, with proof of how little that is."""

from .pack import Carrier, Job, Packing, Unplaceable, pack

__all__ = ["Carrier", "Job", "Packing", "Unplaceable", "pack"]
