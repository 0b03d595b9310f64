package agent;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;
import org.jivesoftware.smack.ConnectionConfiguration.SecurityMode;
import org.jivesoftware.smack.ConnectionListener;
import org.jivesoftware.smack.SASLAuthentication;
import org.jivesoftware.smack.SmackConfiguration;
import org.jivesoftware.smack.SmackConfiguration.UnknownIqRequestReplyMode;
import org.jivesoftware.smack.SmackException;
import org.jivesoftware.smack.SmackException.NoResponseException;
import org.jivesoftware.smack.XMPPException;
import org.jivesoftware.smack.filter.StanzaTypeFilter;
import org.jivesoftware.smack.packet.Presence;
import org.jivesoftware.smack.packet.SimpleIQ;
import org.jivesoftware.smack.parsing.ExceptionLoggingCallback;
import org.jivesoftware.smack.provider.ProviderManager;
import org.jivesoftware.smack.sasl.SASLError;
import org.jivesoftware.smack.sasl.SASLErrorException;
import org.jivesoftware.smack.tcp.XMPPTCPConnectionConfiguration;
import org.jxmpp.jid.EntityBareJid;
import org.jxmpp.jid.impl.JidCreate;
import org.jxmpp.jid.parts.Resourcepart;

/** An agent on a Spinal bus, written from docs/protocol.md: credentials, connection, end. */
public final class Main {
    private static final long BACKOFF = 30000, PING = 20000; // milliseconds
    private static final Logger SMACK = Logger.getLogger("org.jivesoftware.smack");
    private static volatile boolean ending;
    private static volatile int status;

    private Main() {}

    public static void main(String[] args) throws InterruptedException {
        SMACK.setLevel(Level.OFF);
        SmackConfiguration.setUnknownIqRequestReplyMode(UnknownIqRequestReplyMode.replyServiceUnavailable);
        SmackConfiguration.setDefaultParsingExceptionCallback(new ExceptionLoggingCallback());
        SASLAuthentication.registerSASLMechanism(new ScramSha256());
        ProviderManager.addIQProvider("x", Wire.NS, new Wire.EventsProvider());
        try {
            var address = JidCreate.entityBareFrom(variable("SPINAL_ADDRESS"));
            var agent = new Agent(
                    address.getDomain().toString(),
                    Stream.of(variable("SPINAL_DISPATCHER").split(" "))
                            .filter(name -> !name.isEmpty())
                            .toList());
            stayConnected(agent, configuration(address));
        } catch (IOException | GeneralSecurityException | IllegalArgumentException e) {
            die(e.getClass().getSimpleName() + ": " + e.getMessage());
        }
    }

    private static void stayConnected(Agent agent, XMPPTCPConnectionConfiguration configuration)
            throws InterruptedException {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> end(agent)));
        var ever = false;
        for (long pause = 0;
                !ending;
                Thread.sleep(pause / 2 + ThreadLocalRandom.current().nextLong(pause / 2))) {
            var connection = new Connection(configuration);
            var closed = new CountDownLatch(1);
            try {
                prepare(connection, agent, closed);
                connection.connect().login();
                agent.online(connection);
                System.out.println("online " + connection.getUser());
                ever = true;
                pause = 0;
                while (!closed.await(PING, TimeUnit.MILLISECONDS)) ping(connection, closed);
                if (!ending) complain("the connection was lost");
            } catch (SASLErrorException e) {
                if (!ever && e.getSASLFailure().getSASLError() == SASLError.not_authorized)
                    die("the login was refused");
                complain(String.valueOf(e.getMessage()));
            } catch (SmackException | XMPPException | IOException e) {
                if (!ever && isAboutCertificate(e))
                    die("the certificate of the server is not trusted: " + e.getMessage());
                complain(String.valueOf(e.getMessage()));
            } finally {
                agent.offline();
                connection.instantShutdown();
            }
            pause = pause == 0 ? 1000 : Math.min(BACKOFF, 2 * pause);
        }
        Thread.currentThread().join(); // the end is under way
    }

    private static void prepare(Connection connection, Agent agent, CountDownLatch closed) {
        connection.registerIQRequestHandler(new Wire.Handler(agent::take));
        connection.addSyncStanzaListener(stanza -> agent.take((Presence) stanza), StanzaTypeFilter.PRESENCE);
        connection.addConnectionListener(new ConnectionListener() {
            @Override
            public void connectionClosed() {
                closed.countDown();
            }

            @Override
            public void connectionClosedOnError(Exception e) {
                closed.countDown();
            }
        });
    }

    /** Asks the server whether it is there: a cut cable closes no socket. */
    private static void ping(Connection connection, CountDownLatch closed) {
        connection
                .sendIqRequestAsync(new SimpleIQ("ping", "urn:xmpp:ping") {}, PING / 2)
                .onError(e -> {
                    if (e instanceof NoResponseException) closed.countDown();
                });
    }

    private static void end(Agent agent) {
        ending = true;
        if (status == 0) {
            try {
                agent.drain();
            } catch (InterruptedException e) {
                complain("interrupted while it drained");
            }
        }
        Runtime.getRuntime().halt(status); // in place of 143, which is what SIGTERM would give
    }

    private static XMPPTCPConnectionConfiguration configuration(EntityBareJid address)
            throws IOException, GeneralSecurityException {
        var server = Pattern.compile("\\[?(.+?)]?:(\\d{1,5})").matcher(variable("SPINAL_SERVER"));
        if (!server.matches()) die("SPINAL_SERVER is not host:port");
        var password =
                Files.readString(Path.of(variable("SPINAL_PASSWORD_FILE"))).strip();
        return XMPPTCPConnectionConfiguration.builder()
                .setXmppDomain(address.asDomainBareJid())
                .setUsernameAndPassword(address.getLocalpart(), password)
                .setResource(Resourcepart.from("agent"))
                .setHost(server.group(1))
                .setPort(Integer.parseInt(server.group(2)))
                .setSecurityMode(SecurityMode.required)
                .setCustomX509TrustManager(trustManager(Path.of(variable("SPINAL_CA"))))
                .addEnabledSaslMechanism(List.of(ScramSha256.NAME, "SCRAM-SHA-1"))
                .setSendPresence(false)
                .build();
    }

    private static X509TrustManager trustManager(Path authority) throws IOException, GeneralSecurityException {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (var stream = Files.newInputStream(authority)) {
            var name = 0;
            for (var certificate : CertificateFactory.getInstance("X.509").generateCertificates(stream))
                store.setCertificateEntry("authority-" + name++, certificate);
        }
        var factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        return (X509TrustManager) factory.getTrustManagers()[0];
    }

    private static boolean isAboutCertificate(Throwable e) {
        return e != null && (e instanceof CertificateException || isAboutCertificate(e.getCause()));
    }

    private static String variable(String name) {
        var value = System.getenv(name);
        if (value == null) die(name + " is missing");
        return value;
    }

    private static void complain(String text) {
        System.err.println("agent: " + text.lines().findFirst().orElse("failed"));
    }

    private static void die(String text) {
        complain(text);
        status = 1;
        System.exit(1);
    }
}
