package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is remembered and run at most; who comes after that is refused.
const (
	slots     = 500
	maxHeld   = 2000
	maxKnown  = 10000
	maxPeers  = 10000
	maxAskers = 8
)

const (
	window    = 250 * time.Millisecond // an op is answered, or accepted, within it
	hurry     = 5 * time.Millisecond   // a batch is, after its first answer
	grace     = 10 * time.Second       // a caller may be gone for so long
	slack     = 10 * time.Second       // an id is known for so long after its deadline, because stanzas may be late
	keep      = 10 * time.Minute       // a final is, while nobody acknowledges it
	maxPause  = 30 * time.Second       // between two sendings of a kept final
	heartbeat = 5 * time.Second
	lastWait  = 30 * time.Second // for acknowledgements, when the agent shuts down
)

var (
	features   = []string{"batch", "cancel", "finals", "holds"}
	epoch      = time.Now().UnixMilli()
	understood = append([]string{"id", "attempt", "op", "left", "args", "epoch", "must", "caller", "window"}, features...)
)

type (
	// A key names an exchange; the caller is a bare address, or empty for all dispatchers of the home.
	key struct {
		caller, id string
		attempt    int64
	}
	// An exchange is one attempt of one call. It runs until it has an answer.
	exchange struct {
		key
		askers  []string // addresses that sent the op, the last one last
		waiting *request // the stanza that is not answered yet
		answer  event    // the final or error that it ended with
		kept    bool     // the final is not acknowledged yet
		unheard bool     // a cancel came before the op
		until   time.Time
		stop    context.CancelCauseFunc
		pause   time.Duration
		again   *time.Timer
	}
	// A request is an IQ with events, and what its answer holds so far.
	request struct {
		from, id string
		answers  []event
		open     []*exchange
		timer    *time.Timer
		sent     bool
	}
	// A peer is somebody whose presence is known.
	peer struct {
		greeted bool
		gone    *time.Timer
	}
	agent struct {
		mu        sync.Mutex
		domain    string
		named     []string // dispatchers of the credentials, which are believed for life
		told      []string // dispatchers that one of them told of
		peers     map[string]*peer
		exchanges map[key]*exchange
		running   int
		kept      int
		draining  bool
		out       chan stanza // to the stream; nil without one
		changed   chan struct{}
	}
)

func newAgent(address string, dispatchers []string) *agent {
	return &agent{
		domain: domain(address), named: dispatchers, peers: map[string]*peer{}, exchanges: map[key]*exchange{},
		changed: make(chan struct{}, 1),
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
		a.post(refusal(s.From, s.ID, "cancel", "service-unavailable", problem{}))
	default:
		events, err := read(s.X[0])
		var p problem
		if errors.As(err, &p) {
			condition := map[string]string{"malformed": "bad-request", "too-large": "policy-violation"}[p.Reason]
			a.post(refusal(s.From, s.ID, "modify", condition, p))
			return
		}
		a.request(&request{from: s.From, id: s.ID}, events)
	}
}

func (a *agent) request(r *request, events []event) {
	for _, e := range events {
		k := key{a.caller(r.from), e.string("id"), e.integer("attempt", 1)}
		switch e.string("type") {
		case "op":
			a.op(r, k, e)
		case "cancel":
			if a.allowed(r.from) {
				r.say("cancelled", k, event{"state": a.cancel(k, e)})
			}
		case "ack":
			a.ack(k)
			pairs, _ := e["also"].([]any)
			for _, pair := range pairs {
				pair := pair.([]any)
				attempt, _ := pair[1].(json.Number).Int64()
				a.ack(key{k.caller, pair[0].(string), attempt})
			}
		case "describe":
			if e.string("hash") == hash && a.allowed(r.from) {
				r.answers = append(r.answers, event{"type": "description", "hash": hash, "text": description})
			}
		case "hello":
			a.hello(r.from, e)
		}
	}
	r.timer = time.AfterFunc(window, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.close(r)
	})
	a.settle(r)
}

// say adds an event about an exchange to the answer.
func (r *request) say(kind string, k key, more event) {
	r.answers = append(r.answers, about(kind, k, more))
}

func about(kind string, k key, more event) event {
	e := event{"type": kind, "id": k.id}
	if k.attempt != 1 {
		e["attempt"] = k.attempt
	}
	for name, value := range more {
		e[name] = value
	}
	return e
}

