// The login at the XMPP server: what @xmpp/client would do otherwise is in the README.

import { client as createClient, xml } from "@xmpp/client";
import { upgrade } from "@xmpp/starttls/starttls.js";
import { createHash, createHmac, pbkdf2Sync, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

const TIMEOUT = 20_000; // milliseconds
const SASL = "urn:ietf:params:xml:ns:xmpp-sasl";

const variable = (name) => process.env[name] || quit(`${name} is not set`);

export const address = variable("SPINAL_ADDRESS");
export const dispatchers = (process.env.SPINAL_DISPATCHER ?? "").split(" ").filter(Boolean);
const [username, domain] = address.split("@");
const [server] = variable("SPINAL_SERVER").split(" ");
const ca = readFileSync(variable("SPINAL_CA"));
const password = readFileSync(variable("SPINAL_PASSWORD_FILE"), "utf8").trim();

/** Once it is started, it logs in whenever it is offline. */
export const client = createClient({ service: `xmpp://${server}`, domain, resource: "agent", timeout: TIMEOUT });

client.on("error", (error) => console.error(error.message));

let watch; // the library would wait for ever for a login that hangs
client.on("connecting", () => {
  clearTimeout(watch);
  watch = setTimeout(() => client.status === "online" || client.disconnect(), TIMEOUT);
});

// Of what the server offers, the library sees the binding of the resource only.
client.prependListener("element", (features) => {
  if (!features.is("features")) return;
  const login = features.getChild("starttls") ? startTLS : features.getChild("mechanisms") && authenticate;
  features.children = features.getChildren("bind");
  login?.().catch((error) => client.emit("error", error));
});

function quit(text) {
  console.error(text);
  process.exit(1);
}

async function startTLS() {
  await client.sendReceive(xml("starttls", { xmlns: "urn:ietf:params:xml:ns:xmpp-tls" }));
  const secure = await upgrade(client.socket.setNoDelay(true), { host: domain, ca });
  secure.socket.setEncoding("utf8");
  client._attachSocket(secure);
  await client.restart();
}

/** SCRAM-SHA-256 (RFC 5802, RFC 7677), in which the server proves as well that it knows the password. */
async function authenticate() {
  if (!client.isSecure()) throw new Error("the server offers no TLS");
  const base64 = (data) => Buffer.from(data).toString("base64");
  const hmac = (key, text) => createHmac("sha256", key).update(text).digest();
  const exchange = async (name, text) => {
    const answer = await client.sendReceive(xml(name, { xmlns: SASL, mechanism: "SCRAM-SHA-256" }, base64(text)));
    if (answer.is("failure")) quit(`the server refused the login: ${answer.getChildElements()[0]?.name}`);
    return Buffer.from(answer.text(), "base64").toString();
  };

  const first = `n=${username},r=${randomUUID()}`;
  const challenge = await exchange("auth", `n,,${first}`);
  const { r, s, i } = Object.fromEntries(challenge.split(",").map((part) => [part[0], part.slice(2)]));
  const salted = pbkdf2Sync(password, Buffer.from(s, "base64"), Number(i), 32, "sha256");
  const signed = `${first},${challenge},c=biws,r=${r}`;
  const key = hmac(salted, "Client Key");
  const signature = hmac(createHash("sha256").update(key).digest(), signed);
  const proof = base64(key.map((byte, n) => byte ^ signature[n]));
  const verifier = await exchange("response", `c=biws,r=${r},p=${proof}`);
  if (verifier !== `v=${base64(hmac(hmac(salted, "Server Key"), signed))}`) quit("the server is an impostor");
  await client.restart();
}
