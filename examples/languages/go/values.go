package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	_ "embed"
)

// What is read and written at most (section 11 of the protocol).
const (
	maxText    = 61440 // bytes of a stanza
	maxInline  = 32768 // bytes of arguments, or of a result
	maxEvents  = 1000
	maxLevels  = 32
	maxMembers = 20000
	maxInteger = 1<<53 - 1
)

type (
	object = map[string]any
	event  object

	// A problem says why an operation was refused, or failed.
	problem struct {
		Reason   string `json:"reason"`
		Text     string `json:"text,omitempty"`
		Argument string `json:"argument,omitempty"`
	}
)

func (p problem) Error() string { return p.Reason + ": " + p.Text }

var (
	//go:embed events.json
	known string
	rules = parse[map[string]schema](known)

	// encoding/json puts U+FFFD in the place of a lone surrogate without a word, so they are looked for in the text.
	pairs = regexp.MustCompile(`\\(\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})`)
	lone  = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
	// encoding/json escapes all that XML does not like but these.
	escape = strings.NewReplacer("\ufffe", `\ufffe`, "\uffff", `\uffff`)
)

// read gives the events of a stanza; all of them keep the rules, or none is taken.
func read(text string) ([]event, error) {
	if len(text) > maxText {
		return nil, problem{Reason: "too-large", Text: fmt.Sprintf("at most %d bytes are read", maxText)}
	}
	events, err := decode[[]event](text)
	if err != nil || events == nil || len(events) > maxEvents || lone.MatchString(pairs.ReplaceAllString(text, "_")) {
		return nil, problem{Reason: "malformed", Text: "the text is not a list of events, or not I-JSON"}
	}
	for _, e := range events {
		room := maxMembers
		kind, ok := e["type"].(string)
		if !ok || !sound(object(e), 1, &room) {
			return nil, problem{Reason: "malformed", Text: "an event has no type, is too deep or large, or has a number that is not I-JSON"}
		}
		for name, member := range e {
			if member == nil {
				delete(e, name)
			}
		}
		if rule, ok := rules[kind]; ok {
			if name, wrong := rule.wrong(object(e)); wrong != "" {
				return nil, problem{Reason: "malformed", Text: fmt.Sprintf("%q of %q %s", name, kind, wrong)}
			}
		}
	}
	return events, nil
}

// write gives JSON text without what XML cannot hold.
func write(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // all that is written was made or read here
	}
	return escape.Replace(string(text))
}

func decode[T any](text string) (value T, err error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err = decoder.Decode(&value); err != nil {
		return value, err
	}
	if _, err = decoder.Token(); !errors.Is(err, io.EOF) {
		return value, errors.New("there is more than one value")
	}
	return value, nil
}

// parse decodes a text of our own.
func parse[T any](text string) T {
	value, err := decode[T](text)
	if err != nil {
		panic(err)
	}
	return value
}

// sound says whether a value is neither too deep nor too large, and its numbers need no rounding.
func sound(value any, level int, room *int) bool {
	var members []any
	switch v := value.(type) {
	case json.Number:
		f, err := v.Float64()
		return err == nil && (strings.ContainsAny(v.String(), ".eE") || math.Abs(f) <= maxInteger)
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
	return level <= maxLevels && *room >= 0 &&
		!slices.ContainsFunc(members, func(m any) bool { return !sound(m, level+1, room) })
}

// A schema holds the keywords of JSON Schema that events.json and operations.json use.
type schema struct {
	Type                 string
	Properties           map[string]schema
	AdditionalProperties *bool
	Required             []string
	Items                *schema
	MaxItems             int
	Minimum, Maximum     *float64
	MaxLength            int
	Pattern              string
	Default              any
}

// wrong says what is wrong with a value, and with which of its members; nothing if it fits.
func (s schema) wrong(value any) (name, wrong string) {
	ok := true
	switch s.Type {
	case "object":
		var members object
		if members, ok = value.(object); ok {
			return s.wrongMember(members)
		}
	case "array":
		var items []any
		items, ok = value.([]any)
		ok = ok && len(items) <= s.MaxItems && !slices.ContainsFunc(items, func(item any) bool {
			_, wrong := s.Items.wrong(item)
			return wrong != ""
		})
	case "string":
		var text string
		text, ok = value.(string)
		ok = ok && (s.MaxLength == 0 || utf8.RuneCountInString(text) <= s.MaxLength) && regexp.MustCompile(s.Pattern).MatchString(text)
	case "integer", "number":
		var n json.Number
		n, ok = value.(json.Number)
		f := number(n)
		ok = ok && (s.Minimum == nil || f >= *s.Minimum) && (s.Maximum == nil || f <= *s.Maximum) &&
			(s.Type == "number" || !strings.ContainsAny(n.String(), ".eE"))
	}
	if !ok {
		return "", "does not fit its description"
	}
	return "", ""
}

func (s schema) wrongMember(members object) (name, wrong string) {
	for _, name := range s.Required {
		if _, ok := members[name]; !ok {
			return name, "is required"
		}
	}
	for name, member := range members {
		property, ok := s.Properties[name]
		if !ok && s.AdditionalProperties != nil {
			return name, "is unknown"
		}
		if _, wrong := property.wrong(member); wrong != "" {
			return name, wrong
		}
	}
	return "", ""
}

func (e event) string(name string) string {
	s, _ := e[name].(string)
	return s
}

func (e event) object(name string) object {
	o, _ := e[name].(object)
	return o
}

func (e event) list(name string) []any {
	items, _ := e[name].([]any)
	return items
}

func (e event) integer(name string, otherwise int64) int64 {
	if n, ok := e[name].(json.Number); ok {
		return int64(number(n))
	}
	return otherwise
}

func number(v any) float64 {
	n, _ := v.(json.Number)
	f, _ := n.Float64() // it was checked when it was read
	return f
}
