package conntrack

import (
	"errors"
	"slices"
	"syscall"

	"sluice/internal/sysctl"
	"sluice/packet"
)

// TimeoutPolicy replaces the timeouts of one protocol for the connections of a
// template. What a table has given out does not change any more.
type TimeoutPolicy struct {
	Name    string
	Family  uint8 // 0: both
	Proto   uint8 // GenericTimeouts: all that have no timeouts of their own
	Seconds []uint32

	index uint16
}

// GenericTimeouts is the protocol number that stands for those without
// timeouts of their own.
const GenericTimeouts = 255

// Errors of timeout policies.
var (
	ErrNoPolicy  error = syscall.ENOENT
	ErrInUse     error = syscall.EBUSY
	ErrNoTimeout error = syscall.EOPNOTSUPP
)

// errTooMany: more policies than connections can name.
var errTooMany = errors.New("there are too many timeout policies")

// timeoutStates are the states whose timeouts a policy holds, in the order of
// Seconds, under the names that nfct takes.
var timeoutStates = map[uint8][]string{
	packet.ProtoTCP: {"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close",
		"syn_sent2", "retrans", "unacknowledged"},
	packet.ProtoSCTP: {"closed", "cookie_wait", "cookie_echoed", "established", "shutdown_sent", "shutdown_recd",
		"shutdown_ack_sent"},
	packet.ProtoUDP: {"unreplied", "replied"}, packet.ProtoUDPLite: {"unreplied", "replied"}, packet.ProtoGRE: {"unreplied", "replied"},
	packet.ProtoICMP: {"timeout"}, packet.ProtoICMPv6: {"timeout"}, GenericTimeouts: {"timeout"},
}

// MaxTimeout is the longest timeout, seconds.
const MaxTimeout = 1<<32/1000 - 1

// TimeoutProtocol is the number of a protocol that nfct knows by name. DCCP is
// one of them, though it has no timeouts of its own any more.
func TimeoutProtocol(name string) (proto uint8, ok bool) {
	proto, ok = map[string]uint8{
		"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP, "udplite": packet.ProtoUDPLite, "sctp": packet.ProtoSCTP, "dccp": packet.ProtoDCCP,
		"icmp": packet.ProtoICMP, "icmpv6": packet.ProtoICMPv6, "gre": packet.ProtoGRE, "generic": GenericTimeouts,
	}[name]
	return proto, ok
}

// TimeoutFamily is the family of an nfct name; without one it is IPv4.
func TimeoutFamily(name string) (family uint8, ok bool) {
	switch name {
	case "inet":
		return packet.IPv4, true
	case "inet6":
		return packet.IPv6, true
	}
	return packet.IPv4, false
}

// TimeoutStates are the names of a protocol's states in a TimeoutPolicy; none
// if the protocol has no timeouts of its own.
func TimeoutStates(proto uint8) []string { return timeoutStates[proto] }

// timeoutVars are the tunables behind a protocol's states, in that order.
func (t *Table) timeoutVars(proto uint8) []*sysctl.Var {
	y := &t.sys
	switch proto {
	case packet.ProtoTCP:
		return y.tcp[1:]
	case packet.ProtoSCTP:
		return y.sctp[1 : 1+len(timeoutStates[proto])]
	case packet.ProtoUDP, packet.ProtoUDPLite:
		return []*sysctl.Var{y.udp, y.udpStream}
	case packet.ProtoGRE:
		return []*sysctl.Var{y.gre, y.greStream}
	case packet.ProtoICMP:
		return []*sysctl.Var{y.icmp}
	case packet.ProtoICMPv6:
		return []*sysctl.Var{y.icmpv6}
	case GenericTimeouts:
		return []*sysctl.Var{y.generic}
	}
	return nil
}

// DefaultTimeouts are a protocol's timeouts where no policy holds, in seconds,
// in the order of TimeoutStates.
func (t *Table) DefaultTimeouts(proto uint8) (seconds []uint32) {
	for _, v := range t.timeoutVars(proto) {
		seconds = append(seconds, uint32(v.Load()))
	}
	return seconds
}

// SetDefaultTimeout sets the timeout of one state (an index of TimeoutStates).
func (t *Table) SetDefaultTimeout(proto uint8, state int, seconds uint32) {
	if v := t.timeoutVars(proto); state < len(v) {
		v[state].Store(int64(seconds))
	}
}

// timeoutPolicies are by index; a deleted one leaves a gap.
type timeoutPolicies struct {
	all   []*TimeoutPolicy
	users []int // rules that name it
}

