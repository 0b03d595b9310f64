"""Choosing who does what, and seeing it through: registry, resolver, queue, broker."""

from .errors import DispatcherError, QueueFull, RegistryFull
from .policies import POLICY_KEYS
from .registry import Registry
from .resolver import Demand, Resolution, choose, resolve
from .roles import RIGHTS, Right, Roles, RoleTable
from .service import Dispatcher

__all__ = [
    "POLICY_KEYS",
    "RIGHTS",
    "Demand",
    "Dispatcher",
    "DispatcherError",
    "QueueFull",
    "Registry",
    "RegistryFull",
    "Resolution",
    "Right",
    "RoleTable",
    "Roles",
    "choose",
    "resolve",
]
