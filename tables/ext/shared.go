package ext

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"weak"

	"sluice/conntrack"
	"sluice/tables"
)

// spin is a lock for a handful of instructions with nothing in between that
// blocks: state that rules share and that one atomic word cannot hold.
type spin struct{ w atomic.Uint32 }

func (s *spin) lock() {
	for n := 0; !s.w.CompareAndSwap(0, 1); n++ {
		if n > 64 {
			runtime.Gosched()
		}
	}
}

func (s *spin) unlock() { s.w.Store(0) }

// shared is state that rules share by name, as recent's lists and hashlimit's
// tables are. It lives as long as a rule that names it: the rules of a new
// ruleset take hold of it before those of the old one let go.
type shared[T any] struct {
	mu    sync.Mutex
	items map[sharedKey]*sharedItem[T]
}

// sharedKey is a name within a router. Linux keeps names apart by network
// namespace; a router has one connection table, which stands for it here. The
// pointer is weak: a router that is given up is not held by its rules' names.
type sharedKey struct {
	router any   // weak.Pointer
	family uint8 // 0: both families share
	name   string
}

type sharedItem[T any] struct {
	state *T
	users int
}

// hold is a rule's share in an item.
type hold[T any] struct{ state *T }

// take gives the rule that is being compiled its hold on a named item. add is called with the item that
// is there, or nil, and returns what is to be there; it runs under the lock.
func (s *shared[T]) take(rule *tables.Rule, env *tables.Env, family uint8, name string, add func(*T) (*T, error)) (*hold[T], error) {
	key := sharedKey{weak.Make(env), family, name}
	if env.CT != nil {
		key.router = weak.Make(env.CT)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.items[key]
	var state *T
	if it != nil {
		state = it.state
	}
	state, err := add(state)
	if err != nil {
		return nil, err
	}
	if it == nil {
		it = &sharedItem[T]{state: state}
		if s.items == nil {
			s.items = map[sharedKey]*sharedItem[T]{}
		}
		s.items[key] = it
	}
	it.users++
	h := &hold[T]{state}
	var left atomic.Bool
	leave := func() {
		if !left.Swap(true) {
			s.drop(key)
		}
	}
	rule.OnRemove(leave)
	// An engine that is given up whole removes no rules: then the hold, which
	// is part of the rule's compiled form, becomes unreachable.
	runtime.AddCleanup(h, func(leave func()) { leave() }, leave)
	return h, nil
}

// each calls f with the items of the router that ct belongs to.
func (s *shared[T]) each(ct *conntrack.Table, f func(*T)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, it := range s.items {
		if k.router == weak.Make(ct) {
			f(it.state)
		}
	}
}

func (s *shared[T]) drop(key sharedKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.items[key]; it != nil {
		if it.users--; it.users == 0 {
			delete(s.items, key)
		}
	}
}

// checkProcName refuses what Linux cannot make a file of in /proc.
func checkProcName(name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return errors.New("a name cannot be empty, \".\" or \"..\", or contain \"/\"")
	}
	return nil
}

// quoteWord puts quotes around a word that would not read back as one word.
func quoteWord(s string) string {
	if s == "" || strings.ContainsAny(s, " \t\n\"'\\") {
		return tables.Quote(s)
	}
	return s
}
