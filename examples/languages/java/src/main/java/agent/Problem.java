package agent;

/** Why an op is refused, or how it failed, by one of the reasons of docs/protocol.md, section 9.1. */
final class Problem extends Exception {
    final String reason;

    Problem(String reason, String text) {
        super(text);
        this.reason = reason;
    }
}
