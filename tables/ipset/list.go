package ipset

import (
	"slices"
	"sync/atomic"
)

// list is a set of method list: sets in an order.
type list struct {
	set  *Set
	live atomic.Pointer[[]*member] // never changed in place
}

type member struct {
	ref *Ref
	x   *extra
}

// place finds a name and what stands beside it; the set's lock is held.
func (l *list) find(name string, now int64) (all []*member, at int) {
	all = *l.live.Load()
	return all, slices.IndexFunc(all, func(m *member) bool { return m.ref.name == name && !m.x.over(now) })
}

// names checks what an element refers to; Sets.mu is held.
func (l *list) names(e *Elem) (ref *Ref, err error) {
	sets := l.set.sets
	if ref = sets.byName[e.Set]; ref == nil {
		return nil, ErrListName
	}
	if ref.cur.Load().list != nil {
		return nil, ErrListLoop
	}
	beside := e.Before
	if beside == "" {
		beside = e.After
	}
	if beside == "" {
		return ref, nil
	}
	if sets.byName[beside] == nil {
		return nil, ErrListNameRef
	}
	return ref, nil
}

func (l *list) add(e *Elem, x *Ext, exist bool, now int64) error {
	s := l.set
	s.sets.mu.Lock()
	defer s.sets.mu.Unlock()
	ref, err := l.names(e)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, at := l.find(e.Set, now)
	to := len(all)
	if e.Before != "" {
		_, to = l.find(e.Before, now)
	} else if e.After != "" {
		if _, to = l.find(e.After, now); to >= 0 {
			to++
		}
	}
	if to < 0 || e.Before == e.Set || e.After == e.Set {
		return ErrListRef
	}
	m := &member{ref, s.newExtra(x, now)}
	all = slices.Clone(all)
	if at >= 0 {
		if !exist {
			return ErrExist
		}
		m.x = s.renewed(all[at].x, x, now)
		all[at] = m
	} else {
		ref.users++
		all = slices.Insert(all, to, m)
	}
	l.live.Store(&all)
	s.changed()
	return nil
}

func (l *list) del(e *Elem, now int64) error {
	s := l.set
	s.sets.mu.Lock()
	defer s.sets.mu.Unlock()
	if _, err := l.names(e); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, at := l.find(e.Set, now)
	if at < 0 || !l.beside(all, at, e) {
		if e.Before != "" || e.After != "" {
			return ErrListRef
		}
		return ErrExist
	}
	all[at].ref.users--
	all = slices.Delete(slices.Clone(all), at, at+1)
	l.live.Store(&all)
	s.changed()
	return nil
}

// beside reports whether element at stands where e says.
func (l *list) beside(all []*member, at int, e *Elem) bool {
	switch {
	case e.Before != "":
		return at+1 < len(all) && all[at+1].ref.name == e.Before
	case e.After != "":
		return at > 0 && all[at-1].ref.name == e.After
	}
	return true
}

func (l *list) test(e *Elem, now int64) (bool, error) {
	s := l.set
	s.sets.mu.Lock()
	defer s.sets.mu.Unlock()
	if _, err := l.names(e); err != nil {
		return false, err
	}
	all, at := l.find(e.Set, now)
	return at >= 0 && l.beside(all, at, e), nil
}

func (l *list) each(now int64, f func(Elem, Ext) bool) {
	for _, m := range *l.live.Load() {
		if !m.x.over(now) && !f(Elem{Set: m.ref.Name()}, l.set.ext(m.x, now)) {
			return
		}
	}
}

// flush lets go of all sets; Sets.mu and the set's lock are held.
func (l *list) flush() {
	for _, m := range *l.live.Load() {
		m.ref.users--
	}
	l.live.Store(&[]*member{})
}

// expire deletes elements whose time is over, as flush.
func (l *list) expire(now int64) int {
	all := *l.live.Load()
	var left []*member
	later := false
	for _, m := range all {
		if m.x.over(now) {
			m.ref.users--
			continue
		}
		later = later || m.x.expires.Load() != 0
		left = append(left, m)
	}
	if len(left) < len(all) {
		l.live.Store(&left)
	}
	l.set.moved.Store(later)
	return len(all) - len(left)
}
