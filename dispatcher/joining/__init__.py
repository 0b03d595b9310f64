"""Joining: how a machine that was just made becomes agents on the bus."""
