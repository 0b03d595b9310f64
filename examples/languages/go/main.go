// Command agent offers the operations of conformance on a Spinal bus.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmpp"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stream"
)

const patience = 10 * time.Second // for the server, when it is dialled and written to

func main() {
	log.SetFlags(0)
	address := must(jid.Parse(variable("SPINAL_ADDRESS")))
	password := strings.TrimSpace(string(must(os.ReadFile(variable("SPINAL_PASSWORD_FILE")))))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(variable("SPINAL_CA"))))
	server := strings.Fields(variable("SPINAL_SERVER"))[0]
	a := &agent{
		domain: address.Domainpart(), dispatchers: strings.Fields(os.Getenv("SPINAL_DISPATCHER")),
		known: map[exchange]call{}, pause: time.Second,
	}
	go a.advertise()
	go a.stay(address, server, xmpp.StartTLS(&tls.Config{RootCAs: roots, ServerName: address.Domainpart()}),
		xmpp.SASL("", password, sasl.ScramSha256, sasl.ScramSha1), bind("agent"))
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, os.Interrupt)
	<-asked
	a.draining.Store(true)
	for time.Sleep(patience / 100); a.open.Load() > 0; time.Sleep(patience / 100) {
	}
	a.send("<presence type='unavailable'/></stream:stream>")
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func variable(name string) string {
	value := os.Getenv(name)
	if value == "" {
		log.Fatal(name, " is missing")
	}
	return value
}

// stay keeps the agent on line, unless the login is refused.
func (a *agent) stay(address jid.JID, server string, features ...xmpp.StreamFeature) {
	for ; ; a.pause = min(2*a.pause, time.Minute) {
		err := a.listen(address, server, features...)
		// The library keeps its type of SASL failures to itself.
		var failure interface{ TokenReader() xml.TokenReader }
		if errors.As(err, &failure) && !errors.As(err, new(stream.Error)) {
			log.Fatalf("the login of %s was refused: %v", address, err)
		}
		log.Print("off line: ", err)
		time.Sleep(a.pause/2 + rand.N(a.pause/2))
	}
}

// listen logs in, and takes what comes until the stream ends.
// It reads stanzas itself, because Session.Serve answers each IQ that is not answered when its handler returns.
func (a *agent) listen(address jid.JID, server string, features ...xmpp.StreamFeature) error {
	conn, err := net.DialTimeout("tcp", server, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	s, err := xmpp.NewClientSession(context.Background(), address, conn, features...)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	a.mu.Lock()
	a.conn, a.pause, a.greeted = s.Conn(), time.Second, map[string]bool{}
	a.mu.Unlock()
	a.send("<presence/>")
	a.news.Store(true)
	r := s.TokenReader()
	defer r.Close()
	for decoder := xml.NewTokenDecoder(r); ; {
		var received stanza
		if err := decoder.Decode(&received); err != nil {
			return err
		}
		received.From = cmp.Or(received.From, address.Bare().String()) // RFC 6120, 8.1.2.1
		a.receive(received)
	}
}

// bind asks for our resource: the BindResource of mellium.im/xmpp 0.22 sends an empty one, and the server picks.
func bind(resource string) xmpp.StreamFeature {
	feature := xmpp.BindResource()
	feature.Negotiate = func(_ context.Context, s *xmpp.Session, _ any) (xmpp.SessionState, io.ReadWriter, error) {
		fmt.Fprintf(s.Conn(), "<iq type='set' id='bind'>"+
			"<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>%s</resource></bind></iq>", resource)
		r := s.TokenReader()
		defer r.Close()
		var answer stanza
		if err := xml.NewTokenDecoder(r).Decode(&answer); err != nil || answer.Type != "result" {
			return 0, nil, errors.Join(err, errors.New("the server did not bind the resource"))
		}
		return xmpp.Ready, nil, nil
	}
	return feature
}

// A stanza is what this agent reads of one.
type stanza struct {
	XMLName xml.Name
	From    string   `xml:"from,attr"`
	ID      string   `xml:"id,attr"`
	Type    string   `xml:"type,attr"`
	X       []string `xml:"urn:spinal:1 x"`
}

// answer sends the result of a stanza, with an event or without.
func (a *agent) answer(s stanza, events ...object) {
	x := ""
	if len(events) > 0 {
		x = "<x xmlns='urn:spinal:1'>" + write(events) + "</x>"
	}
	a.send("<iq type='result' to='%s' id='%s'>%s</iq>", html.EscapeString(s.From), html.EscapeString(s.ID), x)
}

// refuse answers a stanza of which nothing is taken.
func (a *agent) refuse(s stanza, kind, condition, reason string) {
	a.send("<iq type='error' to='%s' id='%s'><error type='%s'><%s xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>"+
		"<reason xmlns='urn:spinal:1'>%s</reason></error></iq>",
		html.EscapeString(s.From), html.EscapeString(s.ID), kind, condition, reason)
}

func (a *agent) direct(to string, event object) {
	a.send("<presence to='%s'><x xmlns='urn:spinal:1'>[%s]</x></presence>", html.EscapeString(to), write(event))
}

// send writes to the stream; without one it is lost, and callers ask again.
func (a *agent) send(format string, values ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		return
	}
	a.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(a.conn, format, values...); err != nil {
		a.conn.Close()
	}
}
