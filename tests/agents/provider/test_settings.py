from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents.document import BadDocument
from spinal.agents.errors import AgentError
from spinal.agents.provider.settings import Budget, Providers

FULL = """\
currency: EUR
rates: {USD: 0.92}
bus: {host: bus.example.org, port: 5222}
budgets:
  - {per_month: 500}
  - {label: shop, per_month: 200}
accounts:
  aws: {driver: ec2, key: AKIA, secret: {env: AWS_SECRET}, regions: [eu-west-1], limit: 20}
  ocean: {driver: digitalocean, token: {file: token}, timeout: 5s, endpoint: "http://127.0.0.1:9/"}
  local: {driver: local, sizes: {tiny: {cpu: 0.5, ram: 512M, price: 0.02}}}
  cloud:
    driver: openstack
    endpoint: https://keystone.example.org:5000
    user: me
    password: {env: OS_PASSWORD}
    regions: [RegionOne]
    currency: EUR
    images: {debian-12: 17}
    prices: {m1.small: 0.05}
  other: {driver: upcloud, arguments: {username: me, password: {env: UP}}, price_per: month}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "providers.yaml"
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        Providers.load(written(folder, text))
    return [str(one).partition(":")[2] for one in caught.value.mistakes]


def test_a_file_is_read(tmp_path: Path) -> None:
    found = Providers.load(written(tmp_path, FULL))

    assert found.exchange.rate("USD") == 0.92 and found.exchange.rate("CHF") is None
    assert found.bus == "bus.example.org:5222"
    assert found.budgets == (Budget(500), Budget(200, "shop"))
    aws, ocean, local = (found.account(name) for name in ("aws", "ocean", "local"))
    assert (aws.currency, aws.regions, aws.limit, aws.timeout) == ("USD", ("eu-west-1",), 20, 20.0)
    assert (ocean.endpoint, ocean.timeout) == ("http://127.0.0.1:9", 5.0)
    assert (local.currency, local.limit, local.sizes[0].ram) == ("EUR", 8, 512 * 1024**2)
    assert found.account("cloud").images == {"debian-12": "17"}
    assert aws.agent == "provider-aws"


def test_secrets_are_references_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("geheim\n")
    found = Providers.load(written(tmp_path, FULL))

    assert found.account("ocean").word("token") == "geheim"
    assert "geheim" not in repr(found)
    assert [key for key, _ in found.account("other").secrets()] == ["password"]
    with pytest.raises(AgentError, match="set the variable OS_PASSWORD"):
        found.account("cloud").word("password")


@pytest.mark.parametrize("text", ["", "{}", "currency: EUR"])
def test_without_accounts_there_is_this_machine(tmp_path: Path, text: str) -> None:
    for found in (Providers.load(written(tmp_path, text)), Providers.find(tmp_path)):
        [local] = found.accounts.values()
        assert (local.name, local.driver) == ("local", "local")
        assert local.word("folder") == str(tmp_path / "machines" / "local")
        assert all(size.price > 0 for size in local.sizes)


def test_without_a_file_as_well(tmp_path: Path) -> None:
    assert list(Providers.find(tmp_path).accounts) == ["local"]
    with pytest.raises(AgentError, match=r"no account 'aws' in providers\.yaml, only local"):
        Providers.find(tmp_path).account("aws")


@pytest.mark.parametrize(
    "account, mistake",
    [
        (
            "{driver: ec3}",
            (
                "accounts.it.driver: 'ec3' is none of local, ec2, openstack, rackspace, "
                "digitalocean, linode, vultr, and no other driver of libcloud that can be used: "
                "did you mean ec2?"
            ),
        ),
        (
            "{driver: upcloudd}",
            (
                "accounts.it.driver: 'upcloudd' is none of local, ec2, openstack, rackspace, "
                "digitalocean, linode, vultr, and no other driver of libcloud that can be used: "
                "did you mean upcloud?"
            ),
        ),
        ("{driver: dummy}", "accounts.it.driver: 'dummy' is none of local"),
        ("{token: {env: T}}", "accounts.it: 'driver' is missing: write driver: digitalocean"),
        ("{driver: linode}", "accounts.it: 'token' is missing: write token: {env: BILLING_TOKEN}"),
        (
            "{driver: linode, tokn: {env: T}}",
            "accounts.it.tokn: is not known here: did you mean 'token'?",
        ),
        (
            "{driver: linode, token: geheim}",
            (
                "accounts.it.token: this: a secret stands here by reference: write {env: NAME} or "
                "{file: PATH}"
            ),
        ),
        (
            "{driver: linode, token: {env: T}, endpoint: localhost}",
            (
                "accounts.it.endpoint: 'localhost' must be an address without a password: write for "
                "example endpoint: https://cloud.example.org:5000"
            ),
        ),
        (
            "{driver: linode, token: {env: T}, limit: none}",
            "accounts.it.limit: 'none' is not an integer: write for example limit: 20",
        ),
        (
            "{driver: local, sizes: {a: {cpu: 1, ram: 1G, price: 0}}}",
            "accounts.it.sizes.a.price: 0 must be more than 0: write for example price: 0.05",
        ),
        (
            "{driver: vultr, token: {env: T}, currency: CHF}",
            (
                "accounts.it.currency: its prices are in CHF and the home's currency is EUR: say what "
                "one CHF costs, such as rates: {CHF: 0.92}"
            ),
        ),
    ],
)
def test_a_mistake_is_told_with_line_and_key(tmp_path: Path, account: str, mistake: str) -> None:
    [told] = mistakes(tmp_path, f"rates: {{USD: 0.9}}\naccounts:\n  it: {account}\n")

    assert told.startswith(f"3: {mistake}")
    assert "geheim" not in told


def test_a_vendor_in_another_currency_needs_a_rate(tmp_path: Path) -> None:
    [told] = mistakes(tmp_path, "accounts:\n  it: {driver: vultr, token: {env: T}}\n")

    assert told == (
        "2: accounts.it.driver: its prices are in USD and the home's currency is EUR: say what one "
        "USD costs, such as rates: {USD: 0.92}"
    )


@pytest.mark.parametrize(
    "text, mistake",
    [
        ("rates: {EUR: 2}", "1: rates.EUR: EUR is the home's currency: leave it out"),
        ("rates: {USD: 0}", "1: rates.USD: 0 must be more than 0"),
        ("currency: euro", "1: currency: 'euro' must be a currency of three letters"),
        (
            "budgets:\n  - {per_month: 1}\n  - {per_month: 2}",
            "3: budgets.1: a second budget of everything: leave one out",
        ),
        (
            "budgets: [{label: a, per_month: 1, currency: USD}]",
            "1: budgets.0.currency: is not known here: leave it out, or write one of per_month",
        ),
        ("accounts: {Aws: {driver: local}}", "1: accounts.Aws: 'Aws' must be small letters"),
        ("accounts: [a]", "1: accounts: a list is not a mapping"),
        ("- a", "1: a list is not a mapping"),
        ("acounts: {}", "1: acounts: is not known here: did you mean 'accounts'?"),
    ],
)
def test_mistakes_outside_of_accounts(tmp_path: Path, text: str, mistake: str) -> None:
    [told] = mistakes(tmp_path, text)

    assert told.startswith(mistake)
