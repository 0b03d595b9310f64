package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The description is told as it is, and arguments are checked against it.
//
//go:embed operations.json
var description string

// To make the agent yours, change this table, the arguments, and operations.json.
var operations = map[string]operation{
	"/conform/echo":   func(_ context.Context, args arguments) (any, error) { return args.Value, nil },
	"/conform/fail":   func(_ context.Context, args arguments) (any, error) { return nil, errors.New(args.Text) },
	"/conform/refuse": func(_ context.Context, args arguments) (any, error) { return nil, refused(args.Text) },
	"/conform/repeat": func(_ context.Context, args arguments) (any, error) {
		return strings.Repeat(args.Text, args.Times), nil
	},
	"/conform/work": work,
}

// An operation returns early when its context ends.
type operation func(context.Context, arguments) (any, error)

// refused is the error of an operation that did nothing.
type refused string

func (r refused) Error() string { return string(r) }

// arguments of all operations.
type arguments struct {
	Value      json.RawMessage
	Text, Name string
	Times      int
	Seconds    float64
}

// schemas of the arguments.
var schemas = func() map[string]*jsonschema.Schema {
	found := map[string]*jsonschema.Schema{}
	compiler := jsonschema.NewCompiler()
	must(0, compiler.AddResource("/", must(jsonschema.UnmarshalJSON(strings.NewReader(description)))))
	for path := range operations {
		found[path] = must(compiler.Compile("/#/ops/" + strings.ReplaceAll(path, "/", "~1") + "/args"))
	}
	return found
}()

// check gives the arguments of an operation, if they fit.
func check(path string, given map[string]json.RawMessage) (args arguments, fit bool) {
	args = arguments{Times: 1}
	text := []byte(write(given))
	var value map[string]any
	fit = json.Unmarshal(text, &value) == nil && schemas[path].Validate(value) == nil && json.Unmarshal(text, &args) == nil
	return args, fit
}

func work(ctx context.Context, args arguments) (any, error) {
	times := begin(args.Name)
	select {
	case <-time.After(time.Duration(args.Seconds * float64(time.Second))):
		return times, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var (
	mu    sync.Mutex
	begun = map[string]int{} // how often work was begun under each of the last 10000 names
	names []string
)

func begin(name string) int {
	mu.Lock()
	defer mu.Unlock()
	if begun[name]++; begun[name] == 1 {
		names = append(names, name)
	}
	if len(names) > 10000 {
		delete(begun, names[0])
		names = names[1:]
	}
	return begun[name]
}
