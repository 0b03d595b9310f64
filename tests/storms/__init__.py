"""Storms: pools at five vendors while everything fails, and what became of the machines.

Each run is drawn from a seed: pools, what a person does with them, faults of the vendors, and
processes that are killed.  Whether it went well is judged by what the vendors have, and never by
what we say of ourselves.  ``make storms`` runs 200 of them.
"""
