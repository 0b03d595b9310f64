"""A stock slixmpp client, as its tutorial writes it, with nothing of ours in between."""

import asyncio

import pytest
from slixmpp.exceptions import IqError

from spinal.bus.server import Server
from spinal.testing import eventually

from .conftest import DOMAIN, SOON, Bot, logged_in, soon, told

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_roster_of_a_new_account_is_empty(server: Server) -> None:
    async with logged_in(server, "carol") as carol:
        reply = await carol.get_roster(timeout=SOON)
        assert dict(reply["roster"]["items"]) == {}


async def test_a_contact_keeps_its_name_and_groups(server: Server, bot: Bot) -> None:
    async with logged_in(server, "carol") as carol:
        await carol.get_roster(timeout=SOON)
        pushed = told(carol, "roster_update")
        await carol.update_roster(bot.boundjid.bare, name="Bot <1>", groups=["a & b"])
        async with asyncio.timeout(SOON):
            await pushed.get()
    async with logged_in(server, "carol") as again:
        reply = await again.get_roster(timeout=SOON)
        item = reply["roster"]["items"][bot.boundjid.bare]
        assert (item["name"], item["groups"]) == ("Bot <1>", ["a & b"])
        await again.del_roster_item(bot.boundjid.bare)


async def test_the_server_says_what_it_is_and_what_it_can(server: Server, bot: Bot) -> None:
    reply = await bot.plugin["xep_0030"].get_info(jid=DOMAIN, timeout=SOON)
    info = reply["disco_info"]
    assert any(identity[:2] == ("server", "im") for identity in info["identities"])
    assert {"http://jabber.org/protocol/disco#info", "urn:xmpp:ping"} <= set(info["features"])


async def test_the_upload_service_is_found_by_looking_around(server: Server, bot: Bot) -> None:
    reply = await bot.plugin["xep_0030"].get_items(jid=DOMAIN, timeout=SOON)
    addresses = [str(address) for address, _, _ in reply["disco_items"]["items"]]
    assert server.config.upload_domain in addresses
    reply = await bot.plugin["xep_0030"].get_info(jid=server.config.upload_domain, timeout=SOON)
    assert "urn:xmpp:http:upload:0" in reply["disco_info"]["features"]


async def test_the_server_and_the_account_and_another_client_answer_a_ping(
    server: Server, bot: Bot
) -> None:
    async with logged_in(server, "carol", "xep_0199") as carol:
        for address in (DOMAIN, carol.boundjid.bare, bot.boundjid.full):
            assert await carol.plugin["xep_0199"].ping(address, timeout=SOON) < SOON


async def test_what_the_server_does_not_know_is_refused(server: Server, bot: Bot) -> None:
    query = bot.make_iq_get(queryxmlns="urn:example:nothing", ito=DOMAIN)
    with pytest.raises(IqError) as refused:
        await query.send(timeout=SOON)
    assert refused.value.condition in ("service-unavailable", "feature-not-implemented")


async def test_two_clients_subscribe_to_each_other_and_see_each_other_go(
    server: Server, bot: Bot
) -> None:
    heard = told(bot, "got_online", "got_offline")
    async with logged_in(server, "carol") as carol:
        seen = told(carol, "got_online", "changed_status", "got_offline")
        carol.send_presence()
        await carol.get_roster(timeout=SOON)
        carol.send_presence_subscription(bot.boundjid.bare)
        await soon(seen, bot.boundjid.bare, "available")
        await soon(heard, carol.boundjid.bare, "available")
        bot.send_presence(pshow="away", pstatus="at lunch")
        assert (await soon(seen, bot.boundjid.bare, "away"))["status"] == "at lunch"
        entry = carol.client_roster[bot.boundjid.bare]
        await eventually(lambda: entry["subscription"] == "both", SOON, "both see each other")
    await soon(heard, f"carol@{DOMAIN}", "unavailable")
    async with logged_in(server, "carol") as carol:
        await carol.del_roster_item(bot.boundjid.bare)


async def test_a_message_to_an_account_arrives_with_its_sender(server: Server, bot: Bot) -> None:
    came = told(bot, "message")
    async with logged_in(server, "carol") as carol:
        carol.send_message(mto=bot.boundjid.bare, mbody="5 < 6 & 7 > 6 ✓", mtype="chat")
        message = await soon(came, carol.boundjid.bare)
        assert (message["body"], message["from"]) == ("5 < 6 & 7 > 6 ✓", carol.boundjid)
