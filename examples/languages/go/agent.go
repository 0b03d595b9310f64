package main

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is run and remembered at most; who comes after that is refused.
const (
	slots      = 500
	maxKnown   = 10000
	maxPeers   = 10000
	maxWaiting = 32
)

const (
	grace = 10 * time.Second // for a caller that is gone
	slack = 10 * time.Second // an id is known for so long after its deadline, because stanzas may be late
)

var (
	epoch      = time.Now().UnixMilli()
	features   = []string{"cancel"}
	understood = []string{"id", "attempt", "op", "left", "args", "epoch", "must", "cancel"}
)

type (
	// An agent is known to its dispatchers and callers, and does what they ask for.
	agent struct {
		mu        sync.Mutex
		domain    string
		named     []string // dispatchers of the credentials
		told      []string // dispatchers that one of these told of
		peers     map[string]*peer
		exchanges map[key]*exchange
		running   int
		draining  bool
		changed   chan struct{}
		out       chan stanza // to the stream; nil without one
	}
	// A peer is somebody whose presence has come.
	peer struct {
		greeted bool
		gone    *time.Timer
	}
	// A key names an exchange; the caller is a bare address, or empty for all dispatchers.
	key struct {
		caller, id string
		attempt    int64
	}
	// An exchange is one try of one call; it runs until it has an answer.
	exchange struct {
		key
		from    string // who asked last
		answer  event
		waiting []*request
		stop    context.CancelCauseFunc
		unheard bool // it was cancelled before it came
	}
	// A request is a stanza, with what its answer holds so far.
	request struct {
		from, id string
		answers  []event
		waits    bool // for its op
	}
)

func newAgent(address string, dispatchers []string) *agent {
	return &agent{
		domain: domain(address), named: dispatchers,
		peers: map[string]*peer{}, exchanges: map[key]*exchange{}, changed: make(chan struct{}, 1),
	}
}

// receive takes a stanza from the stream.
func (a *agent) receive(s stanza) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case s.XMLName.Local == "presence":
		a.presence(s)
	case s.XMLName.Local != "iq" || s.Type != "set" && s.Type != "get":
	case s.Type == "get" || len(s.X) == 0:
		a.post(refusal(s, "cancel", "service-unavailable", problem{}))
	default:
		a.events(s)
	}
}

func (a *agent) events(s stanza) {
	events, err := read(s.X[0])
	var p problem
	isOp := func(e event) bool { return e.string("type") == "op" }
	first := slices.IndexFunc(events, isOp)
	switch {
	case errors.As(err, &p) && p.Reason == "too-large":
		a.post(refusal(s, "modify", "policy-violation", p))
	case errors.As(err, &p):
		a.post(refusal(s, "modify", "bad-request", p))
	case first >= 0 && slices.ContainsFunc(events[first+1:], isOp):
		text := "several ops in a stanza need the feature 'batch'"
		a.post(refusal(s, "cancel", "feature-not-implemented", problem{Reason: "not-understood", Text: text}))
	default:
		r := &request{from: s.From, id: s.ID}
		for _, e := range events {
			a.event(r, e)
		}
		if !r.waits {
			a.answer(r)
		}
	}
}

func (a *agent) event(r *request, e event) {
	k := key{a.caller(r.from), e.string("id"), e.integer("attempt", 1)}
	allowed := a.allowed(r.from)
	switch kind := e.string("type"); {
	case kind == "op" && !allowed:
		r.answers = append(r.answers, k.about("error", event{"problem": problem{Reason: "not-allowed"}}))
	case kind == "op":
		a.op(r, k, e)
	case kind == "cancel" && allowed:
		r.answers = append(r.answers, k.about("cancelled", event{"state": a.cancel(k, e)}))
	case kind == "describe" && allowed && e.string("hash") == hash:
		r.answers = append(r.answers, event{"type": "description", "hash": hash, "text": description})
	case kind == "hello":
		a.hello(r.from, e)
	}
}

// answer sends the result of a stanza; if it asks for more than fits, the answer to its op, which is the last, does.
func (a *agent) answer(r *request) {
	s := stanza{XMLName: name("iq"), Type: "result", To: r.from, ID: r.id}
	for ; len(r.answers) > 0; r.answers = r.answers[(len(r.answers)+1)/2:] {
		if text := write(r.answers); len(text) <= maxText {
			s.X = []string{text}
			break
		}
	}
	a.post(s)
}

