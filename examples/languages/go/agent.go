package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What is run and remembered at most.
const (
	slots    = 100
	maxKnown = 10000
	maxOpen  = 10000            // stanzas that wait for an answer
	slack    = 10 * time.Second // a call is known for so long after its deadline, because stanzas may be late
)

var (
	epoch   = time.Now().UnixMilli()
	hash    = fmt.Sprintf("%x", sha256.Sum256([]byte(description)))
	members = []string{"id", "attempt", "op", "left", "args", "epoch", "must"} // what `must` may name
	id      = regexp.MustCompile(`^[!-~]{1,128}$`)
	path    = regexp.MustCompile(`^/$|^(/[^/]+)+$`)
)

type (
	agent struct {
		domain      string
		dispatchers []string
		// For the one who reads the stream.
		known   map[exchange]call
		greeted map[string]bool
		pause   time.Duration
		// For all: stanzas that wait for an answer, calls that run, and whether the dispatchers are to be told.
		open, running  atomic.Int32
		draining, news atomic.Bool
		mu             sync.Mutex // for what is written
		conn           net.Conn
	}
	// An exchange names one attempt of one call.
	exchange struct {
		caller, id string
		attempt    int64
	}
	// A call runs once; whoever asks again waits for the same answer.
	call struct {
		answer func() object
		until  time.Time
	}
	// An event holds the members that are used here; others are ignored.
	event struct {
		Type, ID, Op, Hash   string
		Attempt, Left, Epoch int64
		Args                 map[string]json.RawMessage
		Must                 []string
	}
	object = map[string]any
)

