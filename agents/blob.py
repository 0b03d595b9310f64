"""Blobs as operations know them; they are the bus's, because callers send them as well."""

from spinal.bus.blob import Blob, LocalBlob, Steps, Store, blobs_in, put

__all__ = ["Blob", "LocalBlob", "Steps", "Store", "blobs_in", "put"]