// settle sends the answer if it is complete, and soon if a part of it is there.
func (a *agent) settle(r *request) {
	if len(r.open) == 0 {
		a.close(r)
	} else if len(r.answers) > 0 {
		r.timer.Reset(hurry)
	}
}

// close sends the answer as it is: what still runs is accepted.
func (a *agent) close(r *request) {
	if r.sent {
		return
	}
	r.sent = true
	r.timer.Stop()
	for _, x := range r.open {
		x.waiting = nil
		r.say("accepted", x.key, nil)
	}
	a.post(iq("result", r.from, r.id, r.answers...)...)
}

// op runs an operation, once for each id and attempt, or says what became of it.
func (a *agent) op(r *request, k key, e event) {
	if !a.allowed(r.from) {
		r.say("error", k, event{"problem": problem{Reason: "not-allowed"}})
		return
	}
	if x := a.exchanges[k]; x != nil {
		a.resent(r, x)
		return
	}
	left := time.Duration(e.integer("left", 0)) * time.Millisecond
	args, err := a.admit(e)
	x := &exchange{key: k, askers: []string{r.from}, until: time.Now().Add(left)}
	if err != nil {
		x.answer = about("error", k, event{"problem": err})
		r.answers = append(r.answers, x.answer)
		a.remember(x)
		return
	}
	a.remember(x)
	x.waiting = r
	r.open = append(r.open, x)
	a.running++
	a.change()
	path := e.string("op")
	ctx, stop := context.WithCancelCause(context.Background())
	x.stop = stop
	go a.run(ctx, x, path, args, min(left, seconds(described[path].Timeout)))
}

// admit gives the arguments of an op that may run; the order of the reasons goes from the stanza to the operation.
func (a *agent) admit(e event) (object, error) {
	if e.integer("left", 0) == 0 {
		return nil, problem{Reason: "expired"}
	}
	if e.integer("epoch", epoch) != epoch {
		return nil, problem{Reason: "stale-epoch"}
	}
	for _, name := range e.strings("must") {
		if !slices.Contains(understood, name) {
			return nil, problem{"not-understood", name + " is not understood here", name}
		}
	}
	if a.draining {
		return nil, problem{Reason: "draining"}
	}
	offered, ok := described[e.string("op")]
	if !ok {
		return nil, problem{Reason: "unknown-op"}
	}
	given, _ := e["args"].(object)
	if len(encode(given)) > maxInline {
		return nil, problem{Reason: "too-large"}
	}
	args, err := offered.Args.fit(given)
	if err != nil {
		return nil, err
	}
	if a.running >= slots || a.running+a.kept >= maxHeld || len(a.exchanges) >= maxKnown {
		return nil, problem{Reason: "busy"}
	}
	return args, nil
}

// resent answers an op that is known already.
func (a *agent) resent(r *request, x *exchange) {
	if x.answer == nil || x.kept {
		x.asked(r.from)
	}
	switch {
	case x.kept:
		again := event{"again": true}
		for name, value := range x.answer {
			again[name] = value
		}
		r.answers = append(r.answers, again)
	case x.answer != nil:
		r.answers = append(r.answers, x.answer)
	default:
		r.say("accepted", x.key, nil)
		if earlier := x.waiting; earlier != nil && earlier != r && earlier.from != r.from {
			a.close(earlier)
		}
	}
}

func (x *exchange) asked(from string) {
	x.askers = slices.DeleteFunc(x.askers, func(address string) bool { return address == from })
	x.askers = append(x.askers, from)
	x.askers = x.askers[max(0, len(x.askers)-maxAskers):]
}

// remember keeps an exchange until its deadline has passed, if there is room.
func (a *agent) remember(x *exchange) {
	if len(a.exchanges) >= maxKnown {
		return
	}
	a.exchanges[x.key] = x
	a.forget(x, time.Until(x.until)+slack)
}

func (a *agent) forget(x *exchange, after time.Duration) {
	time.AfterFunc(after, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if late := time.Until(x.until) + keep; x.kept && late > 0 {
			a.forget(x, late)
			return
		}
		a.over(x)
		delete(a.exchanges, x.key)
	})
}

