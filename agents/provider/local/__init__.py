"""Machines that are processes of this machine, rented like those of any vendor.

From bottom to top: which process it is (:mod:`.identity`); the process that keeps one machine
(:mod:`.warden`); what keeps machines apart (:mod:`.isolation`), also with a system of their own
(:mod:`.nspawn`, :mod:`.cgroup`, made by :mod:`.image`); their sizes (:mod:`.size`); what is
on disk (:mod:`.store`); and the libcloud driver (:mod:`.driver`), which others may also have by name::

    libcloud.compute.providers.set_driver("local", "spinal.agents.provider.local", "LocalNodeDriver")
"""

from .driver import LocalNodeDriver
from .size import SIZES, LocalSize

__all__ = ["SIZES", "LocalNodeDriver", "LocalSize"]