// op runs an operation, once for each id and attempt, however often it is asked for.
func (a *agent) op(r *request, k key, e event) {
	x := a.exchanges[k]
	if x == nil {
		x = &exchange{key: k}
		args, err := a.admit(e)
		left := time.Duration(e.integer("left", 0)) * time.Millisecond
		if err != nil {
			x.answer = k.about("error", event{"problem": err})
		} else {
			ctx, stop := context.WithCancelCause(context.Background())
			x.stop = stop
			a.running++
			a.change()
			go a.run(ctx, x, operations[e.string("op")], args, left)
		}
		a.remember(x, left)
	}
	switch x.from = r.from; {
	case x.answer != nil:
		r.answers = append(r.answers, x.answer)
	case len(x.waiting) < maxWaiting:
		r.waits = true
		x.waiting = append(x.waiting, r)
	}
}

// admit gives the arguments of an op that may run, with their defaults.
func (a *agent) admit(e event) (object, error) {
	path, args := e.string("op"), object{}
	expected := offers[path].Args
	for name, property := range expected.Properties {
		if property.Default != nil {
			args[name] = property.Default
		}
	}
	maps.Copy(args, e.object("args"))
	name, how := expected.wrong(args)
	for given := range args {
		if _, ok := expected.Properties[given]; !ok {
			name, how = given, "is unknown"
		}
	}
	must := slices.IndexFunc(e.list("must"), func(m any) bool { return !slices.Contains(understood, m.(string)) })
	switch {
	case e.integer("left", 0) == 0:
		return nil, problem{Reason: "expired"}
	case e.integer("epoch", epoch) != epoch:
		return nil, problem{Reason: "stale-epoch"}
	case must >= 0:
		return nil, problem{Reason: "not-understood", Argument: e.list("must")[must].(string)}
	case a.draining:
		return nil, problem{Reason: "draining"}
	case operations[path] == nil:
		return nil, problem{Reason: "unknown-op"}
	case len(write(args)) > maxInline:
		return nil, problem{Reason: "too-large"}
	case how != "":
		return nil, problem{"bad-arguments", "'" + name + "' " + how, name}
	case a.running >= slots || len(a.exchanges) >= maxKnown:
		return nil, problem{Reason: "busy"}
	}
	return args, nil
}

// run does the work of an exchange, and answers all who wait for it.
func (a *agent) run(ctx context.Context, x *exchange, do operation, args object, left time.Duration) {
	ctx, done := context.WithTimeoutCause(ctx, left, problem{Reason: "deadline"})
	defer done()
	began := time.Now()
	value, err := do(ctx, args, func(e event) { a.tell(x, e) })
	ran := time.Since(began).Milliseconds()
	if len(write(value)) > maxInline {
		err = problem{Reason: "too-large", Text: "the result is too large"}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var p problem
	switch {
	case errors.As(err, &p) && p.Reason == "refused":
		x.answer = x.about("error", event{"problem": p})
	case errors.As(err, &p):
		x.answer = x.about("final", event{"ran": ran, "problem": p})
	case value == nil:
		x.answer = x.about("final", event{"ran": ran})
	default:
		x.answer = x.about("final", event{"ran": ran, "value": value})
	}
	for _, r := range x.waiting {
		r.answers = append(r.answers, x.answer)
		a.answer(r)
	}
	x.waiting = nil
	x.stop(nil)
	a.running--
	a.change()
}

// tell sends what may be lost.
func (a *agent) tell(x *exchange, e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text := write([]event{x.about(e.string("type"), e)})
	a.post(stanza{XMLName: name("message"), Type: "headline", To: x.from, X: []string{text}})
}

// cancel stops an exchange. One that is not known is refused if it comes yet.
func (a *agent) cancel(k key, e event) string {
	x := a.exchanges[k]
	switch {
	case x == nil:
		tombstone := &exchange{key: k, unheard: true, answer: k.about("error", event{"problem": problem{Reason: "cancelled"}})}
		a.remember(tombstone, time.Duration(e.integer("left", 60000))*time.Millisecond)
		return "unknown"
	case x.unheard:
		return "unknown"
	case x.answer != nil:
		return "late"
	}
	x.stop(problem{Reason: "cancelled"})
	return "cancelled"
}

// remember keeps an exchange, so that it does not run twice.
func (a *agent) remember(x *exchange, left time.Duration) {
	if len(a.exchanges) >= maxKnown {
		return
	}
	a.exchanges[x.key] = x
	time.AfterFunc(left+slack, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.exchanges, x.key)
	})
}

// about makes an event of an exchange.
func (k key) about(kind string, e event) event {
	e["type"], e["id"] = kind, k.id
	if k.attempt != 1 {
		e["attempt"] = k.attempt
	}
	return e
}

