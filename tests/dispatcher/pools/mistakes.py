"""Pool files with one mistake each: what stands in them, and what is to be said about it."""

from __future__ import annotations

from tests.mistakes import Case

GOOD = """\
pool: web
server: {cpu: 4, ram: 8G, disk: 20G, arch: any, image: debian-12, region: [eu]}
size: {min: 2, max: 12, start: 3}
place: {prefer: cheapest, spread: vendor, at_least_vendors: 2}
scale:
  op: /image/resize
  waiting: "> 20 for 30s"
  p95: "> 400ms for 3m"
  add: 1
  remove_when: {p95: "< 150ms for 15m"}
  cool: 5m
  schedule: [{cron: "0 8 * * mon-fri", for: 10h, size: 4, zone: Europe/Berlin}]
  # No consolidate, which goes with equal offers and not with a spread.
money: {max_per_hour: 0.60, max_per_month: 200, currency: EUR, label: shop}
life:
  ttl: 30d
  on_down: destroy
  self_test: [/machine/health]
  agents: [worker.py]
  packages: [pillow>=10]
  join: 15m
  drain: 10m
"""


def _case(old: str, new: str, line: int, key: str, *words: str) -> Case:
    return Case(GOOD, old, new, line, key, words)


SMALL = """\
pool: web
server: {cpu: 4, ram: 8G}
"""

