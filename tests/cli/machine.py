"""Stands for a deployment agent: keeps what it is told in memory, and runs nothing."""

from typing import Any

from spinal.agents import Agent, Job, Refused

agent = Agent("machine", place="/eu/fra")
kept: dict[str, dict[str, Any]] = {}


@agent.op("/deployment/deploy", effects="writes", safe=True)
async def deploy(
    job: Job, service: str, generation: int, release: dict[str, object], start: list[str], port: int
) -> dict[str, Any]:
    """Keep a service."""
    if release["sha256"] == "c" * 64:
        raise Refused("the release has another hash")
    job.log("fetch")
    kept[service] = {"generation": generation, "port": port, "state": "running"}
    return kept[service]


@agent.op("/deployment/show", effects="reads")
async def show(service: str) -> dict[str, Any]:
    """Say how a service goes."""
    if service not in kept:
        raise Refused("there is no such service here")
    return {**kept[service], "state": "backing off", "why": "exit code 1"}


@agent.op("/deployment/undeploy", effects="writes", safe=True)
async def undeploy(service: str, below: int) -> None:
    """Forget a service."""
    if service in kept and kept[service]["generation"] < below:
        del kept[service]
