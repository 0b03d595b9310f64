package agent;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.util.function.Function;
import org.jivesoftware.smack.iqrequest.AbstractIqRequestHandler;
import org.jivesoftware.smack.iqrequest.IQRequestHandler;
import org.jivesoftware.smack.packet.ErrorIQ;
import org.jivesoftware.smack.packet.ExtensionElement;
import org.jivesoftware.smack.packet.IQ;
import org.jivesoftware.smack.packet.IqData;
import org.jivesoftware.smack.packet.StandardExtensionElement;
import org.jivesoftware.smack.packet.Stanza;
import org.jivesoftware.smack.packet.StanzaBuilder;
import org.jivesoftware.smack.packet.StanzaError;
import org.jivesoftware.smack.packet.XmlEnvironment;
import org.jivesoftware.smack.provider.IqProvider;
import org.jivesoftware.smack.xml.XmlPullParser;
import org.jivesoftware.smack.xml.XmlPullParserException;
import org.jxmpp.jid.Jid;

/** The element {@code <x xmlns='urn:spinal:1'>}, as the child of an IQ and as an extension of other stanzas. */
final class Wire {
    static final String NS = "urn:spinal:1";

    private Wire() {}

    static final class EventsIq extends IQ {
        final String text;

        EventsIq(String text) {
            super("x", NS);
            this.text = text;
        }

        @Override
        protected IQChildElementXmlStringBuilder getIQChildElementBuilder(IQChildElementXmlStringBuilder xml) {
            xml.rightAngleBracket().escape(text);
            return xml;
        }
    }

    static final class EventsProvider extends IqProvider<EventsIq> {
        @Override
        public EventsIq parse(XmlPullParser parser, int depth, IqData iq, XmlEnvironment environment)
                throws XmlPullParserException, IOException {
            var text = new StringBuilder();
            for (var event = parser.next();
                    event != XmlPullParser.Event.END_ELEMENT || parser.getDepth() != depth;
                    event = parser.next())
                if (event == XmlPullParser.Event.TEXT_CHARACTERS && parser.getDepth() == depth)
                    text.append(parser.getText());
            return new EventsIq(text.toString());
        }
    }

    /** Takes IQ sets in turn; their answers are sent when they are there. */
    static final class Handler extends AbstractIqRequestHandler {
        private final Function<EventsIq, IQ> take;

        Handler(Function<EventsIq, IQ> take) {
            super("x", NS, IQ.Type.set, IQRequestHandler.Mode.sync);
            this.take = take;
        }

        @Override
        public IQ handleIQRequest(IQ request) {
            return take.apply((EventsIq) request);
        }
    }

    static ExtensionElement extension(JsonNode events) {
        return StandardExtensionElement.builder("x", NS)
                .setText(Json.text(events))
                .build();
    }

    static ExtensionElement reason(String reason) {
        return StandardExtensionElement.builder("reason", NS).setText(reason).build();
    }

    /** An error without the request in it. */
    static IQ error(Jid to, String id, StanzaError.Builder error) {
        return ErrorIQ.builder(error.build(), StanzaBuilder.buildIqData(id).ofType(IQ.Type.error))
                .to(to)
                .build();
    }

    static String eventsOf(Stanza stanza) {
        return stanza.getExtensionElement("x", NS) instanceof StandardExtensionElement x && x.getText() != null
                ? x.getText()
                : "[]";
    }
}
