"""The deployment agent: one per machine; deploys services by URL and hash, and keeps them running.

From bottom to top: what a user writes (:mod:`.spec`).
"""
