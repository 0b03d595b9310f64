"""Five clouds on loopback, for drivers of libcloud as they are.

=============  ===========================================================================
ec2            moto behind a front that mends its namespace
openstack      mimic (Keystone 2, Nova 2; the driver "rackspace" has its prices)
digitalocean   simulated here, API v2
linode         simulated here, API v4
vultr          simulated here, API v2
=============  ===========================================================================

All have the same faults and the same control API (:mod:`tests.clouds.front`), on their own ports::

    with Clouds("linode", "vultr") as clouds:
        linode = clouds["linode"]
        driver = linode.connect()  # of libcloud
        linode.fault("capacity", count=3, type="g6-standard-2")
        ...
        assert linode.living() == [] and linode.twice() == []

In a ``conftest.py``: ``from tests.clouds.fixtures import clouds, running_clouds``; in the tests
``pytestmark = needs_clouds``.  From a shell: ``make cloud-sim``.

moto and mimic are not in our environment but in ``.venv-clouds`` (``make clouds``).
"""

from .cloud import Cloud, Clouds, Driver
from .upstream import missing
from .vendor import TOKEN

__all__ = ["TOKEN", "Cloud", "Clouds", "Driver", "missing"]
