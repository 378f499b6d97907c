// Package sysctl holds tunables under the kernel's names. A packet reads one
// with a plain atomic load; names are looked up only when one is set or shown.
package sysctl

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Var is one integer tunable.
type Var struct {
	Name     string // "net.ipv4.ip_forward"
	Doc      string
	Default  int64
	Min, Max int64
	ReadOnly bool
	Inert    bool // Linux has it, it means nothing here: setting it warns

	v        atomic.Int64
	get      func() int64 // for computed read-only values
	onChange func(int64)
}

// Load is the current value.
func (v *Var) Load() int64 {
	if v.get != nil {
		return v.get()
	}
	return v.v.Load()
}

// Store sets without checking the bounds.
func (v *Var) Store(x int64) {
	v.v.Store(x)
	if v.onChange != nil {
		v.onChange(x)
	}
}

// Put sets without telling OnChange: for values that follow from another tunable's.
func (v *Var) Put(x int64) { v.v.Store(x) }

// Set parses and checks s as sysctl(8) takes it.
func (v *Var) Set(s string) error {
	if v.ReadOnly {
		return fmt.Errorf("permission denied on key %q", v.Name)
	}
	x, err := strconv.ParseInt(strings.TrimSpace(s), 0, 64)
	if err != nil || x < v.Min || x > v.Max {
		return fmt.Errorf("setting key %q: invalid argument %q (an integer from %d to %d)", v.Name, s, v.Min, v.Max)
	}
	v.Store(x)
	return nil
}

// OnChange registers f to be called after each Store, after those registered before it.
func (v *Var) OnChange(f func(int64)) *Var {
	if first := v.onChange; first != nil {
		v.onChange = func(x int64) { first(x); f(x) }
	} else {
		v.onChange = f
	}
	return v
}

// Computed makes v read its value from f.
func (v *Var) Computed(f func() int64) *Var { v.get, v.ReadOnly = f, true; return v }

// Set is a registry: the tunables of one router.
type Set struct {
	mu   sync.RWMutex
	vars map[string]*Var
}

// NewSet makes an empty registry.
func NewSet() *Set { return &Set{vars: map[string]*Var{}} }

// New adds a tunable with its default. A name that is there already is returned as it is.
func (s *Set) New(name string, def, min, max int64) *Var {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vars[name]; v != nil {
		return v
	}
	v := &Var{Name: name, Default: def, Min: min, Max: max}
	v.v.Store(def)
	s.vars[name] = v
	return v
}

// Remove takes the names that begin with prefix out (an interface's, when it goes).
func (s *Set) Remove(prefix string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.vars {
		if strings.HasPrefix(n, prefix) {
			delete(s.vars, n)
		}
	}
}

// Lookup finds a tunable; both "net.ipv4.ip_forward" and "net/ipv4/ip_forward" do.
func (s *Set) Lookup(name string) *Var {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if v := s.vars[name]; v != nil {
		return v
	}
	return s.vars[strings.ReplaceAll(name, "/", ".")]
}

// All lists the tunables by name.
func (s *Set) All() []*Var {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Var, 0, len(s.vars))
	for _, v := range s.vars {
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
