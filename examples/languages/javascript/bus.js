// One login at the XMPP server, from parts of @xmpp/client: the README says why not from the whole.

import { Client, xml } from "@xmpp/client-core";
import iqCaller from "@xmpp/iq/caller.js";
import createMiddleware from "@xmpp/middleware";
import resourceBinding from "@xmpp/resource-binding";
import createStreamFeatures from "@xmpp/stream-features";
import tcp from "@xmpp/tcp";
import TLSSocket from "@xmpp/tls/lib/Socket.js";
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { once } from "node:events";

const NS_TLS = "urn:ietf:params:xml:ns:xmpp-tls";
const NS_SASL = "urn:ietf:params:xml:ns:xmpp-sasl";
const LOGIN_TIMEOUT = 30_000; // milliseconds
const MECHANISMS = { "SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1" };
const MOST_ITERATIONS = 1_000_000;

/** The server does not take these credentials, now or later. */
export class LoginRefused extends Error {}

/**
 * Logs in over STARTTLS with SCRAM and binds the resource; rejects when that fails or takes longer than 30 s.
 * The client that it gives emits "stanza" for each stanza, and "disconnect" once, at its end.
 * `client.drop()` cuts the connection without a word; `client.backlog` is how many bytes wait to be written.
 */
export async function login({ address, resource, password, server, ca }) {
  const [username, domain] = address.split("@");
  const client = new Client({ service: `xmpp://${server}`, domain, timeout: LOGIN_TIMEOUT });
  const middleware = createMiddleware({ entity: client });
  const streamFeatures = createStreamFeatures({ middleware });
  tcp({ entity: client });
  streamFeatures.use("starttls", NS_TLS, () => startTLS(client, domain, ca));
  streamFeatures.use("mechanisms", NS_SASL, (_context, _next, offer) =>
    authenticate(client, offer, username, password),
  );
  resourceBinding({ streamFeatures, iqCaller: iqCaller({ middleware, entity: client }) }, resource);

  const connected = client.connect(client.options.service);
  const socket = client.socket.setNoDelay(true); // or Nagle's algorithm holds answers back for 40 ms
  client.drop = () => socket.destroy();
  Object.defineProperty(client, "backlog", { get: () => client.socket?.socket?.writableLength ?? 0 });

  return new Promise((resolve, reject) => {
    const fail = (error) => {
      clearTimeout(timer);
      client.drop();
      reject(error);
    };
    const timer = setTimeout(() => fail(new Error("the login took too long")), LOGIN_TIMEOUT);
    client.on("error", fail);
    client.once("disconnect", () => fail(new Error("the server closed the connection")));
    client.once("online", () => {
      clearTimeout(timer);
      // The login was the middleware's last work; it throws at addresses that its parser does not like.
      client.removeAllListeners("element").removeAllListeners("send");
      client.once("close", client.drop);
      resolve(client);
    });
    connected.then(() => client.open({ domain })).catch(fail);
  });
}

/** The client listens for errors as well, but only until it has heard of the first one; a later one would end the process. */
async function startTLS(client, domain, ca) {
  const answer = await client.sendReceive(xml("starttls", { xmlns: NS_TLS }));
  if (!answer.is("proceed", NS_TLS)) throw new Error("the server refused TLS");
  const secure = new TLSSocket();
  secure.connect({ socket: client.socket, host: domain, servername: domain, ca });
  for (const socket of [client.socket, secure, secure.socket]) socket.on("error", () => {});
  secure.socket.setEncoding("utf8"); // the library decodes chunk by chunk, and would break characters
  client._attachSocket(secure);
  await once(secure, "connect");
  await client.restart();
}

/** SCRAM (RFC 5802, RFC 7677), in which the server proves as well that it knows the password. */
async function authenticate(client, offer, username, password) {
  if (!client.isSecure()) throw new LoginRefused("the server offers no TLS");
  const offered = offer.getChildren("mechanism").map((mechanism) => mechanism.text());
  const name = Object.keys(MECHANISMS).find((mechanism) => offered.includes(mechanism));
  if (!name) throw new LoginRefused(`the server offers no SCRAM, only ${offered.join(", ")}`);
  const hmac = (key, data) => createHmac(MECHANISMS[name], key).update(data).digest();
  const base64 = (data) => Buffer.from(data).toString("base64");
  const exchange = async (element, mechanism, text) => {
    const answer = await client.sendReceive(xml(element, { xmlns: NS_SASL, mechanism }, base64(text)));
    const condition = answer.getChildElements()[0]?.name;
    if (condition === "temporary-auth-failure") throw new Error(condition);
    if (answer.is("failure")) throw new LoginRefused(`the server refused the login: ${condition}`);
    return Buffer.from(answer.text(), "base64").toString();
  };

  const nonce = randomBytes(18).toString("base64");
  const first = `n=${username.replaceAll("=", "=3D").replaceAll(",", "=2C")},r=${nonce}`;
  const challenge = await exchange("auth", name, `n,,${first}`);
  const { r, s, i } = Object.fromEntries(challenge.split(",").map((part) => [part[0], part.slice(2)]));
  if (!r?.startsWith(nonce) || !s || !(i > 0 && i <= MOST_ITERATIONS))
    throw new Error("the server's challenge is wrong");
  const size = createHash(MECHANISMS[name]).digest().length;
  const salted = pbkdf2Sync(password, Buffer.from(s, "base64"), Number(i), size, MECHANISMS[name]);
  const clientKey = hmac(salted, "Client Key");
  const storedKey = createHash(MECHANISMS[name]).update(clientKey).digest();
  const last = `c=${base64("n,,")},r=${r}`;
  const signed = `${first},${challenge},${last}`;
  const signature = hmac(storedKey, signed);
  const proof = clientKey.map((byte, n) => byte ^ signature[n]);
  const verifier = await exchange("response", undefined, `${last},p=${base64(proof)}`);
  if (verifier !== `v=${base64(hmac(hmac(salted, "Server Key"), signed))}`)
    throw new Error("the server does not know the password");
  await client.restart();
}
