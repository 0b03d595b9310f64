"""Drafts of manifests, from what a program or a service says of itself; pure text in and out."""