// presence keeps account of who is there.
func (a *agent) presence(s stanza) {
	p := a.peers[s.From]
	switch {
	case !a.allowed(s.From) || p == nil && len(a.peers) >= maxPeers:
	case s.Type == "unavailable" || s.Type == "error":
		if p != nil && p.gone == nil {
			p.gone = time.AfterFunc(grace, func() { a.lost(s.From, p) })
		}
	case s.Type == "":
		if p != nil && p.gone != nil {
			p.gone.Stop()
			p = nil
		}
		if p == nil {
			a.peers[s.From] = &peer{}
		}
		if len(s.X) == 0 {
			return
		}
		if events, err := read(s.X[0]); err == nil {
			for _, e := range events {
				if e.string("type") == "hello" {
					a.hello(s.From, e)
				}
			}
		}
	}
}

// lost stops the calls of a caller that has not come back; those of a dispatcher go on.
func (a *agent) lost(address string, p *peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.peers[address] != p {
		return
	}
	delete(a.peers, address)
	for _, x := range a.exchanges {
		if x.answer == nil && x.caller != "" && x.from == address {
			x.stop(problem{Reason: "cancelled"})
		}
	}
}

// hello answers a caller with a greeting, once, and a dispatcher with the next advertisement.
func (a *agent) hello(from string, e event) {
	p := a.peers[from]
	switch {
	case a.believes(from):
		if e["dispatchers"] != nil {
			a.told = slices.DeleteFunc(a.told, func(d string) bool { return a.peers[d] == nil || a.peers[d].gone != nil })
			for _, d := range e.list("dispatchers") {
				a.told = append(a.told, d.(string))
			}
			slices.Sort(a.told)
			a.told = slices.Compact(a.told)
			a.told = a.told[:min(len(a.told), 1000)]
		}
		a.change()
	case p != nil && !p.greeted:
		p.greeted = true
		a.greet(from)
	}
}

func (a *agent) greet(to string) {
	a.direct(to, event{"type": "hello", "role": "agent", "epoch": epoch, "features": features})
}

func (a *agent) advertise(to string) {
	e := event{
		"type": "advertisement", "hash": hash, "epoch": epoch, "features": features,
		"slots": slots, "busy": a.running, "load": float64(a.running) / slots,
	}
	if a.draining {
		e["state"] = "draining"
	}
	a.direct(to, e)
}

func (a *agent) direct(to string, e event) {
	a.post(stanza{XMLName: name("presence"), To: to, X: []string{write([]event{e})}})
}

// change has the dispatchers told soon.
func (a *agent) change() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// beat advertises on change, at most once a second, and every 5 s.
func (a *agent) beat(ctx context.Context) {
	for ctx.Err() == nil {
		a.mu.Lock()
		for _, d := range a.dispatchers() {
			a.advertise(d)
		}
		a.mu.Unlock()
		wait(ctx, time.Second)
		select {
		case <-a.changed:
		case <-time.After(4*time.Second - rand.N(500*time.Millisecond)):
		case <-ctx.Done():
		}
	}
}

// online begins a stream, and tells those who knew the agent that it is back.
func (a *agent) online(out chan stanza) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = out
	a.post(stanza{XMLName: name("presence")})
	for address, p := range a.peers {
		if p.gone == nil && !a.believes(address) {
			a.greet(address)
		}
	}
}

func (a *agent) offline() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = nil
}

// post hands a stanza to the stream. Without one, or if it does not keep up, the stanza is lost: callers ask again.
func (a *agent) post(s stanza) {
	select {
	case a.out <- s:
	default:
	}
}

// drain takes no new work, and returns when the old is done.
func (a *agent) drain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.draining = true
	a.change()
	for a.running > 0 {
		a.mu.Unlock()
		wait(context.Background(), 20*time.Millisecond)
		a.mu.Lock()
	}
}

func (a *agent) dispatchers() []string {
	all := slices.Sorted(slices.Values(slices.Concat(a.named, a.told)))
	return slices.Compact(all)
}

func (a *agent) believes(address string) bool {
	return slices.Contains(a.named, address) || slices.Contains(a.told, address)
}

// allowed says whether somebody may ask: the agent's own domain, and its dispatchers. The server itself has no address.
func (a *agent) allowed(address string) bool {
	return address == "" || domain(address) == a.domain || a.believes(address)
}

// caller names whose an exchange is: all dispatchers are one.
func (a *agent) caller(address string) string {
	if a.believes(address) {
		return ""
	}
	return bare(address)
}

func bare(address string) string {
	b, _, _ := strings.Cut(address, "/")
	return b
}

func domain(address string) string {
	b := bare(address)
	return b[strings.Index(b, "@")+1:]
}