func (a *agent) run(ctx context.Context, x *exchange, path string, args object, limit time.Duration) {
	ctx, done := context.WithTimeoutCause(ctx, limit, problem{Reason: "deadline"})
	defer done()
	began := time.Now()
	value, err := performance[path](ctx, args, func(e event) { a.tell(x, e) })
	end := event{"ran": time.Since(began).Milliseconds(), "value": value}
	if err == nil && len(encode(value)) > maxInline {
		err = problem{Reason: "too-large", Text: "the result does not fit into a stanza"}
	}
	kind := "final"
	var p problem
	if errors.As(err, &p) {
		delete(end, "value")
		end["problem"] = p
		if p.Reason == "refused" {
			kind, end = "error", event{"problem": p}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	x.stop(nil)
	a.running--
	a.change()
	x.answer = about(kind, x.key, end)
	if r := x.waiting; r != nil {
		x.waiting = nil
		r.open = slices.DeleteFunc(r.open, func(other *exchange) bool { return other == x })
		r.answers = append(r.answers, x.answer)
		a.settle(r)
	} else {
		a.post(iq("set", x.askers[len(x.askers)-1], "", x.answer)...)
	}
	if kind == "final" {
		a.kept++
		x.kept, x.pause = true, time.Second
		x.again = time.AfterFunc(x.pause, func() { a.repeat(x) })
	}
}

// tell sends what may be lost.
func (a *agent) tell(x *exchange, e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	texts := write([]event{about(e.string("type"), x.key, e)})
	a.post(stanza{XMLName: name("message"), Type: "headline", To: x.askers[len(x.askers)-1], X: texts})
}

// repeat sends a kept final again to all that asked for it and are there.
func (a *agent) repeat(x *exchange) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !x.kept {
		return
	}
	to := slices.DeleteFunc(slices.Clone(x.askers), func(address string) bool { return !a.present(address) })
	if len(to) == 0 && x.caller == "" && a.peers[x.askers[len(x.askers)-1]] == nil {
		to = slices.DeleteFunc(a.dispatchers(), func(address string) bool { return !a.present(address) })
		to = to[:min(1, len(to))]
	}
	for _, address := range to {
		a.post(iq("set", address, "", x.answer)...)
	}
	x.pause = min(2*x.pause, maxPause)
	x.again.Reset(x.pause)
}

func (a *agent) ack(k key) {
	if x := a.exchanges[k]; x != nil && x.kept {
		a.over(x)
	}
}

// over lets go of a final: the exchange is over.
func (a *agent) over(x *exchange) {
	if x.kept {
		x.kept = false
		x.again.Stop()
		a.kept--
		a.change()
		x.answer = about("error", x.key, event{"problem": problem{Reason: "already-done"}})
	}
}

func (a *agent) cancel(k key, e event) string {
	x := a.exchanges[k]
	switch {
	case x == nil:
		tomb := &exchange{key: k, unheard: true, until: time.Now().Add(time.Duration(e.integer("left", 60000)) * time.Millisecond)}
		tomb.answer = about("error", k, event{"problem": problem{Reason: "cancelled", Text: "it was cancelled before it arrived"}})
		a.remember(tomb)
		return "unknown"
	case x.unheard:
		return "unknown"
	case x.answer != nil:
		return "late"
	}
	x.stop(problem{Reason: "cancelled"})
	return "cancelled"
}

// presence keeps account of who is there.
func (a *agent) presence(s stanza) {
	p := a.peers[s.From]
	switch {
	case s.Type == "unavailable" || s.Type == "error":
		if p != nil && p.gone == nil {
			p.greeted = false
			p.gone = time.AfterFunc(grace, func() { a.lost(s.From, p) })
		}
	case s.Type != "" || !a.allowed(s.From) || p == nil && len(a.peers) >= maxPeers:
	default:
		if !a.present(s.From) {
			if p != nil {
				p.gone.Stop()
			}
			a.peers[s.From] = &peer{}
			a.back(s.From)
		}
		if len(s.X) == 0 {
			return
		}
		events, err := read(s.X[0])
		if err != nil {
			return
		}
		for _, e := range events {
			if e.string("type") == "hello" {
				a.hello(s.From, e)
			}
		}
	}
}

// back says the kept finals of somebody who has returned again.
func (a *agent) back(address string) {
	for _, x := range a.exchanges {
		if x.kept && slices.Contains(x.askers, address) {
			x.pause = time.Second / 2
			x.again.Reset(0)
		}
	}
}

// lost stops the calls of a caller that has not returned.
func (a *agent) lost(address string, p *peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.peers[address] != p || p.gone == nil {
		return
	}
	delete(a.peers, address)
	for _, x := range a.exchanges {
		if x.answer == nil && x.caller != "" && x.askers[len(x.askers)-1] == address {
			x.stop(problem{Reason: "cancelled", Text: "its caller is gone"})
		}
	}
}

func (a *agent) present(address string) bool {
	p := a.peers[address]
	return p != nil && p.gone == nil
}

// hello answers a greeting with one, once for each stream of either.
func (a *agent) hello(from string, e event) {
	p := a.peers[from]
	if a.believes(from) {
		if e["dispatchers"] != nil {
			there := func(d string) bool { return a.present(d) && !slices.Contains(e.strings("dispatchers"), d) }
			a.told = append(slices.DeleteFunc(a.told, func(d string) bool { return !there(d) }), e.strings("dispatchers")...)
		}
		a.advertise(from)
	} else if p != nil && !p.greeted {
		a.post(directed(from, greeting()))
	}
	if p != nil {
		p.greeted = true
	}
}

func greeting() event {
	return event{"type": "hello", "role": "agent", "epoch": epoch, "features": features}
}

// advertise tells one dispatcher how the agent is.
func (a *agent) advertise(to string) {
	e := event{
		"type": "advertisement", "hash": hash, "epoch": epoch, "slots": slots, "busy": a.running,
		"load": float64(a.running) / slots, "features": features,
	}
	if a.draining {
		e["state"] = "draining"
	}
	e["holds"], e["more"] = a.holds()
	a.post(directed(to, e))
}

// holds lists the exchanges of the dispatchers that are not over, what runs first.
func (a *agent) holds() (pairs [][2]any, more bool) {
	size := 0
	for _, runs := range []bool{true, false} {
		for k, x := range a.exchanges {
			if k.caller != "" || !x.kept && x.answer != nil || runs != (x.answer == nil) {
				continue
			}
			if size += len(k.id) + 12; len(pairs) == 1000 || size > maxText/2 {
				return pairs, true
			}
			pairs = append(pairs, [2]any{k.id, k.attempt})
		}
	}
	return pairs, false
}

// change has the dispatchers told soon.
func (a *agent) change() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// beat advertises for as long as there is a stream: on change, at most once a second, and as a heartbeat.
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
		case <-time.After(heartbeat - time.Second - time.Duration(rand.Int64N(int64(heartbeat/10)))):
		case <-ctx.Done():
		}
	}
}

