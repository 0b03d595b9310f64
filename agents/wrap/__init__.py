"""Existing programs, services and files as agents, each from one YAML file."""

from .manifest import Manifest, load

__all__ = ["Manifest", "load"]
