package config

import "sluice/router"

// Places knows where the keys and values of a TOML text are.
type Places struct{ ix *index }

// NewPlaces reads a text that the TOML library has accepted.
func NewPlaces(file string, text []byte) Places { return Places{newIndex(file, text)} }

// Key is the place of a key, or of the nearest one above it; numbers in path are
// elements of lists, from 0.
func (p Places) Key(path ...string) router.Position { return p.find(p.ix.keys, path) }

// Value is the place of a value.
func (p Places) Value(path ...string) router.Position { return p.find(p.ix.vals, path) }

func (p Places) find(m map[string]int, path []string) router.Position {
	for n := len(path); n > 0; n-- {
		at := ""
		for _, x := range path[:n] {
			at = join(at, x)
		}
		if off, ok := m[at]; ok {
			return p.ix.position(off)
		}
	}
	return router.Position{File: p.ix.file, Line: 1, Column: 1}
}
