package agent;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.util.Base64;
import java.util.HexFormat;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.crypto.Mac;
import javax.crypto.SecretKeyFactory;
import javax.crypto.spec.PBEKeySpec;
import javax.crypto.spec.SecretKeySpec;
import javax.security.auth.callback.CallbackHandler;
import org.jivesoftware.smack.SmackException.SmackSaslException;
import org.jivesoftware.smack.sasl.SASLMechanism;

/** SCRAM-SHA-256 (RFC 7677): Smack 4.4 has SCRAM with SHA-1 only, and its ScramMechanism cannot be given another hash. */
final class ScramSha256 extends SASLMechanism {
    static final String NAME = "SCRAM-SHA-256";
    private static final int LEAST_ITERATIONS = 4096, MOST_ITERATIONS = 1000000;

    private String nonce, first, expected;
    private boolean verified;

    @Override
    protected byte[] getAuthenticationText() {
        var bytes = new byte[24];
        new SecureRandom().nextBytes(bytes);
        nonce = HexFormat.of().formatHex(bytes);
        first = "n=" + saslPrep(authenticationId).replace("=", "=3D").replace(",", "=2C") + ",r=" + nonce;
        return ("n,," + first).getBytes(UTF_8);
    }

    @Override
    protected byte[] evaluateChallenge(byte[] challenge) throws SmackSaslException {
        var text = new String(challenge, UTF_8);
        if (expected != null) {
            verified = MessageDigest.isEqual(expected.getBytes(UTF_8), challenge);
            if (!verified) throw new SmackSaslException("the server does not know the password");
            return null;
        }
        try {
            return prove(text);
        } catch (GeneralSecurityException | IllegalArgumentException e) {
            throw new SmackSaslException("the server's challenge cannot be read", e);
        }
    }

    private byte[] prove(String challenge) throws GeneralSecurityException, SmackSaslException {
        Map<String, String> said = Stream.of(challenge.split(","))
                .filter(part -> part.indexOf('=') == 1)
                .collect(Collectors.toMap(part -> part.substring(0, 1), part -> part.substring(2), (a, b) -> a));
        var iterations = Integer.parseInt(said.getOrDefault("i", "0"));
        if (!said.getOrDefault("r", "").startsWith(nonce) || iterations < LEAST_ITERATIONS || iterations > MOST_ITERATIONS)
            throw new SmackSaslException("the server's challenge does not fit");
        var salt = Base64.getDecoder().decode(said.getOrDefault("s", ""));
        var salted = SecretKeyFactory.getInstance("PBKDF2WithHmacSHA256")
                .generateSecret(new PBEKeySpec(saslPrep(password).toCharArray(), salt, iterations, 256))
                .getEncoded();
        var last = "c=biws,r=" + said.get("r"); // biws is "n,,"
        var message = first + "," + challenge + "," + last;
        var proof = hmac(salted, "Client Key");
        var signature = hmac(MessageDigest.getInstance("SHA-256").digest(proof), message);
        for (var i = 0; i < proof.length; i++) proof[i] ^= signature[i];
        expected = "v=" + Base64.getEncoder().encodeToString(hmac(hmac(salted, "Server Key"), message));
        return (last + ",p=" + Base64.getEncoder().encodeToString(proof)).getBytes(UTF_8);
    }

    private static byte[] hmac(byte[] key, String text) throws GeneralSecurityException {
        var mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(text.getBytes(UTF_8));
    }

    @Override
    public void checkIfSuccessfulOrThrow() throws SmackSaslException {
        if (!verified) throw new SmackSaslException("the server did not show that it knows the password");
    }

    @Override
    protected void authenticateInternal(CallbackHandler handler) {
        throw new UnsupportedOperationException();
    }

    @Override
    public String getName() {
        return NAME;
    }

    @Override
    public int getPriority() {
        return 100; // before SCRAM-SHA-1
    }

    @Override
    public boolean authzidSupported() {
        return false;
    }

    @Override
    protected SASLMechanism newInstance() {
        return new ScramSha256();
    }
}
