package nat

import (
	"bytes"
	"testing"

	"sluice/conntrack"
	"sluice/internal/sysctl"
	"sluice/packet"
)

// box is the least router that NAT can be seen in: conntrack, the nat hooks and
// two interfaces, with the addresses that kernel has.
type box struct {
	t       testing.TB
	now     int64
	table   *conntrack.Table
	nat     *NAT
	sys     *sysctl.Set
	w       *conntrack.Worker
	c, s    *packet.Iface
	rules   [5]func(*packet.Packet) bool // the nat table, by hook
	raw     func(*packet.Packet)         // the raw table
	dropped packet.Reason
	p       *packet.Packet
}

func newBox(t testing.TB) *box {
	b := &box{t: t, now: 1e9, sys: sysctl.NewSet(), p: packet.New()}
	b.table = conntrack.New(b.sys, conntrack.Options{Clock: func() int64 { return b.now }})
	b.nat = New(b.table, b.sys)
	b.w = b.table.NewWorker()
	b.c, b.s = packet.NewIface(1, "c0", 1500), packet.NewIface(2, "s0", 1500)
	return b
}

// rule makes the nat table of a hook: every new connection goes to r.
func (b *box) rule(hook uint8, r Range, match func(*packet.Packet) bool) {
	m := ManipOf(hook)
	b.rules[hook] = func(p *packet.Packet) bool {
		if match != nil && !match(p) {
			return true
		}
		return b.nat.Setup(b.w, p, &r, m)
	}
}

func (b *box) hook(p *packet.Packet, hook uint8) bool {
	return Hook(b.nat, b.w, p, hook, func(p *packet.Packet) uint8 {
		if f := b.rules[hook]; f != nil && !f(p) {
			return 0
		}
		return 1
	}) == 1
}

// local says whether dst is one of the router's own addresses.
func local(dst [16]byte) bool {
	for _, a := range []string{"10.0.1.1", "10.0.2.1", "fd00:1::1", "fd00:2::1"} {
		if dst == ip(a) {
			return true
		}
	}
	return false
}

// pass sends a packet through: in by one interface, out by what the destination
// says. Nil: dropped, for b.dropped.
func (b *box) pass(in *packet.Iface, frame []byte) []byte {
	b.t.Helper()
	b.w.Begin(b.now)
	defer b.w.End()
	p := b.p
	p.SetBytes(frame)
	p.In, p.Now = in, b.now
	if p.Reason = p.Parse(); p.Reason != 0 {
		b.dropped = p.Reason
		return nil
	}
	if b.raw != nil {
		b.raw(p)
	}
	ok := b.w.Track(p, hookPrerouting) && b.hook(p, hookPrerouting)
	if ok {
		dst := p.Dst()
		switch {
		case local(dst):
			ok = b.hook(p, hookInput)
		case p.TTL() <= 1:
			return b.expired(p)
		default:
			p.SetTTL(p.TTL() - 1)
			p.Out = b.s
			if bytes.HasPrefix(dst[:], []byte{10, 0, 1}) || bytes.HasPrefix(dst[:], []byte{0xfd, 0, 0, 1}) {
				p.Out = b.c
			}
			ok = b.hook(p, hookPostrouting)
		}
		if ok {
			ok = b.w.Help(p)
		}
		if ok {
			ok = b.w.Confirm(p)
		}
	}
	b.dropped = p.Reason
	var out []byte
	if ok {
		out = bytes.Clone(p.Bytes())
	}
	b.w.Release(p)
	return out
}

// expired gives the time exceeded message about p, as it leaves.
func (b *box) expired(p *packet.Packet) []byte {
	e := packet.New()
	typ, src := uint8(packet.ICMPTimeExceeded), ip("10.0.1.1")
	if p.Family == packet.IPv6 {
		typ, src = packet.ICMPv6TimeExceeded, ip("fd00:1::1")
	}
	if !packet.BuildICMPError(e, p, typ, 0, 0, src) {
		return nil
	}
	b.w.Attach(e, p)
	e.Out = b.c
	p.Out = b.c // where run looks
	ok := b.hook(e, hookOutput) && b.hook(e, hookPostrouting) && b.w.Help(e) && b.w.Confirm(e)
	b.dropped = e.Reason
	b.w.Release(p)
	b.w.Release(e)
	if !ok {
		return nil
	}
	return bytes.Clone(e.Bytes())
}

// send passes a packet that the router itself makes.
func (b *box) send(frame []byte, out *packet.Iface) []byte {
	b.t.Helper()
	b.w.Begin(b.now)
	defer b.w.End()
	p := b.p
	p.SetBytes(frame)
	p.Out, p.Now = out, b.now
	p.Reason = p.Parse()
	p.Flags |= packet.Local
	ok := p.Reason == 0 && b.w.Track(p, hookOutput) && b.hook(p, hookOutput) && b.hook(p, hookPostrouting) && b.w.Help(p) && b.w.Confirm(p)
	b.dropped = p.Reason
	var res []byte
	if ok {
		res = bytes.Clone(p.Bytes())
	}
	b.w.Release(p)
	return res
}

// must is pass for packets that get through.
func (b *box) must(in *packet.Iface, frame []byte) []byte {
	b.t.Helper()
	out := b.pass(in, frame)
	if out == nil {
		b.t.Fatalf("dropped: %s\n%x", b.dropped, frame)
	}
	verify(b.t, out)
	return out
}

// tuple makes a tuple of a port protocol.
func tuple(src string, sport uint16, dst string, dport uint16, proto uint8) conntrack.Tuple {
	t := conntrack.Tuple{Src: ip(src), Dst: ip(dst), SrcPort: sport, DstPort: dport, Proto: proto, Family: packet.IPv4}
	for _, c := range src {
		if c == ':' {
			t.Family = packet.IPv6
		}
	}
	return t
}