// receive takes what comes.
func (a *agent) receive(s stanza) {
	events, ok := read(append(s.X, "")[0])
	switch kind := s.XMLName.Local + " " + s.Type; {
	case kind == "presence " && len(s.X) > 0:
		a.greet(s.From)
	case kind == "presence unavailable":
		delete(a.greeted, s.From)
	case kind == "iq get", kind == "iq set" && len(s.X) == 0:
		a.refuse(s, "cancel", "service-unavailable", "unreachable")
	case kind != "iq set":
	case !a.allows(s.From):
		a.refuse(s, "auth", "forbidden", "not-allowed")
	case len(s.X[0]) > 61440:
		a.refuse(s, "modify", "policy-violation", "too-large")
	case !ok:
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

// read gives the events of a stanza that have an answer of their own; if one breaks a rule, none is taken.
func read(text string) (answered []event, ok bool) {
	var given []json.RawMessage
	if !sound(text) || json.Unmarshal([]byte(text), &given) != nil || given == nil {
		return nil, false
	}
	for _, raw := range given {
		e := event{Attempt: 1, Left: -1, Epoch: epoch}
		err := json.Unmarshal(raw, &e)
		named := err == nil && id.MatchString(e.ID) && 1 <= e.Attempt && e.Attempt <= 1000000
		valid, known := map[string]bool{
			"":         false,
			"op":       named && path.MatchString(e.Op) && 0 <= e.Left && e.Left <= 31622400000 && 0 <= e.Epoch && len(e.Must) <= 32,
			"cancel":   named,
			"describe": err == nil && e.Hash != "",
		}[e.Type]
		if known && !valid {
			return nil, false
		}
		if e.Type == "op" || e.Type == "describe" && e.Hash == hash {
			answered = append(answered, e)
		}
	}
	return answered, true
}

// encoding/json puts U+FFFD in the place of a lone surrogate without a word, so they are looked for in the text.
var (
	pair = regexp.MustCompile(`\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..`)
	lone = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
)

// sound says whether a text has neither too many levels, nor a lone surrogate, nor a number that others would round.
func sound(text string) bool {
	tokens := json.NewDecoder(strings.NewReader(text))
	tokens.UseNumber()
	for levels := 0; levels <= 33; { // an event may have 32
		token, err := tokens.Token()
		if err != nil {
			return err == io.EOF && !lone.MatchString(pair.ReplaceAllString(text, ""))
		}
		switch t := token.(type) {
		case json.Delim:
			levels += map[json.Delim]int{'[': 1, '{': 1, ']': -1, '}': -1}[t]
		case json.Number:
			n, err := t.Float64()
			if err != nil || math.Abs(n) >= 1<<53 && !strings.ContainsAny(t.String(), ".eE") {
				return false
			}
		}
	}
	return false
}

// write gives JSON that can stand in XML: encoding/json escapes all that may not but U+FFFE and U+FFFF.
func write(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // an operation gave what is no value
	}
	return strings.NewReplacer("\ufffe", `\ufffe`, "\uffff", `\uffff`).Replace(string(text))
}

// op answers an op, which is run only when its id and attempt are new.
func (a *agent) op(s stanza, e event) {
	x := exchange{bare(s.From), e.ID, e.Attempt}
	if a.believes(s.From) {
		x.caller = "" // all dispatchers are one
	}
	c, known := a.known[x]
	if len(a.known) >= maxKnown {
		maps.DeleteFunc(a.known, func(_ exchange, c call) bool { return time.Now().After(c.until) })
	}
	switch {
	case a.open.Load() >= maxOpen: // it is asked again
		return
	case !known && a.draining.Load():
		a.answer(s, e.problem("error", "draining", ""))
		return
	case !known && (a.running.Load() >= slots || len(a.known) >= maxKnown):
		a.answer(s, e.problem("error", "busy", ""))
		return
	case !known:
		a.running.Add(1)
		c = call{sync.OnceValue(func() object {
			answer := e.run()
			a.running.Add(-1)
			a.answer(s, answer)
			return answer
		}), time.Now().Add(e.left() + slack)}
		a.known[x] = c
	}
	a.open.Add(1)
	go func() {
		if answer := c.answer(); known {
			a.answer(s, answer)
		}
		a.open.Add(-1)
	}()
}

// run does what an op asks for, if nothing speaks against it.
func (e event) run() object {
	switch {
	case e.Left == 0:
		return e.problem("error", "expired", "")
	case e.Epoch != epoch:
		return e.problem("error", "stale-epoch", "")
	case slices.ContainsFunc(e.Must, func(member string) bool { return !slices.Contains(members, member) }):
		return e.problem("error", "not-understood", "")
	case operations[e.Op] == nil:
		return e.problem("error", "unknown-op", "")
	}
	args, fit := check(e.Op, e.Args)
	if !fit {
		return e.problem("error", "bad-arguments", "")
	}
	ctx, done := context.WithTimeout(context.Background(), e.left())
	defer done()
	value, err := operations[e.Op](ctx, args)
	switch {
	case errors.As(err, new(refused)):
		return e.problem("error", "refused", err.Error())
	case err != nil && ctx.Err() != nil:
		return e.problem("final", "deadline", "")
	case err != nil:
		return e.problem("final", "failed", err.Error())
	case len(write(value)) > 32768:
		return e.problem("final", "too-large", "")
	}
	return object{"type": "final", "id": e.ID, "attempt": e.Attempt, "value": value}
}

func (e event) problem(kind, reason, text string) object {
	return object{"type": kind, "id": e.ID, "attempt": e.Attempt, "problem": object{"reason": reason, "text": text}}
}

func (e event) left() time.Duration { return time.Duration(e.Left) * time.Millisecond }

// greet answers the presence that a caller directs here, once for each of its streams; a dispatcher is told soon.
func (a *agent) greet(from string) {
	if a.believes(from) {
		a.news.Store(true)
	} else if a.allows(from) && !a.greeted[from] && len(a.greeted) < maxKnown {
		a.greeted[from] = true
		a.direct(from, object{"type": "hello", "role": "agent", "epoch": epoch})
	}
}

// advertise tells the dispatchers on change, at most once a second, and every 5 s.
func (a *agent) advertise() {
	told := ""
	for beat := 0; ; beat++ {
		time.Sleep(time.Second + rand.N(100*time.Millisecond))
		e := object{"type": "advertisement", "hash": hash, "epoch": epoch, "slots": slots, "busy": a.running.Load()}
		if a.draining.Load() {
			e["state"] = "draining"
		}
		if text := write(e); a.news.Swap(false) || text != told || beat%5 == 0 {
			for _, dispatcher := range a.dispatchers {
				a.direct(dispatcher, e)
			}
			told = text
		}
	}
}

func (a *agent) believes(address string) bool { return slices.Contains(a.dispatchers, address) }

// allows says who may ask: the agent's own domain, and its dispatchers.
func (a *agent) allows(address string) bool {
	return strings.HasSuffix(bare(address), "@"+a.domain) || a.believes(address)
}

func bare(address string) string { return strings.Split(address, "/")[0] }