MISTAKES = [
    _case("ram: 8G", "ram: 8", 2, "server.ram", "8 bytes are too few", "ram: 8G"),
    # The file.
    _case("", "", 1, "", "not a mapping"),
    _case("", "pool: [web\n", 2, "", "no YAML", "brackets"),
    _case("", "pool: web\n\tserver: {}\n", 2, "", "tab", "spaces"),
    _case("", "- pool\n", 1, "", "a list is not a mapping"),
    _case("pool: web\n", "", 1, "", "'pool' is missing", "pool: web"),
    _case("pool: web\n", "pool: web\npool: two\n", 2, "pool", "stands twice", "line 1"),
    _case("pool: web\n", "pool: 5\n", 1, "pool", "5 is not a text"),
    _case("pool: web\n", "pool: Web\n", 1, "pool", "'Web' is no name", "pool: web"),
    _case("pool: web\n", "pool: web-\n", 1, "pool", "is no name"),
    _case("pool: web\n", "pool: provider\n", 1, "pool", "as provider agents are", "another name"),
    _case("pool: web\n", "pool: " + "a" * 41 + "\n", 1, "pool", "at most 40"),
    _case("money:", "mony:", 14, "mony", "not known", "did you mean 'money'?"),
    # The server.
    _case("", "pool: web\n", 1, "", "'server' is missing", "cpu: 4"),
    _case("", "pool: web\nserver: 4\n", 2, "server", "4 is not a mapping"),
    _case("cpu: 4, ", "", 2, "server", "'cpu' is missing", "cpu: 4"),
    _case("ram: 8G, ", "", 2, "server", "'ram' is missing", "ram: 8G"),
    _case("cpu: 4,", "cpu: four,", 2, "server.cpu", "'four' is not a number"),
    _case("cpu: 4,", "cpu: 0,", 2, "server.cpu", "more than 0"),
    _case("cpu: 4,", "cpu: .nan,", 2, "server.cpu", "no number"),
    _case("cpu: 4,", "cpu: .inf,", 2, "server.cpu", "at most 100000"),
    _case("ram: 8G", "ram: 8X", 2, "server.ram", "'8X'", "write a size"),
    _case("ram: 8G", "ram: 0", 2, "server.ram", "write a size"),
    _case("disk: 20G", "disk: big", 2, "server.disk", "'big'", "write a size"),
    _case("arch: any", "arch: x86", 2, "server.arch", "'x86' is none of", "x86_64"),
    _case("arch: any", "arch: amd", 2, "server.arch", "none of", "arm64"),
    _case("image: debian-12", "image: ''", 2, "server.image", "is no name of an image"),
    _case("region: [eu]", "region: [7]", 2, "server.region.0", "7 is not a text"),
    _case("region: [eu]", "region: ['*']", 2, "server.region.0", "'*' is no region"),
    _case("region: [eu]", "region: {eu: 1}", 2, "server.region", "not a text or a list"),
    _case("region: [eu]", "regions: [eu]", 2, "server.regions", "did you mean 'region'?"),
    # Sizes.
    _case("min: 2,", "min: 13,", 3, "size.min", "13 is more than max, which is 12"),
    _case("min: 2,", "min: -1,", 3, "size.min", "at least 0"),
    _case("max: 12", "max: 0", 3, "size.max", "at least 1"),
    _case("max: 12", "max: 1001", 3, "size.max", "at most 1000"),
    _case("max: 12", "max: many", 3, "size.max", "'many' is not an integer"),
    _case("start: 3", "start: 1", 3, "size.start", "1 is not between", "2 and 12"),
    _case("start: 3", "start: 13", 3, "size.start", "13 is not between"),
    _case("start: 3", "start: 2.5", 3, "size.start", "2.5 is not an integer"),
    _case("start: 3", "strat: 3", 3, "size.strat", "did you mean 'start'?"),
    # Places.
    _case("prefer: cheapest", "prefer: best", 4, "place.prefer", "'best' is none of", "cheapest"),
    _case("spread: vendor", "spread: vendors", 4, "place.spread", "did you mean vendor?"),
    _case("vendors: 2}", "vendors: 0}", 4, "place.at_least_vendors", "at least 1"),
    _case("vendors: 2}", "vendors: 13}", 4, "place.at_least_vendors", "13", "size.max is 12"),
    # Scaling.
    _case(
        '  op: /image/resize\n  waiting: "> 20 for 30s"\n  p95: "> 400ms for 3m"\n'
        '  add: 1\n  remove_when: {p95: "< 150ms for 15m"}\n',
        '  waiting: "> 20 for 30s"\n',
        6,
        "scale.waiting",
        "whose jobs",
        "op: /image/resize",
    ),
    _case(
        '  op: /image/resize\n  waiting: "> 20 for 30s"\n  p95: "> 400ms for 3m"\n'
        '  add: 1\n  remove_when: {p95: "< 150ms for 15m"}\n',
        '  p95: "> 1s"\n',
        6,
        "scale.p95",
        "whose jobs",
    ),
    _case(
        '  op: /image/resize\n  waiting: "> 20 for 30s"\n  p95: "> 400ms for 3m"\n'
        '  add: 1\n  remove_when: {p95: "< 150ms for 15m"}\n',
        '  remove_when: {idle: "> 0"}\n',
        6,
        "scale.remove_when",
        "whose jobs",
    ),
    _case("op: /image/resize", "op: image/resize", 6, "scale.op", "must start with '/'"),
    _case("op: /image/resize", "op: /", 6, "scale.op", "'/' is no operation"),
    _case("op: /image/resize", "op: /image/*", 6, "scale.op", "/image/resize"),
    _case("op: /image/resize", "op: [/a, /b, /a]", 6, "scale.op", "/a stands in it twice"),
    _case("op: /image/resize", "op: [/a, b]", 6, "scale.op.1", "must start with '/'"),
    _case('"> 20 for 30s"', '"20 for 30s"', 7, "scale.waiting", "is no rule", "> 20 for 30s"),
    _case('"> 20 for 30s"', '"> 20 in 30s"', 7, "scale.waiting", "is no rule"),
    _case('"> 20 for 30s"', '"> 20s for 30s"', 7, "scale.waiting", "is no rule", "a number"),
    _case('"> 20 for 30s"', '"< 20 for 30s"', 7, "scale.waiting", "added", "'>'"),
    _case('"> 20 for 30s"', "20", 7, "scale.waiting", "20 is not a text", "> 20 for 30s"),
    _case('"> 20 for 30s"', '"> 20 for 400d"', 7, "scale.waiting", "longer than 366 days"),
    _case('"> 400ms for 3m"', '"> 400 for 3m"', 8, "scale.p95", "a length of time"),
    _case('"> 400ms for 3m"', '"< 400ms"', 8, "scale.p95", "added", "'>'"),
    _case("add: 1", "add: 0", 9, "scale.add", "at least 1"),
    _case("add: 1", "add: 13", 9, "scale.add", "more than size.max"),
    _case('{p95: "< 150ms for 15m"}', '{p95: "> 150ms"}', 10, "scale.remove_when.p95", "'<'"),
    _case(
        '{p95: "< 150ms for 15m"}',
        '{p95: "< 500ms"}',
        10,
        "scale.remove_when.p95",
        "would remove what '> 400ms for 3m' adds",
    ),
    _case(
        '{p95: "< 150ms for 15m"}',
        '{waiting: "< 21"}',
        10,
        "scale.remove_when.waiting",
        "would remove what '> 20 for 30s' adds",
    ),
    _case('{p95: "< 150ms for 15m"}', '{idle: "< 1"}', 10, "scale.remove_when.idle", "'>'"),
    _case(
        '{p95: "< 150ms for 15m"}',
        '{waiting: "< 0"}',
        10,
        "scale.remove_when.waiting",
        "nothing is less than 0",
    ),
    _case('{p95: "< 150ms for 15m"}', '{load: "< 1"}', 10, "scale.remove_when.load", "not known"),
    _case('{p95: "< 150ms for 15m"}', "{}", 10, "scale.remove_when", "is empty"),
    _case("cool: 5m", "cool: soon", 11, "scale.cool", "'soon'", "length of time"),
    _case("cool: 5m", "cool: 367d", 11, "scale.cool", "longer than 366 days"),
    _case("0 8 * * mon-fri", "0 8 * *", 12, "scale.schedule.0.cron", "five fields"),
    _case("0 8 * * mon-fri", "0 25 * * *", 12, "scale.schedule.0.cron", "'0 25 * * *'"),
    _case("Europe/Berlin", "Europe/Bonn", 12, "scale.schedule.0.zone", "no time zone"),
    _case("for: 10h, ", "", 12, "scale.schedule.0", "'for' is missing", "10h"),
    _case("size: 4, zone", "size: 13, zone", 12, "scale.schedule.0.size", "more than size.max"),
    _case("", SMALL + "scale: {consolidate: 15}\n", 3, "scale.consolidate", "15 is not a text"),
    _case("", SMALL + "scale: {consolidate: 100%}\n", 3, "scale.consolidate", "no saving", "15%"),
    _case("cool: 5m", "consolidate: 15%", 11, "scale.consolidate", "leave spread and"),
    # Money.
    _case("max_per_hour: 0.60", "max_per_hour: 0", 14, "money.max_per_hour", "more than 0"),
    _case("max_per_hour: 0.60", "max_per_hour: 1 EUR", 14, "money.max_per_hour", "not a number"),
    _case("max_per_month: 200", "max_per_moth: 200", 14, "money.max_per_moth", "max_per_month"),
    _case("currency: EUR", "currency: eur", 14, "money.currency", "three capital letters"),
    _case("currency: EUR", "currency: GBP", 14, "money.currency", "no rate from GBP", "rates:"),
    _case("label: shop", "label: My Shop", 14, "money.label", "is no label"),
    # Life.
    _case("ttl: 30d", "ttl: 10m", 16, "life.ttl", "15m to join", "longer ttl"),
    _case("ttl: 30d", "ttl: 400d", 16, "life.ttl", "longer than 366 days"),
    _case("on_down: destroy", "on_down: delete", 17, "life.on_down", "none of", "freeze"),
    _case("[/machine/health]", "[machine/health]", 18, "life.self_test.0", "must start with '/'"),
    _case("[/machine/health]", "[/a b]", 18, "life.self_test.0", "forbidden part"),
    _case("[/machine/health]", "/machine/health", 18, "life.self_test", "is not a list"),
    _case("[worker.py]", "[wroker.py]", 19, "life.agents.0", "wroker.py", "No such file"),
    _case("[worker.py]", "[broken.py]", 19, "life.agents.0", "broken.py:2: no Python"),
    _case("[worker.py]", "[latin.py]", 19, "life.agents.0", "no UTF-8"),
    _case("[worker.py]", "[large.py]", 19, "life.agents.0", "larger than"),
    _case("[worker.py]", "[worker.txt]", 19, "life.agents.0", "no file of Python"),
    _case("[worker.py]", "[worker.py, more/worker.py]", 19, "life.agents.1", "two files named"),
    _case("[worker.py]", "worker.py", 19, "life.agents", "is not a list", "[worker.py]"),
    _case("[pillow>=10]", "['--index-url=x']", 20, "life.packages.0", "is no package"),
    _case("join: 15m", "join: -1", 21, "life.join", "length of time"),
    _case("drain: 10m", "drian: 10m", 22, "life.drian", "did you mean 'drain'?"),
    # Demands.
    _case("", "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand: []\n", 3, "demand", "is empty"),
    _case(
        "",
        "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand: [{cpu: 1}]\n",
        3,
        "demand.0",
        "'ram' is missing",
    ),
    _case(
        "",
        "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand:\n- {cpu: 1, ram: 1G, count: 0}\n",
        4,
        "demand.0.count",
        "at least 1",
    ),
    _case(
        "",
        "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand:\n- {cpu: 1, ram: 1G, count: 9000}\n"
        "- {cpu: 2, ram: 1G, count: 9000}\n",
        3,
        "demand",
        "more than 10000 jobs",
    ),
    _case(
        "",
        "pool: web\nserver: {cpu: 1, ram: 1G}\ndemand: [{cpu: 1, ram: 1G}]\nscale: {op: /a}\n",
        4,
        "scale.op",
        "packs a demand",
    ),
]
