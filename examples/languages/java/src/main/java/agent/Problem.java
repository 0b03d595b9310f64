package agent;

/** Why a stanza or an op is refused, or how it failed: section 9.1. */
final class Problem extends Exception {
    final String reason;

    Problem(String reason, String text) {
        super(text);
        this.reason = reason;
    }
}
