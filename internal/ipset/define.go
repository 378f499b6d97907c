package ipset

import (
	"errors"
	"fmt"
	"strings"

	"sluice/tables/ipset"
)

// Definition is a set as a configuration has it: what `create` and `add` say.
type Definition struct {
	Name, Type string
	Options    []string // words after the type
	Entries    []string // words after `add NAME`
}

// DefinitionError is what is wrong with a Definition. Entry is the index of the
// entry that it is about, -1 for the set itself.
type DefinitionError struct {
	Entry int
	Err   error
}

func (e *DefinitionError) Error() string { return e.Err.Error() }
func (e *DefinitionError) Unwrap() error { return e.Err }

// Make makes the set, which has no name yet, without entries. Errors are
// *DefinitionErrors.
func (d *Definition) Make(sets *ipset.Sets) (*ipset.Set, error) {
	fail := func(err error) error { return &DefinitionError{-1, oneLine(err)} }
	switch {
	case d.Name == "":
		return nil, fail(errors.New("a set needs a name"))
	case len(d.Name) > ipset.MaxName:
		return nil, fail(fmt.Errorf("the name %q has %d bytes, and %d are the most", d.Name, len(d.Name), ipset.MaxName))
	case strings.ContainsAny(d.Name, " \t\n\"\\"):
		return nil, fail(fmt.Errorf("the name %q has a character that would need quotes", d.Name))
	}
	if ipset.TypeNamed(d.Type) == nil {
		var names []string
		for _, t := range ipset.Types() {
			names = append(names, t.Name)
		}
		return nil, fail(fmt.Errorf("no set type %q: %s", d.Type, strings.Join(names, " ")))
	}
	t, opt, err := parseCreate(d.Type, d.Options, func(string) {})
	if err != nil {
		return nil, fail(err)
	}
	set, err := sets.Make(t.Name, opt)
	if err != nil {
		return nil, fail(kernel(cmdCreate, err))
	}
	return set, nil
}

// Fill adds the entries to a set that Make made; an entry may stand there twice.
func (d *Definition) Fill(set *ipset.Set) error {
	r := &runner{}
	for i, text := range d.Entries {
		words := split(text)
		if len(words) == 0 {
			return &DefinitionError{i, errors.New("an empty entry")}
		}
		e, err := parseElement(set, cmdAdd, "add", words[0], words[1:])
		if err == nil {
			err = kernel(cmdAdd, r.edit(set, e, cmdAdd, true))
		}
		if err != nil {
			return &DefinitionError{i, oneLine(err)}
		}
	}
	return nil
}

// oneLine makes of ipset's lines one sentence for people.
func oneLine(err error) error {
	lines := strings.Split(err.Error(), "\n")
	return errors.New(strings.TrimPrefix(lines[len(lines)-1], "Syntax error: "))
}
