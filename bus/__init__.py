"""Stanzas in and out: the connection contract, its transports, sessions, clients and servers."""
