package main

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"regexp"
	"strings"
	"time"
)

type object = map[string]any

// An event holds the members that are used here; others are ignored.
type event struct {
	Type, ID, Op, Hash   string
	Attempt, Left, Epoch int64
	Args                 map[string]json.RawMessage
	Must                 []string
}

var (
	members = []string{"id", "attempt", "op", "left", "args", "epoch", "must"} // what `must` may name
	id      = regexp.MustCompile(`^[!-~]{1,128}$`)
	path    = regexp.MustCompile(`^/$|^(/[^/]+)+$`)
)

func (e event) left() time.Duration { return time.Duration(e.Left) * time.Millisecond }

func (e event) about(kind, member string, value any) object {
	return object{"type": kind, "id": e.ID, "attempt": e.Attempt, member: value}
}

func (e event) refused(reason, text string) object {
	return e.about("error", "problem", object{"reason": reason, "text": text})
}

func (e event) failed(reason, text string) object {
	return e.about("final", "problem", object{"reason": reason, "text": text})
}

var errMalformed = errors.New("malformed")

// read gives the events of a stanza that have an answer of their own; if one breaks a rule, none is taken.
func read(x []string) (answered []event, err error) {
	var given []json.RawMessage
	text := strings.Join(x[:min(1, len(x))], "")
	if !sound(text) || json.Unmarshal([]byte(text), &given) != nil || given == nil {
		return nil, errMalformed
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
			return nil, errMalformed
		}
		if e.Type == "op" || e.Type == "describe" && e.Hash == hash {
			answered = append(answered, e)
		}
	}
	return answered, nil
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
