package router

import (
	"sync/atomic"

	"sluice/packet"
)

// message is a packet of the local stack on its way to a worker.
type message struct {
	bytes    []byte
	uid, gid uint32
	hasOwner bool
}

func (m *message) into(p *packet.Packet) {
	p.SetBytes(m.bytes)
	p.Flags |= packet.Local | packet.L4ChecksumOK
	if m.hasOwner {
		p.Flags |= packet.HasOwner
		p.UID, p.GID = m.uid, m.gid
	}
}

// ring is a bounded queue with many writers and one reader, without locks:
// each slot's turn says whose it is.
type ring struct {
	slots      []slot
	mask       uint64
	_          [40]byte
	head       atomic.Uint64 // next to write
	_          [56]byte
	tail       uint64 // next to read; the reader's own
	overflowed atomic.Uint64
}

type slot struct {
	turn atomic.Uint64
	m    *message
}

func newRing(size int) *ring {
	r := &ring{slots: make([]slot, size), mask: uint64(size - 1)}
	for i := range r.slots {
		r.slots[i].turn.Store(uint64(i))
	}
	return r
}

// push reports false, and counts it, when the ring is full.
func (r *ring) push(m *message) bool {
	for {
		head := r.head.Load()
		s := &r.slots[head&r.mask]
		switch turn := s.turn.Load(); {
		case turn == head:
			if r.head.CompareAndSwap(head, head+1) {
				s.m = m
				s.turn.Store(head + 1)
				return true
			}
		case turn < head:
			r.overflowed.Add(1)
			return false
		}
	}
}

// pop is the oldest message, or nil.
func (r *ring) pop() *message {
	s := &r.slots[r.tail&r.mask]
	if s.turn.Load() != r.tail+1 {
		return nil
	}
	m := s.m
	s.m = nil
	s.turn.Store(r.tail + uint64(len(r.slots)))
	r.tail++
	return m
}
