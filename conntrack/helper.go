package conntrack

import "sluice/packet"

// Helper watches a protocol's control connection. Name is what --helper takes.
// A helper is attached by a CT rule; none is attached by port alone.
type Helper struct {
	Name    string
	Proto   uint8
	Port    uint16         // its usual port
	Classes []ExpectPolicy // limits by expectation class

	help   func(c *helpCall) bool                  // false: drop; nil: it only has a name
	gone   func(w *Worker, e *Entry, x *extension) // a connection that has announced something goes
	index  uint8
	family uint8 // 0: both
}

// ExpectPolicy bounds one class of a helper's expectations.
type ExpectPolicy struct {
	Name    string
	Max     int    // at a time for one connection; 0: no limit
	Timeout uint32 // seconds
}

// helpCall is what a helper gets to see of a packet.
type helpCall struct {
	w          *Worker
	p          *packet.Packet
	e          *Entry
	idx        uint32
	dir        Dir
	translated bool // an address or port of the connection is changed
}

// NATHelper is the part of helpers that NAT implements.
type NATHelper interface {
	// Expected binds a connection that has just been matched with x as x.Follow
	// says, before its first packet meets the nat table. It runs on the packet's worker.
	Expected(w *Worker, p *packet.Packet, e *Entry, x *Expectation)
}

func builtinHelpers() *[]*Helper {
	one := func(max int, seconds uint32) []ExpectPolicy { return []ExpectPolicy{{"", max, seconds}} }
	const v4 = packet.IPv4
	all := []*Helper{
		{Name: "ftp", Proto: packet.ProtoTCP, Port: 21, Classes: one(1, 300), help: helpFTP},
		{Name: "tftp", Proto: packet.ProtoUDP, Port: 69, Classes: one(1, 300), help: helpTFTP},
		{Name: "amanda", Proto: packet.ProtoUDP, Port: 10080, Classes: one(4, 180), help: helpAmanda},
		{Name: "irc", Proto: packet.ProtoTCP, Port: 6667, family: v4, Classes: one(8, 300), help: helpIRC},
		{Name: "pptp", Proto: packet.ProtoTCP, Port: 1723, family: v4, Classes: one(2, 300), help: helpPPTP, gone: callsGone},
		{Name: "sip", Proto: packet.ProtoUDP, Port: 5060, Classes: sipClasses, help: helpSIPUDP},
		{Name: "sip", Proto: packet.ProtoTCP, Port: 5060, Classes: sipClasses, help: helpSIPTCP},
		{Name: "netbios-ns", Proto: packet.ProtoUDP, Port: 137, family: v4, Classes: one(1, 3), help: helpNetBIOS},
		{Name: "snmp", Proto: packet.ProtoUDP, Port: 161, family: v4, Classes: one(1, 30), help: helpSNMP},
		{Name: "snmp_trap", Proto: packet.ProtoUDP, Port: 162, family: v4, Classes: one(0, 180), help: helpSNMPTrap},
		// Rules may name Linux's other helpers; connections carry the name, and
		// nothing is expected of them.
		{Name: "Q.931", Proto: packet.ProtoTCP, Port: 1720},
		{Name: "RAS", Proto: packet.ProtoUDP, Port: 1719},
		{Name: "sane", Proto: packet.ProtoTCP, Port: 6566},
	}
	for i, h := range all {
		h.index = uint8(i + 1)
	}
	return &all
}

// Helper finds a helper by name; nil if there is none.
func (t *Table) Helper(name string) *Helper {
	for _, h := range *t.helpers.Load() {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// HelperFor finds a helper by name for connections of a family and protocol; nil if there is none.
func (t *Table) HelperFor(name string, family, proto uint8) *Helper {
	for _, h := range *t.helpers.Load() {
		if h.Name == name && h.fits(family, proto) {
			return h
		}
	}
	return nil
}

func (t *Table) helperOf(i uint8) *Helper {
	if i == 0 {
		return nil
	}
	return (*t.helpers.Load())[i-1]
}

// HelperOf is the helper that watches e; nil if none does.
func (t *Table) HelperOf(e *Entry) *Helper { return t.helperOf(e.helper) }

// MasterHelper is the helper of the connection that expected e; nil if e was
// not expected. This is what -m helper looks at.
func (t *Table) MasterHelper(e *Entry) *Helper { return t.helperOf(e.mhelper) }

func (h *Helper) fits(family, proto uint8) bool {
	return proto == h.Proto && (h.family == 0 || h.family == family)
}

func (w *Worker) setHelper(e *Entry, h *Helper) {
	if w.t.ensureExt(e) != nil {
		e.helper = h.index
	}
}

func (t *Table) nat() NATHelper {
	if n := t.natHelp.Load(); n != nil {
		return *n
	}
	return nil
}

// Help is the stage before Confirm at INPUT and POSTROUTING: the connection's
// helper reads the packet. false: drop, p.Reason is set.
func (w *Worker) Help(p *packet.Packet) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	if e.helper != 0 && p.Proto == e.orig.Proto { // an ICMP error about the connection is not its own
		if h := w.t.helperOf(e.helper); h != nil && h.help != nil {
			c := helpCall{w: w, p: p, e: e, idx: p.Ct, dir: PacketDir(p), translated: e.Status()&NATMask != 0}
			if !h.help(&c) {
				p.Reason = ReasonHelper
				return false
			}
		}
	}
	return true
}

// established: both sides have spoken.
func (c *helpCall) established() bool {
	return c.p.CtInfo == packet.CtEstablished || c.p.CtInfo == packet.CtEstablishedReply
}

// expect registers x for the connection at hand.
func (c *helpCall) expect(x *Expectation) bool { return c.w.Expect(c.e, c.idx, x) == ExpectOK }

// refresh gives the connection this long from now, whatever its protocol says.
func (c *helpCall) refresh(seconds int64) {
	switch st := c.e.Status(); {
	case st&FixedTimeout != 0:
	case st&Confirmed == 0:
		c.e.expiry.Store(seconds * second)
	default:
		c.e.expiry.Store(c.w.now + seconds*second)
	}
}

// expectation is a new one from src (zero: from anywhere), of any port, to an
// address and port in the master's zone.
func (c *helpCall) expectation(proto uint8, src *[16]byte, dst [16]byte, port uint16) *Expectation {
	o := &c.e.orig
	x := &Expectation{Tuple: Tuple{Dst: dst, DstPort: port, Zone: c.e.Tuple(c.dir.Other()).Zone, Proto: proto, Family: o.Family}}
	if src != nil {
		x.Tuple.Src, x.Mask.Src = *src, packet.FullMask(o.Family)
	}
	return x
}

// helpTFTP: the answer to a request comes from another port.
func helpTFTP(c *helpCall) bool {
	b := c.p.Transport()
	if len(b) < 10 {
		return true
	}
	if op := be.Uint16(b[8:]); op != 1 && op != 2 { // RRQ, WRQ (RFC 1350)
		return true
	}
	x := &Expectation{Tuple: c.e.reply, Mask: TupleMask{Src: packet.FullMask(c.e.reply.Family)}}
	x.Tuple.SrcPort = 0
	if c.translated {
		// The server answers the port that the client's request was given.
		x.Follow, x.NATDir, x.SavedPort = FollowMaster, Original, c.e.orig.SrcPort
	}
	return c.expect(x)
}
