package main

import "encoding/xml"

// A stanza is what this agent reads and writes of one; addresses stay as the server wrote them.
type stanza struct {
	XMLName xml.Name
	To      string       `xml:"to,attr,omitempty"`
	From    string       `xml:"from,attr,omitempty"`
	ID      string       `xml:"id,attr,omitempty"`
	Type    string       `xml:"type,attr,omitempty"`
	X       []string     `xml:"urn:spinal:1 x"`
	Ping    *struct{}    `xml:"urn:xmpp:ping ping"`
	Error   *stanzaError `xml:"error"`
}

type stanzaError struct {
	Type      string `xml:"type,attr"`
	Condition struct{ XMLName xml.Name }
	Text      string `xml:"urn:ietf:params:xml:ns:xmpp-stanzas text,omitempty"`
	Reason    string `xml:"urn:spinal:1 reason,omitempty"`
}

func name(local string) xml.Name { return xml.Name{Local: local} }

// refusal answers a stanza that cannot be taken.
func refusal(s stanza, kind, condition string, p problem) stanza {
	e := &stanzaError{Type: kind, Text: p.Text, Reason: p.Reason}
	e.Condition.XMLName = xml.Name{Space: "urn:ietf:params:xml:ns:xmpp-stanzas", Local: condition}
	return stanza{XMLName: name("iq"), Type: "error", To: s.From, ID: s.ID, Error: e}
}
