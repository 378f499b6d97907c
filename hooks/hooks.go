// Package hooks has netfilter's hook points, priorities and verdicts, and the
// loop that runs the stages of one hook.
package hooks

import "sluice/packet"

// Hook is a netfilter hook point, with the kernel's numbers.
type Hook uint8

const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
	NumHooks
)

var names = [NumHooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

func (h Hook) String() string { return names[h] }

// Mask is a set of hooks.
type Mask uint8

// At makes a Mask.
func At(hs ...Hook) (m Mask) {
	for _, h := range hs {
		m |= 1 << h
	}
	return m
}

// Has reports whether h is in m.
func (m Mask) Has(h Hook) bool { return m>>h&1 != 0 }

// Priorities within a hook, lowest first (linux/netfilter_ipv4.h).
const (
	PriDefrag    = -400
	PriRaw       = -300
	PriConntrack = -200
	PriMangle    = -150
	PriNATDst    = -100
	PriFilter    = 0
	PriSecurity  = 50
	PriNATSrc    = 100
	PriHelper    = 300
	PriConfirm   = 1 << 30
)

// Verdict is what a stage says of a packet. The zero Verdict drops; whoever
// drops sets p.Reason.
type Verdict uint8

const (
	Drop   Verdict = iota
	Accept         // go on with the next stage
	Stolen         // somebody else has the packet now (or its bytes); stop, count no drop
)

// Func is a stage's code, bound to one worker.
type Func func(p *packet.Packet) Verdict

// Counter counts packets and bytes.
type Counter struct{ Packets, Bytes uint64 }

// Stage is one entry of the router's order, bound to a worker. Passed are the
// policy counters of tables without rules that stand before it: they are not
// walked, only counted. A Stage without Run is the end of a hook whose last
// tables are such.
type Stage struct {
	Name     string
	Priority int
	Passed   []*Counter
	Run      Func
}

// Run takes p through the stages of one hook: ACCEPT ends a table, not the
// hook; any other verdict ends the walk.
func Run(stages []Stage, p *packet.Packet) Verdict {
	for i := range stages {
		s := &stages[i]
		for _, c := range s.Passed {
			c.Packets++
			c.Bytes += uint64(p.Len())
		}
		if s.Run == nil {
			break
		}
		if v := s.Run(p); v != Accept {
			return v
		}
	}
	return Accept
}
