package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// description is the text that is hashed, told and believed here too: arguments are checked against its schemas.
//
//go:embed operations.json
var description string

var (
	digest      = sha256.Sum256([]byte(description))
	hash        = hex.EncodeToString(digest[:])
	described   = describe()
	performance = map[string]operation{
		"/conform/echo":   echo,
		"/conform/fail":   fail,
		"/conform/refuse": refuse,
		"/conform/repeat": repeat,
		"/conform/report": report,
		"/conform/work":   (&worker{began: map[string]int{}}).work,
	}
)

// An operation does what was asked, with arguments that fit, and may tell how far it is.
// It returns early, with the cause, when its context ends.
type operation func(ctx context.Context, args object, tell func(event)) (any, error)

func echo(_ context.Context, args object, _ func(event)) (any, error) {
	return args["value"], nil
}

func repeat(_ context.Context, args object, _ func(event)) (any, error) {
	return strings.Repeat(args["text"].(string), int(number(args["times"]))), nil
}

func fail(_ context.Context, args object, _ func(event)) (any, error) {
	return nil, problem{Reason: "failed", Text: args["text"].(string)}
}

func refuse(_ context.Context, args object, _ func(event)) (any, error) {
	return nil, problem{Reason: "refused", Text: args["text"].(string)}
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
	began map[string]int
	names []string
}

func (w *worker) work(ctx context.Context, args object, _ func(event)) (any, error) {
	n := w.count(args["name"].(string))
	select {
	case <-time.After(seconds(number(args["seconds"]))):
		return n, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (w *worker) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began[name]++; w.began[name] == 1 {
		w.names = append(w.names, name)
	}
	if len(w.names) > 10000 {
		delete(w.began, w.names[0])
		w.names = w.names[1:]
	}
	return w.began[name]
}

// A schema holds the keywords of JSON Schema that operations.json uses.
type schema struct {
	Type             string
	Properties       map[string]schema
	Required         []string
	Minimum, Maximum *float64
	MaxLength        *int
	Default          any
}

type offer struct {
	Args    schema
	Timeout float64
}

func describe() map[string]offer {
	var d struct{ Ops map[string]offer }
	decoder := json.NewDecoder(strings.NewReader(description))
	decoder.UseNumber()
	if err := decoder.Decode(&d); err != nil {
		panic(err)
	}
	return d.Ops
}

// fit gives the arguments with their defaults filled in, or says which of them is at fault.
func (s schema) fit(given object) (object, error) {
	args := object{}
	for name, value := range given {
		property, known := s.Properties[name]
		if !known {
			return nil, problem{"bad-arguments", fmt.Sprintf("unknown argument %q", name), name}
		}
		if wrong := property.wrong(value); wrong != "" {
			return nil, problem{"bad-arguments", fmt.Sprintf("%q must be %s", name, wrong), name}
		}
		args[name] = value
	}
	for name, property := range s.Properties {
		if _, ok := args[name]; ok {
			continue
		}
		if slices.Contains(s.Required, name) {
			return nil, problem{"bad-arguments", fmt.Sprintf("%q is required", name), name}
		}
		args[name] = property.Default
	}
	return args, nil
}

// wrong says what a value must be, or nothing if it is that.
func (s schema) wrong(value any) string {
	switch s.Type {
	case "string":
		if text, ok := value.(string); !ok || utf8.RuneCountInString(text) > *s.MaxLength {
			return fmt.Sprintf("a string of at most %d characters", *s.MaxLength)
		}
	case "integer", "number":
		_, ok := value.(json.Number)
		if n := number(value); !ok || n < *s.Minimum || n > *s.Maximum || s.Type == "integer" && n != math.Trunc(n) {
			return fmt.Sprintf("a number (%s) from %g to %g", s.Type, *s.Minimum, *s.Maximum)
		}
	}
	return ""
}
