from .fixtures import clouds as clouds
from .fixtures import running_clouds as running_clouds
