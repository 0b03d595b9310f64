from .fixtures import clouds, running_clouds

__all__ = ["clouds", "running_clouds"]
