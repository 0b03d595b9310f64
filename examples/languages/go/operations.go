package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	_ "embed"
)

// An operation does what was asked, with arguments that fit, and may tell how far it is.
// It returns early, with the cause, when its context ends.
type operation func(ctx context.Context, args object, tell func(event)) (any, error)

// An offer is what the description says of an operation, as far as it is needed here.
type offer struct {
	Args    schema
	Timeout float64
}

var (
	// The text that is hashed and told; arguments are checked against it.
	//
	//go:embed operations.json
	description string
	offers      = parse[map[string]map[string]offer](description)["ops"]
	digest      = sha256.Sum256([]byte(description))
	hash        = hex.EncodeToString(digest[:])
	operations  = map[string]operation{
		"/conform/echo":   func(_ context.Context, args object, _ func(event)) (any, error) { return args["value"], nil },
		"/conform/fail":   ending("failed"),
		"/conform/refuse": ending("refused"),
		"/conform/repeat": repeat,
		"/conform/report": report,
		"/conform/work":   (&worker{begun: map[string]int{}}).work,
	}
)

func ending(reason string) operation {
	return func(_ context.Context, args object, _ func(event)) (any, error) {
		return nil, problem{Reason: reason, Text: args["text"].(string)}
	}
}

func repeat(_ context.Context, args object, _ func(event)) (any, error) {
	return strings.Repeat(args["text"].(string), int(number(args["times"]))), nil
}

func report(_ context.Context, args object, tell func(event)) (any, error) {
	steps := int(number(args["steps"]))
	for i := 1; i <= steps; i++ {
		tell(event{"type": "progress", "done": i, "total": steps})
		tell(event{"type": "log", "text": fmt.Sprintf("step %d", i)})
	}
	return steps, nil
}

// A worker counts how often work was begun under each of the last 10000 names.
type worker struct {
	mu    sync.Mutex
	begun map[string]int
	names []string
}

func (w *worker) work(ctx context.Context, args object, _ func(event)) (any, error) {
	n := w.begin(args["name"].(string))
	select {
	case <-time.After(time.Duration(number(args["seconds"]) * float64(time.Second))):
		return n, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *worker) begin(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun[name]++; w.begun[name] == 1 {
		w.names = append(w.names, name)
	}
	if len(w.names) > 10000 {
		delete(w.begun, w.names[0])
		w.names = w.names[1:]
	}
	return w.begun[name]
}
