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
		if name, how := rules[kind].wrong(object(e)); how != "" {
			return nil, problem{Reason: "malformed", Text: fmt.Sprintf("'%s' of '%s' %s", name, kind, how)}
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
	Type             string
	Properties       map[string]schema
	Required         []string
	Items            *schema
	MaxItems         int
	Minimum, Maximum float64
	MaxLength        int
	Pattern          *regexp.Regexp
	Default          any
}

// wrong says which member is missing or does not fit, and how; nothing if all is well.
func (s schema) wrong(members object) (name, how string) {
	for _, name := range s.Required {
		if _, ok := members[name]; !ok {
			return name, "is missing"
		}
	}
	for name, member := range members {
		if property, ok := s.Properties[name]; ok && !property.fits(member) {
			return name, "does not fit"
		}
	}
	return "", ""
}

func (s schema) fits(value any) bool {
	if s.Type == "" {
		return true
	}
	switch v := value.(type) {
	case string:
		return s.Type == "string" && (s.Pattern != nil && s.Pattern.MatchString(v) || s.Pattern == nil && utf8.RuneCountInString(v) <= s.MaxLength)
	case json.Number:
		whole := !strings.ContainsAny(v.String(), ".eE")
		return (s.Type == "number" || s.Type == "integer" && whole) && number(v) >= s.Minimum && number(v) <= s.Maximum
	case []any:
		unfit := func(item any) bool { return !s.Items.fits(item) }
		return s.Type == "array" && len(v) <= s.MaxItems && !slices.ContainsFunc(v, unfit)
	case object:
		return s.Type == "object"
	}
	return false
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