// dispatchers are those that are believed, and told how the agent is.
func (a *agent) dispatchers() []string {
	all := slices.Concat(a.named, a.told)
	slices.Sort(all)
	return slices.Compact(all)
}

func (a *agent) believes(address string) bool { return slices.Contains(a.dispatchers(), address) }

func (a *agent) allowed(address string) bool {
	return address == "" || domain(address) == a.domain || a.believes(address)
}

func (a *agent) caller(address string) string {
	if a.believes(address) {
		return ""
	}
	return bare(address)
}

// online begins a stream; those who knew the agent are told that it is back.
func (a *agent) online(out chan stanza) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = out
	a.post(stanza{XMLName: name("presence")})
	for address, p := range a.peers {
		if p.gone == nil && !a.believes(address) {
			a.post(directed(address, greeting()))
		}
	}
}

func (a *agent) offline() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out = nil
}

// post hands stanzas to the stream.
// Without a stream, or when it does not keep up, they are lost: a caller asks again, and finals are sent again.
func (a *agent) post(all ...stanza) {
	for _, s := range all {
		select {
		case a.out <- s:
		default:
		}
	}
}

// drain takes no new work and waits for the end of what there is.
func (a *agent) drain() {
	a.mu.Lock()
	a.draining = true
	a.change()
	a.mu.Unlock()
	for last := time.Now(); ; wait(context.Background(), 20*time.Millisecond) {
		a.mu.Lock()
		running, kept := a.running, a.kept
		a.mu.Unlock()
		if running > 0 {
			last = time.Now()
		}
		if running+kept == 0 || time.Since(last) > lastWait {
			return
		}
	}
}

func bare(address string) string   { return strings.SplitN(address, "/", 2)[0] }
func domain(address string) string { return bare(address)[strings.Index(bare(address), "@")+1:] }
