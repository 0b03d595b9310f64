import json
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from spinal.bus.errors import HomeError
from spinal.bus.home import (
    CLIENT_PORT,
    VERSION,
    Credentials,
    Home,
    NeverUp,
    NoHome,
    Roles,
    check_name,
    masked,
    split_endpoint,
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.create(tmp_path / "home")
    (made.path / "server" / "ca.pem").write_text("certificate")
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestFinding:
    def test_an_explicit_path_goes_before_the_environment(self, tmp_path: Path) -> None:
        environ = {"SPINAL_HOME": str(tmp_path / "b"), "XDG_DATA_HOME": str(tmp_path)}
        assert Home.locate(tmp_path / "a", environ) == tmp_path / "a"
        assert Home.locate(None, environ) == tmp_path / "b"

    def test_without_either_it_is_the_data_folder(self, tmp_path: Path) -> None:
        assert Home.locate(None, {"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "spinal"
        default = Path("~/.local/share/spinal").expanduser()
        assert Home.locate(None, {}) == default
        assert Home.locate(None, {"XDG_DATA_HOME": "relative"}) == default

    def test_a_home_that_is_not_there_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(NoHome, match=r"no home at .*/none: start one with `spinal up`"):
            Home.find(tmp_path / "none")

    def test_a_folder_with_other_things_is_no_home(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(NoHome, match="is not a home"):
            Home.find(tmp_path)
        with pytest.raises(HomeError, match="is not empty and not a home"):
            Home.create(tmp_path)
        with pytest.raises(NoHome, match="is no folder"):
            Home.find(tmp_path / "letter.txt")
        assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


class TestMaking:
    def test_the_vendors_accounts_may_be_there_before_it(self, tmp_path: Path) -> None:
        (tmp_path / "providers.yaml").write_text("currency: EUR\n")
        made = Home.create(tmp_path)
        assert Home.find(tmp_path) == made
        assert (tmp_path / "providers.yaml").read_text() == "currency: EUR\n"
        assert mode(tmp_path) == 0o700

    def test_it_is_found_again_as_it_was_made(self, home: Home) -> None:
        assert Home.find(home.path) == home
        assert home.server_config().folder == home.path / "server"

    def test_only_its_owner_can_enter_it(self, home: Home) -> None:
        assert mode(home.path) == 0o700
        assert mode(home.password_file("owner")) == 0o600
        assert mode(home.path / "secrets" / "component") == 0o600
        assert mode(home.path / "home.json") == 0o600

    def test_it_has_an_owner_and_three_ports(self, home: Home) -> None:
        assert home.accounts() == {"owner": "owner"}
        ports = {home.ports.c2s, home.ports.component, home.ports.upload}
        assert len(ports) == 3 and all(20_000 <= port < 32_000 for port in ports)

    def test_making_it_twice_is_refused(self, home: Home) -> None:
        with pytest.raises(HomeError, match="already"):
            Home.create(home.path)

    def test_making_it_goes_on_where_it_was_interrupted(self, home: Home) -> None:
        home.add_account("web", "caller")
        before = home.password("web"), home.component_secret()
        (home.path / "home.json").unlink()
        with pytest.raises(NoHome):
            Home.find(home.path)
        again = Home.create(home.path)
        assert (again.password("web"), again.component_secret()) == before

    def test_a_place_that_cannot_be_written_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(HomeError, match=r"no home can be made at .*--home"):
            Home.create(tmp_path / "file" / "home")

    @pytest.mark.parametrize("domain", ["", "Ä", "two words", "a..b", "-x", "a@b", "a/b"])
    def test_a_domain_must_be_one(self, tmp_path: Path, domain: str) -> None:
        with pytest.raises(HomeError, match="is no domain"):
            Home.create(tmp_path / "home", domain=domain)
        assert not (tmp_path / "home").exists()

    def test_a_newer_layout_is_refused_and_left_alone(self, home: Home) -> None:
        file = home.path / "home.json"
        text = json.dumps({**json.loads(file.read_text()), "version": VERSION + 1})
        file.write_text(text)
        with pytest.raises(HomeError, match="made by a newer Spinal"):
            Home.find(home.path)
        assert file.read_text() == text

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "x"}', '{"version": 1}', "\0"])
    def test_damaged_settings_are_one_clear_line(self, home: Home, text: str) -> None:
        (home.path / "home.json").write_text(text)
        with pytest.raises(HomeError, match="cannot be understood"):
            Home.find(home.path)

    def test_the_server_can_be_changed_and_the_ports_stay(self, home: Home) -> None:
        changed = home.changed(server="prosody")
        assert Home.find(home.path) == changed
        assert (changed.server, changed.ports) == ("prosody", home.ports)

    def test_one_that_listens_everywhere_knows_how_others_reach_it(self, tmp_path: Path) -> None:
        home = Home.create(tmp_path / "home", listen="0.0.0.0")
        assert home.endpoint == ("127.0.0.1", home.ports.c2s)
        assert home.public_host not in ("", "0.0.0.0")
        assert home.environment("owner")["SPINAL_SERVER"].startswith(home.public_host)


class TestId:
    def test_each_home_has_one_of_its_own_for_ever(self, home: Home, tmp_path: Path) -> None:
        assert home.id == Home.find(home.path).id
        assert home.changed(listen="127.0.0.1").id == home.id
        assert Home.create(tmp_path / "other").id != home.id
        assert len(home.id) == 8 and home.id.isalnum() and home.id.islower()

    def test_an_old_home_gets_one_when_it_is_asked_for(self, home: Home) -> None:
        file = home.path / "home.json"
        settings = json.loads(file.read_text())
        del settings["id"]
        file.write_text(json.dumps(settings))
        first, second = Home.find(home.path), Home.find(home.path)

        given = first.id
        assert second.id == first.id == Home.find(home.path).id == given
        # One that was read before it had an id does not lose it.
        assert second.changed(listen="127.0.0.1").id == Home.find(home.path).id == given


class TestElsewhere:
    """A home whose server runs elsewhere."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Home:
        ca = tmp_path / "their-ca.pem"
        ca.write_text("certificate")
        return Home.create(
            tmp_path / "home", domain="example.org", server="xmpp.example.org:5333", authority=ca
        )

    def test_its_dispatcher_is_an_account(self, home: Home) -> None:
        assert home.dispatchers == ("dispatcher@example.org/dispatcher",)
        assert home.endpoint == ("xmpp.example.org", 5333)
        assert home.ca is not None and home.ca.read_text() == "certificate"
        assert Home.find(home.path) == home

    def test_a_cluster_has_several_addresses(self, tmp_path: Path) -> None:
        home = Home.create(
            tmp_path / "cluster",
            domain="example.org",
            server="one.example.org two.example.org:5333",
        )
        home.add_account("ann", "caller", "theirs")
        nodes = (("one.example.org", CLIENT_PORT), ("two.example.org", 5333))
        assert Home.find(home.path).endpoints == nodes
        assert home.credentials("ann").endpoints == nodes
        assert home.credentials("ann").present_endpoints() == nodes
        environ = home.environment("ann")
        assert environ["SPINAL_SERVER"] == "one.example.org:5222 two.example.org:5333"
        assert Credentials.find(environ) == home.credentials("ann")
        assert home.uploads[:2] == ("one.example.org", "two.example.org")

    def test_its_dispatcher_may_have_any_name(self, home: Home) -> None:
        home.add_account("dispatcher2", "dispatcher", "theirs")
        assert home.dispatchers == ("dispatcher2@example.org/dispatcher",)
        assert home.credentials(home.dispatcher_account).password == "theirs"
        told = json.loads((home.path / "home.json").read_bytes())
        assert told["dispatchers"] == ["dispatcher2@example.org/dispatcher"]

    def test_it_runs_one_dispatcher(self, home: Home) -> None:
        home.add_account("dispatcher2", "dispatcher", "theirs")
        with pytest.raises(HomeError, match=r"'dispatcher2' already.*--home"):
            home.add_account("dispatcher3", "dispatcher", "theirs")
        accounts = home.path / "accounts.json"
        accounts.write_text('{"dispatcher2": "dispatcher", "dispatcher3": "dispatcher"}')
        with pytest.raises(HomeError, match=r"dispatcher2, dispatcher3.*account remove"):
            _ = home.dispatcher_account

    def test_an_account_has_to_be_put_in(self, home: Home) -> None:
        with pytest.raises(HomeError, match=r"account add owner .*--password-file"):
            home.credentials()
        home.add_account("owner", "owner", "secret of theirs")
        assert home.credentials().password == "secret of theirs"

    def test_an_address_must_be_one(self, tmp_path: Path) -> None:
        with pytest.raises(HomeError, match="is no address"):
            Home.create(tmp_path / "h", server="prosidy:x")


URL = "postgresql://spinal:top%20secret@db.example.org/jobs"


class TestStore:
    def test_it_is_a_file_of_the_home(self, home: Home) -> None:
        assert home.store == f"sqlite:///{home.path}/dispatcher/jobs.db"

    def test_another_one_is_kept_and_its_password_not_shown(self, tmp_path: Path) -> None:
        home = Home.create(tmp_path / "home", store=URL)
        assert Home.find(home.path).store == URL
        assert "secret" not in repr(home)
        assert (home.path / "home.json").stat().st_mode & 0o077 == 0

    def test_it_can_be_changed(self, home: Home) -> None:
        assert home.changed(store=URL).store == Home.find(home.path).store == URL
        assert Home.find(home.path).changed(listen="127.0.0.1").store == URL

    @pytest.mark.parametrize(
        "url", ["jobs.db", "mysql://u:secret@h/db", "sqlite:///jobs.db", "postgresql://"]
    )
    def test_what_is_none_is_refused_without_its_password(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(HomeError, match=r"--store: .* is no store") as caught:
            Home.create(tmp_path / "home", store=url)
        assert "secret" not in str(caught.value)
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (URL, "postgresql://spinal:***@db.example.org/jobs"),
            ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
            ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db"),
            ("postgresql://u@h/db?a=b&password=x&c=d", "postgresql://u@h/db?a=b&password=***&c=d"),
            ("postgresql:///db?passfile=/run/pg", "postgresql:///db?passfile=/run/pg"),
            ("sqlite:////srv/jobs.db", "sqlite:////srv/jobs.db"),
        ],
    )
    def test_a_url_is_shown_without_its_password(self, url: str, shown: str) -> None:
        assert masked(url) == shown

    def test_other_dispatchers_are_kept_behind_our_own(self, home: Home) -> None:
        own = home.dispatcher
        home.keep_others([own, "two@spinal.localhost/dispatcher"])
        assert home.dispatchers == (own, "two@spinal.localhost/dispatcher")
        assert home.environment("owner")["SPINAL_DISPATCHER"] == " ".join(home.dispatchers)
        home.keep_others([own])
        assert list(home.dispatchers) == [own]

    @pytest.mark.parametrize("text", ["", "[]", '{"dispatchers": ["@"]}', '{"dispatchers": 7}'])
    def test_a_damaged_list_of_others_is_as_good_as_none(self, home: Home, text: str) -> None:
        (home.path / "dispatcher" / "others.json").write_text(text)
        assert home.dispatchers == (home.dispatcher,)


class TestAccounts:
    def test_an_account_gets_a_password_and_a_role(self, home: Home) -> None:
        home.add_account("web", "caller")
        assert home.accounts() == {"owner": "owner", "web": "caller"}
        assert len(home.password("web")) >= 24
        assert home.password("web") != home.password("owner")

    def test_making_it_again_keeps_its_password(self, home: Home) -> None:
        home.add_account("web", "caller")
        before = home.password("web")
        home.add_account("web", "caller")
        assert home.password("web") == before
        home.add_account("web", "caller", "new")
        assert home.password("web") == "new"

    def test_many_accounts_are_made_at_once_or_not_at_all(self, home: Home) -> None:
        home.add_account("web2", "caller")
        before = home.password("web2")
        home.add_accounts(("web1", "web2", "web3"), "caller")
        assert home.accounts() == {"owner": "owner"} | dict.fromkeys(
            ("web1", "web2", "web3"), "caller"
        )
        assert home.password("web2") == before
        assert len({home.password(name) for name in home.accounts()}) == 4
        with pytest.raises(HomeError, match="'web2' is there with the role caller"):
            home.add_accounts(("worker", "web2"), "agent")
        assert "worker" not in home.accounts() and not home.password_file("worker").exists()

    def test_a_role_is_not_changed_by_the_way(self, home: Home) -> None:
        home.add_account("web", "caller")
        with pytest.raises(HomeError, match="with the role caller"):
            home.add_account("web", "agent")

    def test_an_unknown_role_names_those_there_are(self, home: Home) -> None:
        with pytest.raises(HomeError, match="caller, agent, dispatcher, owner"):
            home.add_account("web", "king")

    @pytest.mark.parametrize("name", ["", "Web", "a b", "../x", "a/b", "a@b", ".x", "x" * 65, "é"])
    def test_a_name_must_be_one(self, home: Home, name: str) -> None:
        with pytest.raises(HomeError, match="cannot be a name"):
            home.add_account(name, "caller")
        with pytest.raises(HomeError):
            check_name(name)

    def test_a_removed_account_is_gone_with_its_password(self, home: Home) -> None:
        home.add_account("web", "caller")
        home.remove_account("web")
        assert "web" not in home.accounts() and not home.password_file("web").exists()
        with pytest.raises(HomeError, match="no account 'web'"):
            home.remove_account("web")

    def test_the_owner_stays(self, home: Home) -> None:
        with pytest.raises(HomeError, match="cannot be removed"):
            home.remove_account("owner")

    def test_a_password_that_others_can_read_is_refused(self, home: Home) -> None:
        home.password_file("owner").chmod(0o644)
        with pytest.raises(HomeError, match="chmod 600"):
            home.credentials()

    def test_a_damaged_list_is_one_clear_line(self, home: Home) -> None:
        (home.path / "accounts.json").write_text("[1")
        with pytest.raises(HomeError, match="damaged"):
            home.accounts()

    def test_many_processes_may_make_accounts_at_once(self, home: Home) -> None:
        code = (
            "import sys; from pathlib import Path; from spinal.bus.home import Home\n"
            "home = Home.find(Path(sys.argv[1]))\n"
            "for i in range(10): home.add_account(f'{sys.argv[2]}-{i}', 'agent')"
        )
        children = [
            subprocess.Popen([sys.executable, "-c", code, str(home.path), name], env=environment())
            for name in "abcd"
        ]
        assert [child.wait(60) for child in children] == [0] * 4
        assert len(home.accounts()) == 41


class TestRoles:
    def test_they_follow_the_accounts(self, home: Home) -> None:
        roles = Roles(home)
        assert roles.of(f"owner@{home.domain}/phone") == "owner"
        assert roles.of(f"web@{home.domain}") is None
        home.add_account("web", "caller")
        assert roles.of(f"web@{home.domain}/x") == "caller"
        home.remove_account("web")
        assert roles.of(f"web@{home.domain}/x") is None

    def test_other_domains_have_none(self, home: Home) -> None:
        assert Roles(home).of("owner@elsewhere.example") is None
        assert Roles(home).of(home.domain) is None

    def test_they_can_be_told_to_others(self, home: Home) -> None:
        home.add_account("thumbs", "agent")
        assert Roles(home).table() == {
            "owner@spinal.localhost": "owner",
            "thumbs@spinal.localhost": "agent",
            "dispatcher.spinal.localhost": "dispatcher",
        }

    def test_the_component_dispatches(self, home: Home) -> None:
        assert Roles(home).of(f"dispatcher.{home.domain}") == "dispatcher"


class TestCredentials:
    def test_the_home_gives_those_of_the_owner(self, home: Home) -> None:
        found = Credentials.find({"SPINAL_HOME": str(home.path)})
        assert found == home.credentials()
        assert found.address == f"owner@{home.domain}"
        assert (found.host, found.port) == ("127.0.0.1", home.ports.c2s)
        assert found.uploads == (f"127.0.0.1:{home.ports.upload}",)

    def test_before_the_first_start_there_is_nothing_to_log_in_to(self, home: Home) -> None:
        (home.path / "server" / "ca.pem").unlink()
        with pytest.raises(NeverUp, match=r"was never up: start it with `spinal up`") as caught:
            home.credentials()
        assert caught.value.exit_code == 4

    def test_a_password_is_not_shown(self, home: Home) -> None:
        assert home.password("owner") not in repr(home.credentials())

    def test_the_variables_of_an_account_give_the_same(self, home: Home) -> None:
        home.add_account("web", "caller")
        assert Credentials.find(home.environment("web")) == home.credentials("web")

    def test_a_home_that_is_named_goes_before_the_environment(self, home: Home) -> None:
        environ = {"SPINAL_ADDRESS": "x@example.org", "SPINAL_PASSWORD_FILE": "/nowhere"}
        assert Credentials.find(environ, home.path) == home.credentials()
        assert Credentials.find(environ, home) == home.credentials()

    def test_little_is_enough_on_a_public_server(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("secret\nnot this\n")
        found = Credentials.find(
            {
                "SPINAL_ADDRESS": "x@example.org/y",
                "SPINAL_PASSWORD_FILE": str(tmp_path / "password"),
            }
        )
        assert found == Credentials(
            "x@example.org/y",
            "secret",
            None,
            "example.org",
            CLIENT_PORT,
            ("dispatcher.example.org",),
            ("example.org",),
        )
        assert found.domain == "example.org"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"SPINAL_PASSWORD_FILE": None}, "without SPINAL_PASSWORD_FILE"),
            ({"SPINAL_PASSWORD_FILE": "/nowhere"}, "SPINAL_PASSWORD_FILE: /nowhere: No such file"),
            ({"SPINAL_CA": "/nowhere"}, "SPINAL_CA: /nowhere: No such file"),
            ({"SPINAL_ADDRESS": "x y@z"}, "SPINAL_ADDRESS: not an address"),
            ({"SPINAL_ADDRESS": "example.org"}, "has no name"),
            ({"SPINAL_SERVER": "host:99999"}, "SPINAL_SERVER: 'host:99999' is no address"),
            ({"SPINAL_SERVER": "host, other"}, "SPINAL_SERVER: 'host,' is no address"),
            ({"SPINAL_SERVER": " "}, "SPINAL_SERVER: give 1 to 16 addresses, not 0"),
            ({"SPINAL_SERVER": "host " * 17}, "SPINAL_SERVER: give 1 to 16 addresses, not 17"),
            ({"SPINAL_ADDRESS": None}, "is set without SPINAL_ADDRESS"),
        ],
    )
    def test_what_is_missing_is_named(
        self, tmp_path: Path, changes: dict[str, str | None], message: str
    ) -> None:
        (tmp_path / "password").write_text("secret")
        environ: dict[str, str | None] = {
            "SPINAL_ADDRESS": "x@example.org",
            "SPINAL_PASSWORD_FILE": str(tmp_path / "password"),
            **changes,
        }
        with pytest.raises(HomeError, match=message):
            Credentials.find({name: text for name, text in environ.items() if text is not None})

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "is empty"), (b"x" * 5000, "too long"), (b"\xff\xfe", "is not text")],
    )
    def test_a_file_that_holds_no_password_is_named(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        (tmp_path / "password").write_bytes(content)
        with pytest.raises(HomeError, match=message):
            Credentials.find(
                {
                    "SPINAL_ADDRESS": "x@example.org",
                    "SPINAL_PASSWORD_FILE": str(tmp_path / "password"),
                }
            )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("host", ("host", None)),
            ("host:1", ("host", 1)),
            ("10.0.0.1:5222", ("10.0.0.1", 5222)),
            ("[::1]:5222", ("::1", 5222)),
            ("::1", ("::1", None)),
        ],
    )
    def test_endpoints_are_taken_apart(self, text: str, expected: tuple[str, int | None]) -> None:
        assert split_endpoint(text) == expected


class TestLocks:
    def test_unnamed_agents_take_the_lowest_free_number(self, home: Home) -> None:
        with home.claim_agent_name("worker") as first, ExitStack() as stack:
            second = stack.enter_context(home.claim_agent_name("worker"))
            with home.claim_agent_name("worker") as third:
                assert (first, second, third) == ("worker", "worker-2", "worker-3")
            stack.close()
            with home.claim_agent_name("worker") as again:
                assert again == "worker-2"

    @pytest.mark.parametrize(("stem", "name"), [("My Worker", "my-worker"), ("Ä", "agent")])
    def test_any_file_gives_a_name(self, home: Home, stem: str, name: str) -> None:
        with home.claim_agent_name(stem) as found:
            assert found == name

    def test_a_taken_name_is_one_clear_error(self, home: Home) -> None:
        with (
            home.claim_agent_name("x", "thumbs"),
            pytest.raises(HomeError, match=rf"'thumbs' is taken .*\(pid {os.getpid()}\).*--name"),
            home.claim_agent_name("x", "thumbs"),
        ):
            pass

    def test_the_name_of_another_account_is_not_taken(self, home: Home) -> None:
        home.add_account("worker", "caller")
        with home.claim_agent_name("worker") as name:
            assert name == "worker-2"
        with (
            pytest.raises(HomeError, match="with the role caller"),
            home.claim_agent_name("x", "worker"),
        ):
            pass

    def test_a_crash_frees_the_name(self, home: Home) -> None:
        with holding(home, "home.claim_agent_name('worker')") as child:
            with home.claim_agent_name("worker") as name:
                assert name == "worker-2"
            child.send_signal(signal.SIGKILL)
            child.wait()
            with home.claim_agent_name("worker") as name:
                assert name == "worker"

    def test_a_forked_child_does_not_keep_the_name(self, home: Home) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with home.claim_agent_name("worker"):
                pid = os.fork()
                if pid == 0:
                    theirs.send(b"forked")
                    theirs.recv(1)
                    os._exit(0)
                assert ours.recv(16) == b"forked"
            try:
                with home.claim_agent_name("worker") as name:
                    assert name == "worker"
            finally:
                ours.send(b".")
                os.waitpid(pid, 0)

    def test_only_one_may_be_up(self, home: Home) -> None:
        assert home.holder() is None
        with home.hold():
            assert home.holder() == os.getpid()
            with pytest.raises(HomeError, match=rf"up already \(pid {os.getpid()}\)"), home.hold():
                pass
        assert home.holder() is None

    def test_a_lock_that_a_killed_process_left_is_stale(self, home: Home) -> None:
        with holding(home, "home.hold()") as child:
            assert home.holder() == child.pid
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert (home.path / "run" / "up.lock").exists() and home.holder() is None
        with home.hold():
            pass


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def holding(home: Home, what: str) -> subprocess.Popen[bytes]:
    """Start a process that holds a lock; it does when this returns."""
    code = (
        "import sys; from pathlib import Path; from spinal.bus.home import Home\n"
        "home = Home.find(Path(sys.argv[1]))\n"
        f"with {what}:\n    print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return child


class TestMoving:
    def test_credentials_follow_a_home_that_is_started_with_other_ports(self, home: Home) -> None:
        found = home.credentials()
        settings = json.loads((home.path / "home.json").read_text())
        settings["ports"]["c2s"] += 1
        (home.path / "home.json").write_text(json.dumps(settings))

        assert found.present_endpoints() == ((found.host, found.port + 1),)

    def test_credentials_stay_as_they_were_where_the_home_is_gone(self, home: Home) -> None:
        found = home.credentials()
        (home.path / "home.json").unlink()

        assert found.present_endpoints() == ((found.host, found.port),)
