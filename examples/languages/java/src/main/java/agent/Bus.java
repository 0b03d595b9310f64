package agent;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.*;
import java.security.*;
import java.security.cert.CertificateFactory;
import java.util.*;
import java.util.function.Consumer;
import javax.net.ssl.*;
import javax.xml.namespace.QName;
import org.jivesoftware.smack.*;
import org.jivesoftware.smack.ConnectionConfiguration.SecurityMode;
import org.jivesoftware.smack.SmackException.NotConnectedException;
import org.jivesoftware.smack.XMPPException.StreamErrorException;
import org.jivesoftware.smack.packet.*;
import org.jivesoftware.smack.packet.StanzaError.Condition;
import org.jivesoftware.smack.tcp.*;
import org.jivesoftware.smack.util.ParserUtils;
import org.jivesoftware.smack.xml.*;
import org.jivesoftware.smack.xml.XmlPullParser.Event;
import org.jxmpp.jid.Jid;
import org.jxmpp.jid.impl.JidCreate;
import org.jxmpp.jid.parts.Resourcepart;

/** The connection to the server: reads stanzas and writes them, and knows nothing of what is in them. */
final class Bus extends XMPPTCPConnection {
    private static final String NS = "urn:spinal:1";
    private static final Map<String, Condition> CONDITIONS = Map.of(
            "malformed", Condition.bad_request,
            "not-allowed", Condition.forbidden,
            "not-understood", Condition.feature_not_implemented,
            "too-large", Condition.policy_violation,
            "unreachable", Condition.service_unavailable);

    /** A stanza that came, such as "iq set": the text of its {@code <x>}, or null, and the answer as far as it goes. */
    record Incoming(String kind, Jid from, String id, String text, List<ObjectNode> answer) {}

    private final Consumer<Incoming> take;
    private final Runnable begin;

    /** Gives each stanza to {@code take}, and runs {@code begin} after each login. */
    Bus(Consumer<Incoming> take, Runnable begin) throws IOException, GeneralSecurityException {
        super(configuration());
        this.take = take;
        this.begin = begin;
        setUseStreamManagement(false); // a dead agent has to be seen as dead at once
        ReconnectionManager.getInstanceFor(this).enableAutomaticReconnection(); // not after a conflict
        addConnectionListener(new ConnectionListener() {
            @Override
            public void connectionClosedOnError(Exception e) {
                System.err.println("agent: the stream was lost");
                if (e instanceof StreamErrorException error
                        && error.getStreamError().getCondition() == StreamError.Condition.conflict)
                    Runtime.getRuntime().halt(1); // another one has our address
            }
        });
    }

    static String variable(String name) {
        return Optional.ofNullable(System.getenv(name)).orElseThrow(() -> new NoSuchElementException(name));
    }

    private static XMPPTCPConnectionConfiguration configuration() throws IOException, GeneralSecurityException {
        SASLAuthentication.registerSASLMechanism(new ScramSha256());
        var address = JidCreate.entityBareFrom(variable("SPINAL_ADDRESS"));
        var password = Path.of(variable("SPINAL_PASSWORD_FILE"));
        var server = variable("SPINAL_SERVER").split(" ")[0].split(":(?=\\d+$)");
        return XMPPTCPConnectionConfiguration.builder()
                .setXmppDomain(address.asDomainBareJid())
                .setUsernameAndPassword(
                        address.getLocalpart(), Files.readAllLines(password).get(0))
                .setResource(Resourcepart.from("agent"))
                .setHost(server[0].replaceAll("[\\[\\]]", ""))
                .setPort(Integer.parseInt(server[1]))
                .setSecurityMode(SecurityMode.required)
                .setCustomX509TrustManager(trust(Path.of(variable("SPINAL_CA"))))
                .addEnabledSaslMechanism(ScramSha256.NAME) // and no other
                .build();
    }

    private static X509TrustManager trust(Path authorities) throws IOException, GeneralSecurityException {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (var file = Files.newInputStream(authorities)) {
            for (var certificate : CertificateFactory.getInstance("X.509").generateCertificates(file))
                store.setCertificateEntry("authority " + store.size(), certificate);
        }
        var factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        return (X509TrustManager) factory.getTrustManagers()[0];
    }

    @Override
    protected void afterSuccessfulLogin(boolean resumed) throws NotConnectedException, InterruptedException {
        super.afterSuccessfulLogin(resumed); // sends presence
        begin.run();
    }

    /** Reads in place of Smack 4.4.8, which loses the stream over an IQ that it does not know or that is empty. */
    @Override
    protected void parseAndProcessStanza(XmlPullParser parser)
            throws XmlPullParserException, IOException, InterruptedException {
        var name = parser.getName();
        if (name.equals("iq") && !isAuthenticated()) {
            super.parseAndProcessStanza(parser); // the login is Smack's
            return;
        }
        var type = Objects.requireNonNullElse(parser.getAttributeValue("", "type"), "available");
        var from = Objects.requireNonNullElse(ParserUtils.getJidAttribute(parser, "from"), getXMPPServiceDomain());
        var id = parser.getAttributeValue("", "id");
        var depth = parser.getDepth();
        StringBuilder text = null;
        for (var event = parser.next(); event != Event.END_ELEMENT || parser.getDepth() > depth; event = parser.next())
            if (event == Event.START_ELEMENT && parser.getQName().equals(new QName(NS, "x")))
                text = new StringBuilder();
            else if (event == Event.TEXT_CHARACTERS && text != null) text.append(parser.getText());
        take.accept(
                new Incoming(name + " " + type, from, id, text == null ? null : text.toString(), new ArrayList<>()));
    }

    /** Answers an IQ with the events that were gathered for it. */
    void answer(Incoming iq) {
        var text = Json.write(iq.answer); // now, because they change
        var result = new IQ(iq.answer.isEmpty() ? null : "x", NS) {
            @Override
            protected IQChildElementXmlStringBuilder getIQChildElementBuilder(IQChildElementXmlStringBuilder xml) {
                xml.rightAngleBracket().escape(text);
                return xml;
            }
        };
        result.setType(IQ.Type.result);
        result.setTo(iq.from);
        result.setStanzaId(iq.id);
        say(result);
    }

    /** Answers an IQ of which nothing was taken (section 9.2). */
    void refuse(Incoming iq, Problem problem) {
        var error = StanzaError.getBuilder(CONDITIONS.get(problem.reason))
                .setDescriptiveEnText(problem.getMessage())
                .addExtension(extension("reason", problem.reason));
        var data = StanzaBuilder.buildIqData(iq.id).ofType(IQ.Type.error);
        say(ErrorIQ.builder(error.build(), data).to(iq.from).build());
    }

    /** Directs presence with an event. */
    void tell(Jid to, ObjectNode event) {
        var x = extension("x", Json.write(List.of(event)));
        say(StanzaBuilder.buildPresence().to(to).addExtension(x).build());
    }

    private static StandardExtensionElement extension(String name, String text) {
        return StandardExtensionElement.builder(name, NS).setText(text).build();
    }

    private void say(Stanza stanza) {
        try {
            if (isAuthenticated()) sendStanza(stanza);
        } catch (NotConnectedException | InterruptedException e) {
            System.err.println("agent: a stanza was not sent: " + e.getMessage()); // whoever misses it asks again
        }
    }
}
