"""The deployment agent: one per machine; deploys services by URL and hash, and keeps them running.

From bottom to top: what a user writes (:mod:`.spec`) and what the agent may do (:mod:`.config`);
where things are (:mod:`.layout`) and what outlives the agent (:mod:`.state`); how a release comes
here (:mod:`.urls`, :mod:`.fetch`, :mod:`.unpack`, :mod:`.kinds`) and starts (:mod:`.command`,
:mod:`.launch`); one that is kept running (:mod:`.instance`, :mod:`.health`, :mod:`.backoff`,
:mod:`.logs`); one service and its changes (:mod:`.service`); all of them (:mod:`.deployment`), also
as dispatchers know them (:mod:`.elsewhere`); and the operations (:mod:`.agent`).
"""

from .agent import make

__all__ = ["make"]
