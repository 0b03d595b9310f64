"""Pools: machines that are rented where they are cheapest, and returned."""
