"""The console in a browser, on running cores with a real Kafka. `SCREENSHOTS=directory` keeps a picture of each page, light and dark."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.e2e.conftest import STRANGER
from tests.e2e.test_control import Api
from tests.journeys.real import RealWorld
from tests.support.product import Product

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CONNECTED, ATTACH, ATTACHED, MESSAGE = 4, 10, 11, 15
SOON_MS = 20_000

FAULTS = """() => {
  // What somebody would notice who cannot see the page, or not well. Source: WCAG 2.2, 1.3.1, 1.4.3, 2.4.6, 4.1.2.
  const faults = [];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const where = (e) => `${e.tagName.toLowerCase()} ${(e.id || e.textContent || "").trim().slice(0, 40)}`;
  for (const e of document.querySelectorAll("input, select, textarea")) {
    if (!shown(e)) continue;
    if (![...(e.labels ?? [])].some((l) => l.textContent.trim())) faults.push(`no label: ${where(e)}`);
    for (const id of (e.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean))
      if (!document.getElementById(id)) faults.push(`described by nothing: ${id}`);
  }
  for (const e of document.querySelectorAll("button, a[href]"))
    if (!(e.getAttribute("aria-label") || e.textContent.trim())) faults.push(`no name: ${where(e)}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push(`twice: ${id}`);
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) faults.push("not one main");
  if (!document.documentElement.lang) faults.push("no language");
  for (const e of document.querySelectorAll("table"))
    if (!e.caption || !e.querySelector("thead th[scope=col]")) faults.push("a table without name or headings");
  let level = 1;
  for (const e of document.querySelectorAll("h1, h2, h3")) {
    const now = Number(e.tagName[1]);
    if (now > level + 1) faults.push(`a heading is left out before: ${where(e)}`);
    level = now;
  }
  const rgb = (text) => { const found = text.match(/rgba?\\(([^)]+)\\)/); return found && found[1].split(/[ ,\\/]+/).map(Number); };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found && (found[3] ?? 1) > 0.99) return found;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !shown(e) || e.closest("noscript, .unseen, .skip, option, :disabled")) continue;
    const [low, high] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faults.push(`contrast ${ratio.toFixed(2)}: ${where(e)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push("wider than the window");
  return faults;
}"""


class Visitor:
    """Somebody at a browser, who has typed a token in. Notes what must never happen."""

    def __init__(self, chromium: Any, relay: Product) -> None:
        self.origin: str = relay.found["admins"][0]
        self.token: str = relay.found["accessToken"]
        self.context = chromium.new_context(viewport={"width": 1360, "height": 1240}, color_scheme="light")
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.answers: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: "Security Policy" in message.text and self.errors.append(message.text))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("response", self._keep)

    def _note(self, url: str) -> None:
        if not url.startswith(f"{self.origin}/") or self.token in url:
            self.elsewhere.append(url)

    def _keep(self, response: Any) -> None:
        if "/v1/" in response.url:
            self.answers.append(response.url)
            try:
                self.answers.append(response.text())
            except Exception:
                self.answers.append("")  # the page has gone on meanwhile

    def signs_in(self) -> None:
        self.page.goto(f"{self.origin}/console/")
        self.page.get_by_label("Access token").fill(self.token)
        self.page.keyboard.press("Enter")
        self.page.get_by_role("navigation", name="Pages").wait_for(timeout=SOON_MS)

    def goes_to(self, fragment: str) -> None:
        self.page.evaluate("to => { location.hash = to; }", fragment)

    def looks(self, name: str) -> None:
        """Everything that can be checked of a page, light and dark."""
        self.page.mouse.move(0, 0)
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert self.page.evaluate(FAULTS) == [], f"{name}, {scheme}"
            if directory := os.environ.get("SCREENSHOTS"):
                self.page.screenshot(path=Path(directory) / f"{name}-{scheme}.png")


@pytest.fixture
def visitor(chromium: Any, relay: Product) -> Iterator[Visitor]:
    found = Visitor(chromium, relay)
    yield found
    found.context.close()


@pytest.fixture
def api(relay: Product) -> Api:
    return Api(relay)


@pytest.fixture
def world(relay: Product) -> Iterator[RealWorld]:
    real = RealWorld(relay)
    yield real
    real.close()


def until(condition: Callable[[], object], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def taken_up(api: Api, relay: Product, app: str) -> None:
    """All cores run every rule and mapping of the app: by themselves, or from their next start."""

    def runs() -> bool:
        try:
            lists = [api.ask("GET", f"/apps/{app}/{kind}", core=core)[1] for core in (0, 1) for kind in ("rules", "mappings")]
            ready = [urllib.request.urlopen(f"{admin}/readyz", timeout=5).status for admin in relay.found["admins"]]
        except (OSError, TypeError):
            return False
        return all(each["running"] for found in lists for each in found) and ready == [200, 200]

    if not until(runs, 3.0):
        for core in (0, 1):
            relay.wait_restarted("core", core, relay.kill("core", core, signal.SIGTERM))
    assert until(runs, 60.0)


def record_of(relay: Product, topic: str) -> Any:
    consumer = Consumer({"bootstrap.servers": relay.kafka, "group.id": "none", "isolation.level": "read_committed"})
    try:
        assert until(lambda: topic in consumer.list_topics(timeout=5).topics, 20.0)
        partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        end = time.monotonic() + 20
        while time.monotonic() < end:
            message = consumer.poll(1)
            if message is not None and message.error() is None:
                return message
        raise AssertionError(f"nothing came to {topic}")
    finally:
        consumer.close()


def test_a_rule_and_a_mapping_are_made_by_form_tried_and_do_what_the_preview_said(
    visitor: Visitor, api: Api, world: RealWorld, relay: Product
) -> None:
    unique = str(time.time_ns())
    app = str(api.made("/accounts/tidegate/apps", {"name": f"console {unique}"})["id"])
    key = api.made(f"/apps/{app}/keys", {"name": "web", "capability": {"*": ["*"]}})["key"]
    out, back, bad = f"console-out-{unique}", f"console-in-{unique}", f"console-bad-{unique}"
    page = visitor.page

    page.goto(f"{visitor.origin}/console/")
    visitor.looks("sign-in")
    page.get_by_label("Access token").fill("root.wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("This core does not take the token").wait_for(timeout=SOON_MS)
    visitor.signs_in()

    # A rule
    visitor.goes_to(f"#/apps/{app}/rules")
    page.get_by_text("This app has no rule").wait_for(timeout=SOON_MS)
    visitor.looks("rules-empty")
    page.get_by_role("link", name="New rule").click()
    form, preview = page.get_by_role("form", name="The rule"), page.get_by_role("region", name="Preview")
    form.get_by_label("Topic and key").fill(f"{out}:#{{channelName}}")
    form.get_by_label("Channels").fill("^chat:(")
    preview.get_by_text("not an RE2 expression").wait_for(timeout=SOON_MS)
    visitor.looks("rule-wrong")
    form.get_by_label("Channels").fill("^chat:")
    form.get_by_label("Content").select_option("no")
    preview.get_by_label("Channel", exact=True).fill("room:1")
    preview.get_by_text("The channel filter does not match").wait_for(timeout=SOON_MS)
    preview.get_by_label("Channel", exact=True).fill("chat:lobby")
    preview.get_by_label("Data").fill('{"text": "as previewed"}')
    preview.get_by_text('"as previewed"').wait_for(timeout=SOON_MS)
    shown = {name: preview.locator("dl div", has_text=name).first.locator("dd").inner_text() for name in ("Topic", "Key")}
    assert shown == {"Topic": out, "Key": "chat:lobby"}
    visitor.looks("rule-new")
    form.get_by_role("button", name="Make the rule").click()
    page.get_by_role("table", name="Rules").wait_for(timeout=SOON_MS)

    # A mapping, by keyboard alone
    visitor.goes_to(f"#/apps/{app}/mappings/new")
    form = page.get_by_role("form", name="The mapping")
    form.wait_for(timeout=SOON_MS)
    typed = {"Topics": back, "Channel": "orders:#{key}", "Message name": "#{value.state}"}
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate("document.activeElement.labels?.[0]?.textContent ?? document.activeElement.textContent")
        reached.append(label)
        if label in typed and page.evaluate("document.activeElement.closest('form') !== null"):
            page.keyboard.type(typed[label])
        if label == "Make the mapping":
            break
    assert {*typed, "Topics like", "Begin with", "Keys are", "Values are", "Enabled"} <= set(reached)
    preview.get_by_text("orders:42").wait_for(timeout=SOON_MS)
    visitor.looks("mapping-new")
    page.keyboard.press("Enter")
    page.get_by_role("table", name="Mappings").wait_for(timeout=SOON_MS)
    assert back in page.get_by_role("table", name="Mappings").inner_text()

    # One that will be in trouble, and a rule too
    in_trouble = api.made(f"/apps/{app}/mappings", {"topics": [bad], "channel": "x:#{value.missing}", "onFailedRecordMapping": "stop"})[
        "id"
    ]
    rule = {"ruleType": "kafka", "requestMode": "single", "source": {"type": "channel.message", "channelFilter": "^__"}}
    api.made(f"/apps/{app}/rules", {**rule, "target": {"routingKey": "#{channelName}"}})

    # They run: an event becomes the record, a record the message, as the previews said
    taken_up(api, relay, app)
    client = world.client(key=key)
    client.gets(CONNECTED)
    client.sends(action=ATTACH, channel="orders:42")
    client.gets(ATTACHED, channel="orders:42")
    for channel in ("chat:lobby", "__forbidden:1"):
        published = {"name": "greeting", "data": {"text": "as previewed"}}
        path = f"/channels/{urllib.parse.quote(channel, safe='')}/messages"
        assert world.rest("POST", path, published, credential=key)[0] == 201
    made = record_of(relay, out)
    assert (made.key(), json.loads(made.value())) == (b"chat:lobby", {"text": "as previewed"})
    producer = Producer({"bootstrap.servers": relay.kafka})
    producer.produce(back, key=b"42", value=b'{"state": "paid"}')
    producer.produce(bad, key=b"1", value=b"{}")
    producer.flush(20)
    (message,) = client.gets(MESSAGE, channel="orders:42")["messages"]
    assert (message["name"], json.loads(message["data"])) == ("paid", {"state": "paid"})

    # The console, still open, tells who is well and who is not
    visitor.goes_to(f"#/apps/{app}/mappings")
    page.get_by_text("Stopped").wait_for(timeout=SOON_MS)
    assert "missing field" in page.get_by_role("table", name="Mappings").inner_text()
    visitor.looks("mappings")

    # What has stopped goes on behind it; what runs is held, and told to begin again
    page.get_by_role("link", name=in_trouble).click()
    steering = page.get_by_role("region", name="While it runs")
    steering.get_by_text(f"{bad}, partition").wait_for(timeout=SOON_MS)
    visitor.looks("mapping-stopped")
    steering.get_by_role("button", name="Leave out offset 0").click()
    page.get_by_role("dialog").get_by_role("button", name="Move it").click()
    steering.get_by_text("Running", exact=True).wait_for(timeout=SOON_MS)
    visitor.goes_to(f"#/apps/{app}/mappings")
    page.get_by_role("row", name=back).get_by_role("link").click()
    steering.get_by_role("button", name="Pause").click()
    steering.get_by_text("Paused", exact=True).wait_for(timeout=SOON_MS)
    steering.get_by_text("Go on elsewhere").click()
    steering.get_by_label("Go on with").select_option("offset")
    steering.get_by_label("Offset", exact=True).fill("0")
    steering.get_by_role("button", name="Move it").click()
    page.get_by_role("dialog").get_by_role("button", name="Move it").click()
    steering.get_by_text("is needed with offset").wait_for(timeout=SOON_MS)
    visitor.looks("mapping-move")
    steering.get_by_label("Go on with").select_option("earliest")
    steering.get_by_role("button", name="Move it").click()
    page.get_by_role("dialog").get_by_role("button", name="Move it").click()
    steering.get_by_text("to go on with the oldest record").wait_for(timeout=SOON_MS)
    steering.get_by_role("button", name="Resume").click()
    (message,) = client.gets(MESSAGE, channel="orders:42")["messages"]
    assert (message["name"], json.loads(message["data"])) == ("paid", {"state": "paid"})

    visitor.goes_to(f"#/apps/{app}/rules")
    page.get_by_text("records are dropped: reserved topic").wait_for(timeout=SOON_MS)
    assert [page.get_by_role("table", name="Rules").get_by_text(state).count() for state in ("Running", "Drops records")] == [1, 1]
    visitor.looks("rules")
    visitor.goes_to(f"#/apps/{app}/channels")
    page.get_by_role("table", name="Channels").get_by_text("orders:42").wait_for(timeout=SOON_MS)
    visitor.looks("channels")
    visitor.goes_to(f"#/apps/{app}/keys")
    page.get_by_role("table", name="Keys of this app").wait_for(timeout=SOON_MS)
    page.get_by_label("Channel", exact=True).fill("chat:lobby")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("permits publish on chat:lobby by").wait_for(timeout=SOON_MS)
    visitor.looks("keys")
    secrets = keys_by_form(visitor, api, world, app)
    visitor.goes_to(f"#/apps/{app}/namespaces")
    page.get_by_role("link", name="New namespace").click()
    form = page.get_by_role("form", name="The namespace")
    form.get_by_label("Name").fill("a/b")
    form.get_by_role("button", name="Make the namespace").click()
    form.get_by_text("must not begin with").wait_for(timeout=SOON_MS)
    form.get_by_label("Name").fill("account")
    form.get_by_label("Closed to clients without a clientId").check()
    visitor.looks("namespace-new")
    form.get_by_role("button", name="Make the namespace").click()
    page.get_by_role("table", name="Namespaces").get_by_text("Without clientId").wait_for(timeout=SOON_MS)
    visitor.looks("namespaces")
    (namespace,) = api.ask("GET", f"/apps/{app}/namespaces")[1]
    assert (namespace["id"], namespace["authenticated"], namespace["tlsOnly"]) == ("account", True, False)
    page.get_by_role("link", name="account").click()
    form.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    page.get_by_text("This app has no namespace").wait_for(timeout=SOON_MS)
    visitor.goes_to("#/cluster")
    page.get_by_text("core-2").first.wait_for(timeout=SOON_MS)
    owners = page.get_by_role("table", name="Partitions by owner").inner_text()
    assert "core-1" in owners
    assert "core-2" in owners
    visitor.looks("nodes")
    visitor.goes_to("#/audit")
    page.get_by_role("table", name="Audit").get_by_text("mapping.create").first.wait_for(timeout=SOON_MS)
    visitor.looks("audit")

    # Nothing of a secret has come here, and nothing stays
    everything = "".join(visitor.answers) + page.content()
    for secret in (key.partition(":")[2], visitor.token.partition(".")[2]):
        assert secret not in everything
    for secret in secrets:
        assert sum(secret in answer for answer in visitor.answers) == 1, "when it was made"
        assert secret not in page.content()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert visitor.context.cookies() == []
    page.reload()
    page.get_by_label("Access token").wait_for(timeout=SOON_MS)
    assert (visitor.errors, visitor.elsewhere) == ([], [])


def keys_by_form(visitor: Visitor, api: Api, world: RealWorld, app: str) -> list[str]:
    """A key is made, permits more, and is given another secret. Returns the secrets that were shown."""
    page = visitor.page
    found: list[str] = []

    def take() -> str:
        told = page.get_by_role("dialog").get_by_label("The key with its secret")
        told.wait_for(timeout=SOON_MS)
        visitor.looks("key-made")
        key = str(told.input_value())
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        page.get_by_role("table", name="Keys of this app").get_by_text("for browsers").wait_for(timeout=SOON_MS)
        assert page.get_by_role("dialog").count() == 0
        found.append(key.partition(":")[2])
        return key

    page.get_by_role("link", name="New key").click()
    form = page.get_by_role("form", name="The key")
    form.get_by_label("Name").fill("for browsers")
    form.get_by_role("button", name="Make the key").click()
    form.get_by_text("needs a non-empty list of operations").wait_for(timeout=SOON_MS)
    form.get_by_label("Channels").fill("chat:*")
    form.get_by_label("subscribe", exact=True).check()
    visitor.looks("key-new")
    form.get_by_role("button", name="Make the key").click()
    key = take()
    world.client(key=key).gets(CONNECTED)

    page.get_by_role("link", name="for browsers").click()
    form.get_by_label("publish", exact=True).check()
    form.get_by_role("button", name="Add channels").click()
    form.get_by_label("Channels").last.fill("news")
    form.get_by_label("everything").last.check()
    form.get_by_role("button", name="Save").click()
    page.get_by_role("table", name="Keys of this app").get_by_text("news").wait_for(timeout=SOON_MS)
    (made,) = [each for each in api.ask("GET", f"/apps/{app}/keys")[1] if each["key"] == key]
    assert made["capability"] == {"chat:*": ["publish", "subscribe"], "news": ["*"]}

    page.get_by_role("link", name="for browsers").click()
    form.get_by_role("button", name="Make another secret").click()
    page.get_by_role("dialog").get_by_role("button", name="Make another").click()
    other = take()
    assert (other != key, other.partition(":")[0]) == (True, key.partition(":")[0])
    world.client(key=other).gets(CONNECTED)
    return found


def test_a_rule_into_another_cluster_that_is_saved_keeps_its_login_and_tls(visitor: Visitor, api: Api) -> None:
    """The Control API's other users say nothing of TLS, which is on then, and of mechanisms there are more than most forms have."""
    app = str(api.made("/accounts/tidegate/apps", {"name": f"console {time.time_ns()}"})["id"])
    login = {"mechanism": "oauthbearer", "username": "me", "password": "a secret", "tokenEndpoint": "https://id.example/token"}
    login["tokenCa"] = "-----BEGIN CERTIFICATE-----"
    target = {"routingKey": "t", "brokers": ["127.0.0.1:1"], "auth": {"sasl": login}}
    rule = {"ruleType": "kafka", "requestMode": "single", "status": "disabled", "source": {"type": "channel.message"}, "target": target}
    made = api.made(f"/apps/{app}/rules", rule)["id"]
    visitor.signs_in()
    page, form = visitor.page, visitor.page.get_by_role("form", name="The rule")
    visitor.goes_to(f"#/apps/{app}/rules/{made}")
    form.get_by_label("Topic and key").fill("another")
    visitor.looks("rule-elsewhere")
    form.get_by_role("button", name="Save").click()
    page.get_by_role("table", name="Rules").get_by_text("another").wait_for(timeout=SOON_MS)
    target = api.ask("GET", f"/apps/{app}/rules/{made}")[1]["target"]
    assert (target["tls"], target["auth"]["sasl"].items() >= login.items()) == (True, True)
    visitor.goes_to(f"#/apps/{app}/rules/new")
    form.get_by_text("Another cluster").click()
    assert not form.get_by_label("Over TLS").is_checked()
    form.get_by_label("SASL").select_option("plain")
    assert form.get_by_label("Over TLS").is_checked(), "or the password would be sent in clear"


def test_an_access_token_is_made_shown_once_and_revoked(visitor: Visitor, api: Api) -> None:
    visitor.signs_in()
    page, name = visitor.page, f"ada {time.time_ns()}"
    visitor.goes_to("#/tokens")
    form, tokens = page.get_by_role("form", name="A new token"), page.get_by_role("table", name="Access tokens")
    form.get_by_label("Name").fill(name)
    form.get_by_label("reader", exact=True).uncheck()
    form.get_by_role("button", name="Make the token").click()
    form.get_by_text("must be a list of").wait_for(timeout=SOON_MS)
    form.get_by_label("operator", exact=True).check()
    form.get_by_label("Days until it expires").fill("7")
    visitor.looks("token-new")
    form.get_by_role("button", name="Make the token").click()
    told = page.get_by_role("dialog").get_by_label("The token")
    told.wait_for(timeout=SOON_MS)
    visitor.looks("token-made")
    token = str(told.input_value())
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    row = tokens.get_by_role("row", name=name)
    row.get_by_text("Valid").wait_for(timeout=SOON_MS)
    assert page.get_by_role("dialog").count() == 0
    assert token not in page.content()
    assert sum(token in answer for answer in visitor.answers) == 1, "when it was made"
    (made,) = [each for each in api.ask("GET", "/tokens")[1] if each["name"] == name]
    assert (made["id"], made["scopes"], made["expires"] - made["created"] < 7 * 86_400_000 + 60_000) == (
        token.partition(".")[0], ["operator"], True,
    )  # fmt: skip
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke it").click()
    row.get_by_text("Revoked").wait_for(timeout=SOON_MS)
    visitor.looks("tokens")
    page.reload()
    page.get_by_label("Access token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("This core does not take the token").wait_for(timeout=SOON_MS)
    assert (visitor.errors, visitor.elsewhere) == ([], [])


def test_the_schema_of_a_rule_is_given_shown_and_taken_out_by_form(visitor: Visitor, api: Api) -> None:
    """These cores have no Schema Registry: what the form sends is looked at, and what it makes of a rule that has one."""
    app = str(api.made("/accounts/tidegate/apps", {"name": f"console {time.time_ns()}"})["id"])
    visitor.signs_in()
    page = visitor.page
    form, preview = page.get_by_role("form", name="The rule"), page.get_by_role("region", name="Preview")
    visitor.goes_to(f"#/apps/{app}/rules/new")
    form.get_by_label("Topic and key").fill("orders")
    preview.get_by_text("Topic", exact=True).wait_for(timeout=SOON_MS)
    assert not form.get_by_label("Subject").is_visible()
    form.get_by_label("Schema", exact=True).select_option("avro")
    form.get_by_label("Subject").fill("orders-value")
    form.get_by_label("A payload that is not valid").select_option("dlq")
    with page.expect_request(lambda asked: "orders-dead" in (asked.post_data or "")) as sent:
        form.get_by_label("Dead letter topic").fill("orders-dead")
    schema = {"format": "avro", "subject": "orders-value", "version": 0, "onInvalid": "dlq", "dlqTopic": "orders-dead"}
    assert sent.value.post_data_json["rule"]["target"]["schema"] == schema
    form.get_by_text("needs [schema_registry]").wait_for(timeout=SOON_MS)
    preview.get_by_text("Schema").wait_for(timeout=SOON_MS)
    visitor.looks("rule-schema")

    rule = {"ruleType": "kafka", "requestMode": "single", "source": {"type": "channel.message"}, "target": {"routingKey": "orders"}}
    made = api.made(f"/apps/{app}/rules", rule)
    given = {**made, "target": {**made["target"], "schema": {**schema, "version": 3}}}
    path = f"**/rules/{made['id']}"
    page.route(path, lambda route: route.fulfill(json=given) if route.request.method == "GET" else route.continue_())
    visitor.goes_to(f"#/apps/{app}/rules/{made['id']}")
    form.get_by_label("Version").wait_for(timeout=SOON_MS)
    assert [form.get_by_label(label).input_value() for label in ("Subject", "Version", "Dead letter topic")] == [
        "orders-value", "3", "orders-dead",
    ]  # fmt: skip
    form.get_by_label("Schema", exact=True).select_option("")
    with page.expect_request(lambda asked: asked.method == "PATCH") as sent:
        form.get_by_role("button", name="Save").click()
    assert sent.value.post_data_json["target"]["schema"] is None
    page.get_by_role("table", name="Rules").wait_for(timeout=SOON_MS)
    assert (visitor.errors, visitor.elsewhere) == ([], [])


def test_a_reader_is_told_what_a_token_may_not(visitor: Visitor, api: Api) -> None:
    visitor.token = api.ask("POST", "/tokens", {"name": "looks only", "scopes": ["reader"]})[1]["token"]
    visitor.signs_in()
    page = visitor.page
    visitor.goes_to("#/audit")
    page.get_by_text("Your token may not read the audit").wait_for(timeout=SOON_MS)
    visitor.goes_to("#/tokens")
    page.get_by_text("Your token may not read this list").wait_for(timeout=SOON_MS)
    visitor.goes_to("#/apps")
    page.get_by_text("takes a token with the scope security").wait_for(timeout=SOON_MS)
    visitor.goes_to("#/apps/dev/rules")
    page.get_by_role("link", name="rule-1").wait_for(timeout=SOON_MS)
    assert page.get_by_role("link", name="New rule").count() == 0
    page.get_by_role("link", name="rule-1").click()
    page.get_by_text("Configured in core.toml").wait_for(timeout=SOON_MS)
    page.get_by_role("region", name="Preview").get_by_text("becomes this record").wait_for(timeout=SOON_MS)
    assert page.get_by_role("button", name="Save").count() == 0
    visitor.goes_to("#/apps/dev/mappings/mapping-1")
    page.get_by_role("region", name="While it runs").get_by_text("Running", exact=True).wait_for(timeout=SOON_MS)
    assert page.get_by_role("button", name="Pause").count() == 0
    visitor.goes_to("#/apps/dev/keys/new")
    page.get_by_text("This key cannot be changed here").wait_for(timeout=SOON_MS)

    # Nor does one that may make keys show their secrets, unless it may show any.
    app = api.made("/accounts/tidegate/apps", {"name": f"console {time.time_ns()}"})["id"]
    visitor.token = api.ask("POST", "/tokens", {"name": "no secrets", "scopes": ["reader", "security"]})[1]["token"]
    visitor.signs_in()
    visitor.goes_to(f"#/apps/{app}/keys/new")
    page.get_by_label("subscribe", exact=True).check()
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("dialog").get_by_text("not shown to your token").wait_for(timeout=SOON_MS)
    ((_, secret),) = [each["key"].split(":") for each in api.ask("GET", f"/apps/{app}/keys")[1]]
    assert not any(secret in answer for answer in visitor.answers)
    visitor.goes_to("#/tokens")
    page.get_by_text("takes a token with the scope secrets too").wait_for(timeout=SOON_MS)
    assert page.get_by_role("form").count() == 0


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """A page of somebody else's. On this machine: for pages from farther away a browser would not even try."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_pages_of_others_get_nothing_out_of_the_listener(chromium: Any, relay: Product, elsewhere: str) -> None:
    origin = relay.found["admins"][0]
    port = origin.rsplit(":", 1)[1]
    page = chromium.new_page()
    answer = page.goto(f"http://{STRANGER}:{port}/console/")  # a name that has been rebound to this address
    assert answer.status == 421
    statuses: list[tuple[str, int]] = []
    page.on("response", lambda response: statuses.append((response.url.removeprefix(origin), response.status)))
    page.goto(elsewhere)
    got = page.evaluate(
        """async (origin) => {
          const tried = [];
          for (const options of [{}, {mode: "no-cors"}, {method: "POST", mode: "no-cors", body: "{}"}])
            try { tried.push(await (await fetch(origin + "/v1/status", options)).text()); } catch { tried.push("refused"); }
          const frame = document.createElement("iframe");
          frame.src = origin + "/console/";
          const loaded = new Promise((done) => { frame.onload = done; });
          document.body.append(frame);
          await loaded;
          return tried;
        }""",
        origin,
    )
    assert got == ["refused", "", ""]
    assert {status for path, status in statuses if path == "/v1/status"} == {403}
    assert ("/console/", 403) in statuses
    assert "Access token" not in page.frames[1].content()
    page.close()
