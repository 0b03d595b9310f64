package agent;

import java.io.IOException;
import org.jivesoftware.smack.SmackException.NotConnectedException;
import org.jivesoftware.smack.packet.IQ;
import org.jivesoftware.smack.packet.Stanza;
import org.jivesoftware.smack.packet.StanzaError;
import org.jivesoftware.smack.packet.UnparsedIQ;
import org.jivesoftware.smack.tcp.XMPPTCPConnection;
import org.jivesoftware.smack.tcp.XMPPTCPConnectionConfiguration;
import org.jivesoftware.smack.xml.XmlPullParser;
import org.jivesoftware.smack.xml.XmlPullParserException;
import org.jxmpp.jid.Jid;
import org.jxmpp.jid.impl.JidCreate;

/** A connection that no IQ can end: Smack 4.4.8 itself loses the stream over one that it does not know. */
final class Connection extends XMPPTCPConnection {
    Connection(XMPPTCPConnectionConfiguration configuration) {
        super(configuration);
        setUseStreamManagement(false); // so that a dead agent is seen as dead at once
    }

    /** Answers an unknown IQ; Smack would repeat it in the answer, as UnparsedIQ, which it writes without a {@code >}. */
    @Override
    protected void processStanza(Stanza stanza) throws InterruptedException {
        if (stanza instanceof UnparsedIQ iq && iq.isRequestIQ()) refuse(iq.getFrom(), iq.getStanzaId());
        else super.processStanza(stanza);
    }

    /** Answers an IQ without a child, on which Smack's parser fails at its end. */
    @Override
    protected void parseAndProcessStanza(XmlPullParser parser)
            throws XmlPullParserException, IOException, InterruptedException {
        var isIq = parser.getName().equals(IQ.IQ_ELEMENT);
        var from = parser.getAttributeValue("", "from");
        var id = parser.getAttributeValue("", "id");
        try {
            super.parseAndProcessStanza(parser);
        } catch (NullPointerException e) {
            if (!isIq) throw e;
            refuse(from == null ? null : JidCreate.from(from), id);
        }
    }

    private void refuse(Jid from, String id) throws InterruptedException {
        try {
            sendStanza(Wire.error(from, id, StanzaError.getBuilder(StanzaError.Condition.service_unavailable)));
        } catch (NotConnectedException e) {
            return; // nobody is left to be told
        }
    }
}
