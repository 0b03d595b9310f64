package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// What one stanza may hold, of what is read and of what is written (section 11 of the protocol).
const (
	maxText    = 61440
	maxInline  = 32768
	maxEvents  = 1000
	maxLevels  = 32
	maxMembers = 20000
	maxInteger = 1<<53 - 1
)

type (
	object = map[string]any
	event  object
	check  func(any) bool
)

// A problem says why an operation was refused, or failed.
type problem struct {
	Reason   string `json:"reason"`
	Text     string `json:"text,omitempty"`
	Argument string `json:"argument,omitempty"`
}

func (p problem) Error() string { return p.Reason + ": " + p.Text }

// rules says what the members of the events that an agent takes must be.
// Events and members that are not here are not looked at.
var rules = map[string]map[string]check{
	"op": {
		"id": isID, "attempt": integer(1, 1000000), "op": isPath, "left": integer(0, 31622400000), "args": isObject,
		"epoch": integer(0, maxInteger), "key": text(256), "caller": text(3071), "grant": text(4096), "trace": text(128),
		"window": integer(0, 10000), "must": list(32, text(64)), "want": isObject,
	},
	"cancel": {"id": isID, "attempt": integer(1, 1000000), "left": integer(0, 31622400000), "of": list(1000, integer(0, 1000))},
	"ack":    {"id": isID, "attempt": integer(1, 1000000), "also": list(255, isExchange)},
	"hello": {
		"version": text(16), "role": isRole, "features": list(64, text(64)), "stanza": integer(4096, maxInteger),
		"dispatchers": list(64, text(3071)), "epoch": integer(0, maxInteger),
	},
	"describe": {"hash": text(64)},
}

var required = map[string][]string{"op": {"id", "op", "left"}, "cancel": {"id"}, "ack": {"id"}, "describe": {"hash"}}

var (
	isID   = matches(`^[!-~]{1,128}$`)
	isRole = matches(`^(agent|caller|dispatcher)$`)
	part   = regexp.MustCompile("^[^ *?{}\\[\\]<>\"'\\\\]+$")

	// encoding/json puts U+FFFD in the place of a lone surrogate without a word, so they are looked for in the text.
	escapes = regexp.MustCompile(`\\(\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})`)
	lone    = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
)

// read gives the events of a stanza; all of them keep the rules, or none is taken.
func read(text string) ([]event, error) {
	if len(text) > maxText {
		return nil, problem{Reason: "too-large", Text: fmt.Sprintf("at most %d bytes are read", maxText)}
	}
	var events []event
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&events); err != nil || events == nil {
		return nil, malformed("the text is not a list of events")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) || lone.MatchString(escapes.ReplaceAllString(text, "_")) {
		return nil, malformed("the text is not I-JSON")
	}
	if len(events) > maxEvents {
		return nil, malformed("at most %d events", maxEvents)
	}
	for _, e := range events {
		if err := e.valid(); err != nil {
			return nil, err
		}
	}
	return events, nil
}

func (e event) valid() error {
	room := maxMembers
	if !sound(object(e), 1, &room) {
		return malformed("an event is too deep, too large or holds a number that is not I-JSON")
	}
	kind, ok := e["type"].(string)
	if !ok {
		return malformed("an event lacks its type")
	}
	for name, value := range e {
		if value == nil {
			delete(e, name)
		} else if fits := rules[kind][name]; fits != nil && !fits(value) {
			return malformed("%q of %q is not what it must be", name, kind)
		}
	}
	for _, name := range required[kind] {
		if e[name] == nil {
			return malformed("%q lacks %q", kind, name)
		}
	}
	return nil
}

// sound says whether a value has at most so many levels and members, and numbers that need no rounding.
func sound(value any, level int, room *int) bool {
	var members []any
	switch v := value.(type) {
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			_, err := v.Float64()
			return err == nil
		}
		n, err := v.Int64()
		return err == nil && -maxInteger <= n && n <= maxInteger
	case []any:
		members = v
	case object:
		for _, member := range v {
			members = append(members, member)
		}
	default:
		return true
	}
	*room -= len(members)
	if level > maxLevels || *room < 0 {
		return false
	}
	for _, member := range members {
		if !sound(member, level+1, room) {
			return false
		}
	}
	return true
}

// write gives the events as texts, each of which fits into a stanza, in order.
func write(events []event) []string {
	var texts []string
	size := maxText
	for _, e := range events {
		text := encode(e)
		if size += len(text) + 1; size >= maxText {
			texts, size = append(texts, ""), len(text)+2
		} else {
			text = "," + text
		}
		texts[len(texts)-1] += text
	}
	for i := range texts {
		texts[i] = "[" + texts[i] + "]"
	}
	return texts
}

// encode gives JSON text without the characters that XML cannot hold; Marshal has seen to all but two of them.
func encode(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return strings.NewReplacer("\ufffe", `\ufffe`, "\uffff", `\uffff`).Replace(string(text))
}

func malformed(format string, args ...any) error {
	return problem{Reason: "malformed", Text: fmt.Sprintf(format, args...)}
}

func matches(pattern string) check {
	expression := regexp.MustCompile(pattern)
	return func(v any) bool { s, ok := v.(string); return ok && expression.MatchString(s) }
}

func text(most int) check {
	return func(v any) bool { s, ok := v.(string); return ok && utf8.RuneCountInString(s) <= most }
}

func integer(least, most int64) check {
	return func(v any) bool {
		n, ok := v.(json.Number)
		i, err := n.Int64()
		return ok && err == nil && least <= i && i <= most
	}
}

func list(most int, item check) check {
	return func(v any) bool {
		items, ok := v.([]any)
		if !ok || len(items) > most {
			return false
		}
		for _, i := range items {
			if !item(i) {
				return false
			}
		}
		return true
	}
}

func isObject(v any) bool { _, ok := v.(object); return ok }

func isExchange(v any) bool {
	pair, ok := v.([]any)
	return ok && len(pair) == 2 && isID(pair[0]) && integer(1, 1000000)(pair[1])
}

func isPath(v any) bool {
	path, ok := v.(string)
	if !ok || len(path) > 512 || !strings.HasPrefix(path, "/") {
		return false
	}
	parts := strings.Split(path[1:], "/")
	for _, p := range parts {
		if p == "." || p == ".." || !part.MatchString(p) || strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return path == "/"
		}
	}
	return len(parts) <= 32
}

func (e event) string(name string) string { s, _ := e[name].(string); return s }

func (e event) strings(name string) []string {
	items, _ := e[name].([]any)
	all := make([]string, len(items))
	for i, item := range items {
		all[i], _ = item.(string)
	}
	return all
}

func (e event) integer(name string, otherwise int64) int64 {
	if n, ok := e[name].(json.Number); ok {
		i, _ := n.Int64()
		return i
	}
	return otherwise
}

func number(v any) float64 {
	n, _ := v.(json.Number)
	f, _ := n.Float64()
	return f
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