// AddTimeoutPolicy registers a policy; ErrInUse if the name is taken.
func (t *Table) AddTimeoutPolicy(tp TimeoutPolicy) error { return t.putTimeoutPolicy(tp, false) }

// PutTimeoutPolicy is AddTimeoutPolicy that also changes the timeouts of one
// that is there, for its connections, too; its protocol stays.
func (t *Table) PutTimeoutPolicy(tp TimeoutPolicy) error { return t.putTimeoutPolicy(tp, true) }

func (t *Table) putTimeoutPolicy(tp TimeoutPolicy, change bool) error {
	n := len(timeoutStates[tp.Proto])
	if n == 0 {
		return ErrNoTimeout
	}
	if len(tp.Seconds) != n {
		return ErrInvalid
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := *t.policies.Load()
	at := slices.Index(now.all, nil)
	for i, o := range now.all {
		switch {
		case o == nil || o.Name != tp.Name:
			continue
		case !change:
			return ErrInUse
		case o.Proto != tp.Proto || o.Family != tp.Family:
			return ErrInvalid
		}
		at = i
	}
	now.all, now.users = slices.Clone(now.all), slices.Clone(now.users)
	if at < 0 {
		if at = len(now.all); at == 1<<16-1 {
			return errTooMany
		}
		now.all, now.users = append(now.all, nil), append(now.users, 0)
	}
	tp.index = uint16(at + 1)
	tp.Seconds = slices.Clone(tp.Seconds)
	now.all[at] = &tp
	t.policies.Store(&now)
	return nil
}

// DeleteTimeoutPolicy removes a policy that no rule names; its connections go
// on with the default timeouts.
func (t *Table) DeleteTimeoutPolicy(name string) error {
	t.mu.Lock()
	i := t.findPolicy(name)
	now := *t.policies.Load()
	if i < 0 || now.users[i] > 0 {
		t.mu.Unlock()
		if i < 0 {
			return ErrNoPolicy
		}
		return ErrInUse
	}
	gone := now.all[i].index
	now.all = slices.Clone(now.all)
	now.all[i] = &TimeoutPolicy{index: gone} // keeps the place until no connection has it
	t.policies.Store(&now)
	t.mu.Unlock()

	t.eachEntry(func(_ *Worker, e *Entry, _ uint32) bool {
		if t.policy(e) == uint32(gone) {
			t.extOf(e).policy.CompareAndSwap(uint32(gone), 0)
		}
		return true
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	now = *t.policies.Load()
	now.all = slices.Clone(now.all)
	now.all[i] = nil
	t.policies.Store(&now)
	return nil
}

// TimeoutPolicies are all policies, the oldest places first.
func (t *Table) TimeoutPolicies() (all []*TimeoutPolicy) {
	for _, o := range t.policies.Load().all {
		if o != nil && o.Name != "" {
			all = append(all, o)
		}
	}
	return all
}

// findPolicy is the place of a policy; below 0: there is none.
func (t *Table) findPolicy(name string) int {
	return slices.IndexFunc(t.policies.Load().all, func(o *TimeoutPolicy) bool { return o != nil && o.Name == name && name != "" })
}

// TimeoutPolicy finds a policy by name; nil if there is none.
func (t *Table) TimeoutPolicy(name string) *TimeoutPolicy {
	if i := t.findPolicy(name); i >= 0 {
		return t.policies.Load().all[i]
	}
	return nil
}

// HoldTimeoutPolicy is TimeoutPolicy for a rule: the policy stays until release.
func (t *Table) HoldTimeoutPolicy(name string) (tp *TimeoutPolicy, release func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.findPolicy(name)
	if i < 0 {
		return nil, nil
	}
	t.policies.Load().users[i]++
	return t.policies.Load().all[i], func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.policies.Load().users[i]--
	}
}

// Fits: connections of the family and protocol may have the policy.
func (tp *TimeoutPolicy) Fits(family, proto uint8) bool {
	if timeoutStates[proto] == nil {
		proto = GenericTimeouts
	}
	return tp.Proto == proto && (tp.Family == 0 || tp.Family == family)
}

// policyTimeout is the timeout, in ns, that e's policy has for a row of the
// protocol's table; false: it has none.
func (t *Table) policyTimeout(policy uint32, row int) (int64, bool) {
	tp := t.policies.Load().all[policy-1]
	if tp == nil {
		return 0, false
	}
	if tp.Proto == packet.ProtoTCP || tp.Proto == packet.ProtoSCTP {
		row-- // the states without a connection
	}
	if row < 0 || row >= len(tp.Seconds) {
		return 0, false
	}
	return int64(tp.Seconds[row]) * second, true
}
