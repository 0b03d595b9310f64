package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// What is run and remembered at most.
const (
	slots      = 100
	maxKnown   = 10000
	maxWaiting = 8
	maxResult  = 32768            // bytes
	slack      = 10 * time.Second // a call is known for so long after its deadline, because stanzas may be late
)

var epoch = time.Now().UnixMilli()

type (
	agent struct {
		domain      string
		dispatchers []string
		schemas     map[string]*jsonschema.Schema
		work        sync.WaitGroup

		mu       sync.Mutex // for all that follows
		conn     net.Conn
		greeted  map[string]bool
		told     string // to the dispatchers
		known    map[exchange]*call
		running  int
		draining bool
	}
	// An exchange names one attempt of one call. All dispatchers are one caller.
	exchange struct {
		caller, id string
		attempt    int64
	}
	call struct {
		answer  object
		waiting []stanza
	}
)

// receive takes what comes.
func (a *agent) receive(s stanza) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch s.XMLName.Local + " " + s.Type {
	case "presence ":
		a.greet(s)
	case "presence unavailable":
		delete(a.greeted, s.From)
	case "iq get":
		a.refuse(s, "cancel", "service-unavailable", "unreachable")
	case "iq set":
		a.take(s)
	}
}

func (a *agent) take(s stanza) {
	events, err := read(s.X)
	switch {
	case len(s.X) == 0:
		a.refuse(s, "cancel", "service-unavailable", "unreachable")
	case !a.allows(s.From):
		a.refuse(s, "auth", "forbidden", "not-allowed")
	case err != nil:
		a.refuse(s, "modify", "bad-request", "malformed")
	case len(events) > 1:
		a.refuse(s, "cancel", "feature-not-implemented", "not-understood")
	case len(events) == 0:
		a.answer(s)
	case events[0].Type == "describe":
		a.answer(s, object{"type": "description", "hash": hash, "text": description})
	default:
		a.op(s, events[0])
	}
}

// op runs an operation once, however often it is asked for.
func (a *agent) op(s stanza, e event) {
	x := exchange{bare(s.From), e.ID, e.Attempt}
	if slices.Contains(a.dispatchers, s.From) {
		x.caller = ""
	}
	c := a.known[x]
	if c == nil {
		if a.running >= slots || len(a.known) >= maxKnown {
			a.answer(s, e.refused("busy", ""))
			return
		}
		c = &call{}
		a.known[x] = c
		time.AfterFunc(e.left()+slack, func() { a.locked(func() { delete(a.known, x) }) })
		a.start(c, e)
	}
	if c.answer != nil {
		a.answer(s, c.answer)
	} else if c.waiting = append(c.waiting, s); len(c.waiting) > maxWaiting {
		a.answer(c.waiting[0])
		c.waiting = c.waiting[1:]
	}
}

func (a *agent) start(c *call, e event) {
	args, reason := a.admit(e)
	if reason != "" {
		c.answer = e.refused(reason, "")
		return
	}
	a.running++
	a.work.Go(func() {
		answer := run(e, args)
		a.locked(func() {
			c.answer = answer
			for _, s := range c.waiting {
				a.answer(s, answer)
			}
			c.waiting = nil
			a.running--
		})
	})
}

// admit gives the arguments of an op, or the reason why it is not started.
func (a *agent) admit(e event) (args arguments, reason string) {
	switch {
	case e.Left == 0:
		return args, "expired"
	case e.Epoch != epoch:
		return args, "stale-epoch"
	case slices.ContainsFunc(e.Must, func(member string) bool { return !slices.Contains(members, member) }):
		return args, "not-understood"
	case a.draining:
		return args, "draining"
	case operations[e.Op] == nil:
		return args, "unknown-op"
	}
	args = defaults
	var given map[string]any
	text := []byte(write(e.Args))
	if json.Unmarshal(text, &given) != nil || a.schemas[e.Op].Validate(given) != nil || json.Unmarshal(text, &args) != nil {
		return args, "bad-arguments"
	}
	return args, ""
}

func run(e event, args arguments) object {
	ctx, done := context.WithTimeout(context.Background(), e.left())
	defer done()
	value, err := operations[e.Op](ctx, args)
	switch {
	case errors.As(err, new(refused)):
		return e.refused("refused", err.Error())
	case err != nil && ctx.Err() != nil:
		return e.failed("deadline", "")
	case err != nil:
		return e.failed("failed", err.Error())
	case len(write(value)) > maxResult:
		return e.failed("too-large", "")
	}
	return e.about("final", "value", value)
}

// greet answers the presence that a caller directs here, once for each of its streams; a dispatcher is told soon.
func (a *agent) greet(s stanza) {
	switch {
	case len(s.X) == 0:
	case slices.Contains(a.dispatchers, s.From):
		a.told = ""
	case a.allows(s.From) && !a.greeted[s.From] && len(a.greeted) < maxKnown:
		a.greeted[s.From] = true
		a.direct(s.From, object{"type": "hello", "role": "agent", "epoch": epoch})
	}
}

// advertise tells the dispatchers on change, at most once a second, and every 5 s.
func (a *agent) advertise() {
	for beat := 0; ; beat++ {
		time.Sleep(time.Second + rand.N(100*time.Millisecond))
		a.locked(func() {
			e := object{"type": "advertisement", "hash": hash, "epoch": epoch, "slots": slots, "busy": a.running}
			if a.draining {
				e["state"] = "draining"
			}
			if text := write(e); text != a.told || beat%5 == 0 {
				for _, dispatcher := range a.dispatchers {
					a.direct(dispatcher, e)
				}
				a.told = text
			}
		})
	}
}

// drain takes no new work, and says goodbye when the old is done.
func (a *agent) drain() {
	a.locked(func() { a.draining = true })
	a.work.Wait()
	a.mu.Lock() // for good: nothing is said after that
	a.send("<presence type='unavailable'/></stream:stream>")
}

// allows says who may ask: the agent's own domain, and its dispatchers.
func (a *agent) allows(address string) bool {
	return strings.HasSuffix(bare(address), "@"+a.domain) || slices.Contains(a.dispatchers, address)
}

func (a *agent) locked(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
}

func bare(address string) string { return strings.Split(address, "/")[0] }
