// Looks around and runs a command, knowing nothing of Spinal: XEP-0030, XEP-0050, XEP-0004.
// Arguments: an address, a command there, and its form as JSON: {"field": ["value"]}.
import { readFileSync } from "node:fs";
import { client, xml } from "@xmpp/client";

const INFO = "http://jabber.org/protocol/disco#info";
const ITEMS = "http://jabber.org/protocol/disco#items";
const COMMANDS = "http://jabber.org/protocol/commands";
const FORMS = "jabber:x:data";

const [to, node, filled] = process.argv.slice(2);
const { env } = process;
const [username, domain] = env.SPINAL_ADDRESS.split("@");
const [password] = readFileSync(env.SPINAL_PASSWORD_FILE, "utf8").split(/\r?\n/);
const xmpp = client({ service: `xmpp://${env.SPINAL_SERVER}`, domain, username, password });

const get = (query) => xmpp.iqCaller.request(xml("iq", { type: "get", to }, query));
const set = (command) => xmpp.iqCaller.request(xml("iq", { type: "set", to }, command));
const all = (element, name) => element.getChildren(name);

async function look() {
  const info = (await get(xml("query", INFO))).getChild("query", INFO);
  const { category, type, name } = info.getChild("identity").attrs;
  console.log(`identity ${category}/${type} ${name}`);
  console.log(`features ${all(info, "feature").map((one) => one.attrs.var).join(" ")}`);
  const items = await get(xml("query", { xmlns: ITEMS, node: COMMANDS }));
  const listed = all(items.getChild("query", ITEMS), "item").map((one) => one.attrs.node);
  console.log(`commands ${listed.sort().join(" ")}`);
}

async function run() {
  const asked = { xmlns: COMMANDS, node, action: "execute" };
  const first = (await set(xml("command", asked))).getChild("command", COMMANDS);
  const { sessionid } = first.attrs;
  const fields = all(first.getChild("x", FORMS), "field");
  console.log(`form ${fields.map(({ attrs }) => `${attrs.var}=${attrs.type}`).join(" ")}`);
  const said = Object.entries(JSON.parse(filled)).map(([name, values]) =>
    xml("field", { var: name }, ...values.map((value) => xml("value", {}, value))));
  const form = xml("x", { xmlns: FORMS, type: "submit" }, ...said);
  const done = await set(xml("command", { ...asked, action: "complete", sessionid }, form));
  const command = done.getChild("command", COMMANDS);
  const [result] = all(command.getChild("x", FORMS), "field");
  console.log(`${command.attrs.status} ${result.getChildText("value")}`);
}

xmpp.on("error", (error) => console.error(`${error}`));
xmpp.on("online", async () => {
  try {
    await look();
    await run();
  } catch (error) {
    console.log(`${error.name} ${error.condition}: ${error.text}`);
  }
  await xmpp.stop();
});
await xmpp.start().catch(() => process.exit(1));
