from tests.agents.wrap import hostile


def test_there_are_a_thousand_different_ones_and_always_the_same() -> None:
    texts, binaries = hostile.texts(), hostile.binaries()

    assert len(set(texts)) == len(set(binaries)) == hostile.COUNT == 1000
    assert texts == hostile.texts() and binaries == hostile.binaries()


def test_every_sort_is_among_them() -> None:
    texts = hostile.texts()

    for part in (
        *("'", '"', "`", ";", "$(", "\0", "\r\n", "\n", "../", "%2e%2e%2f", "{other}", "{{"),
        *(":name", "drop table", "\u202e", "\u200b", "\ud800", "X-Canary:", "<!DOCTYPE"),
    ):
        assert any(part in one for one in texts), part
    assert "" in texts and " " in texts
    assert any(one.startswith("--") for one in texts)
    assert max(map(len, texts)) >= 1024 * 1024
    assert b"\xff" in hostile.binaries()
