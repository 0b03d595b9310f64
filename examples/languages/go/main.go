// Command conform-agent is an agent on a Spinal bus that offers the operations of conformance.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
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
	xmppstream "mellium.im/xmpp/stream"
)

const (
	resource = "agent"
	patience = 10 * time.Second // for the server, when it is dialled and written to
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "conform-agent:", err)
		os.Exit(1)
	}
}

func run() error {
	c, err := credentialsOf(os.Getenv)
	if err != nil {
		return err
	}
	a := newAgent(c.address.String(), c.dispatchers)
	asked, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		<-asked.Done()
		restore() // a second signal ends the program at once
		a.drain()
		leave()
	}()
	return stay(ctx, c, a)
}

type credentials struct {
	address     jid.JID
	password    string
	server      string
	dispatchers []string
	tls         *tls.Config
}

func credentialsOf(env func(string) string) (c credentials, err error) {
	variable := func(name string) string {
		if env(name) == "" && err == nil {
			err = fmt.Errorf("%s is missing", name)
		}
		return env(name)
	}
	file := func(name string) string {
		text, failed := os.ReadFile(variable(name))
		if failed != nil && err == nil {
			err = fmt.Errorf("%s: %w", name, failed)
		}
		return strings.TrimSpace(string(text))
	}
	address, roots := variable("SPINAL_ADDRESS"), x509.NewCertPool()
	c.password, c.server = file("SPINAL_PASSWORD_FILE"), variable("SPINAL_SERVER")
	c.dispatchers = strings.Fields(env("SPINAL_DISPATCHER"))
	if !roots.AppendCertsFromPEM([]byte(file("SPINAL_CA"))) && err == nil {
		err = errors.New("SPINAL_CA: there is no certificate in it")
	}
	if err != nil {
		return c, err
	}
	c.address, err = jid.Parse(address)
	c.tls = &tls.Config{RootCAs: roots, ServerName: c.address.Domainpart(), MinVersion: tls.VersionTLS12}
	return c, err
}

// stay keeps the agent on line until the context ends, or the login is refused.
func stay(ctx context.Context, c credentials, a *agent) error {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		began := time.Now()
		err := stream(ctx, c, a)
		if ctx.Err() != nil {
			return nil
		}
		if refused(err) {
			return fmt.Errorf("the login of %s was refused: %w", c.address, err)
		}
		fmt.Fprintln(os.Stderr, "conform-agent: off line:", err)
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		wait(ctx, pause/2+rand.N(pause/2))
	}
}

// refused says whether the server answered with a failure of SASL, whose type the library keeps to itself.
func refused(err error) bool {
	var failure interface{ TokenReader() xml.TokenReader }
	return errors.As(err, &failure) && !errors.As(err, new(xmppstream.Error))
}

// stream logs in and serves one stream until it ends.
func stream(ctx context.Context, c credentials, a *agent) error {
	s, err := login(ctx, c)
	if err != nil {
		return err
	}
	defer s.Conn().Close()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	out := make(chan stanza, 4*slots)
	a.online(out)
	defer a.offline()
	fmt.Println("online", s.LocalAddr())
	go a.beat(ctx)
	go func() { end(listen(ctx, s, a, out)) }()
	return speak(ctx, s, out)
}

func login(ctx context.Context, c credentials) (*xmpp.Session, error) {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", c.server)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s, err := xmpp.NewClientSession(ctx, c.address, conn, bind(), xmpp.StartTLS(c.tls),
		xmpp.SASL("", c.password, sasl.ScramSha256, sasl.ScramSha1))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, conn.SetDeadline(time.Time{})
}

// bind asks for our resource: the BindResource of mellium.im/xmpp 0.22 sends an empty one, and the server picks.
func bind() xmpp.StreamFeature {
	type binding struct {
		Resource string `xml:"resource,omitempty"`
		JID      string `xml:"jid,omitempty"`
	}
	type bindIQ struct {
		XMLName xml.Name `xml:"iq"`
		ID      string   `xml:"id,attr"`
		Type    string   `xml:"type,attr"`
		Bind    binding  `xml:"urn:ietf:params:xml:ns:xmpp-bind bind"`
	}
	feature := xmpp.BindResource()
	feature.Negotiate = func(ctx context.Context, s *xmpp.Session, _ any) (xmpp.SessionState, io.ReadWriter, error) {
		if err := s.Encode(ctx, bindIQ{XMLName: name("iq"), ID: "bind", Type: "set", Bind: binding{Resource: resource}}); err != nil {
			return 0, nil, err
		}
		r := s.TokenReader()
		defer r.Close()
		var answer bindIQ
		if err := xml.NewTokenDecoder(r).Decode(&answer); err != nil {
			return 0, nil, err
		}
		address, err := jid.Parse(answer.Bind.JID)
		if answer.Type != "result" || err != nil {
			return 0, nil, errors.New("the server did not bind the resource")
		}
		s.UpdateAddr(address)
		return xmpp.Ready, nil, nil
	}
	return feature
}

// listen hands what comes to the agent.
// It reads tokens, because Session.Serve answers each IQ itself that is not answered when its handler returns.
func listen(ctx context.Context, s *xmpp.Session, a *agent, out chan stanza) error {
	r := s.TokenReader()
	defer r.Close()
	decoder := xml.NewTokenDecoder(r)
	for {
		// The answer to a ping comes in time, or the server is gone.
		if err := s.Conn().SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
			return err
		}
		token, err := decoder.Token()
		if err != nil {
			return err
		}
		if start, ok := token.(xml.StartElement); ok {
			var received stanza
			if err := decoder.DecodeElement(&received, &start); err != nil {
				return err
			}
			a.receive(received)
			for len(out) > cap(out)/2 && ctx.Err() == nil { // answers are not lost: who asks faster than we speak has to wait
				wait(ctx, time.Millisecond)
			}
		}
	}
}

// speak writes what the agent has to say, and a ping now and then; at the end it says goodbye.
func speak(ctx context.Context, s *xmpp.Session, out <-chan stanza) error {
	pings := time.NewTicker(30 * time.Second)
	defer pings.Stop()
	for {
		next := stanza{XMLName: name("iq"), Type: "get", To: s.RemoteAddr().String(), Ping: &struct{}{}}
		select {
		case next = <-out:
		case <-pings.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			for len(out) > 0 {
				if err := say(s, <-out); err != nil {
					return err
				}
			}
			return errors.Join(say(s, stanza{XMLName: name("presence"), Type: "unavailable"}), s.Close())
		}
		if err := say(s, next); err != nil {
			return err
		}
	}
}

// say has a deadline of its own: a context that ends after Encode may still break the next write (mellium.im/xmpp 0.22).
func say(s *xmpp.Session, next stanza) error {
	if err := s.Conn().SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return s.Encode(context.Background(), next)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
