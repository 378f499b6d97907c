package conntrack

import "sluice/packet"

// Helper watches a protocol's control connection. Name is what --helper takes.
// A helper is attached by a CT rule; none is attached by port alone.
type Helper struct {
	Name    string
	Proto   uint8
	Port    uint16         // its usual port
	Classes []ExpectPolicy // limits by expectation class

	help   func(c *helpCall) bool // false: drop; nil: it only has a name
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
	w   *Worker
	p   *packet.Packet
	e   *Entry
	idx uint32
	dir Dir
	nat NATHelper // nil unless the connection is translated
}

// FTPForm is the notation of an FTP address.
type FTPForm uint8

const (
	FTPPort FTPForm = iota // PORT h1,h2,h3,h4,p1,p2
	FTPPasv                // 227 … h1,h2,h3,h4,p1,p2
	FTPEprt                // EPRT |1|addr|port|
	FTPEpsv                // 229 … |||port|
)

// NATHelper is the part of helpers that NAT implements. Its methods run on the
// packet's worker; false means that the packet must be dropped.
type NATHelper interface {
	// Expected binds a connection that has just been matched with x, before its
	// first packet meets the nat table.
	Expected(w *Worker, p *packet.Packet, e *Entry, x *Expectation)
	// FTP chooses a port for x, registers it with w.Expect and rewrites what
	// p's TCP payload announces in [off, off+n); when that changes its length,
	// it calls w.ShiftSeq.
	FTP(w *Worker, p *packet.Packet, e *Entry, dir Dir, form FTPForm, off, n int, x *Expectation) bool
	// TFTP registers x for a translated request.
	TFTP(w *Worker, p *packet.Packet, e *Entry, x *Expectation) bool
}

func builtinHelpers() *[]*Helper {
	all := []*Helper{
		{Name: "ftp", Proto: packet.ProtoTCP, Port: 21, Classes: []ExpectPolicy{{"", 1, 300}}, help: helpFTP},
		{Name: "tftp", Proto: packet.ProtoUDP, Port: 69, Classes: []ExpectPolicy{{"", 1, 300}}, help: helpTFTP},
	}
	// Rules may name Linux's other helpers; connections carry the name, and
	// nothing is expected of them.
	for _, h := range []Helper{
		{Name: "amanda", Proto: packet.ProtoUDP, Port: 10080}, {Name: "irc", Proto: packet.ProtoTCP, Port: 6667, family: packet.IPv4},
		{Name: "netbios-ns", Proto: packet.ProtoUDP, Port: 137, family: packet.IPv4}, {Name: "pptp", Proto: packet.ProtoTCP, Port: 1723, family: packet.IPv4},
		{Name: "Q.931", Proto: packet.ProtoTCP, Port: 1720}, {Name: "RAS", Proto: packet.ProtoUDP, Port: 1719},
		{Name: "sane", Proto: packet.ProtoTCP, Port: 6566}, {Name: "sip", Proto: packet.ProtoUDP, Port: 5060}, {Name: "sip", Proto: packet.ProtoTCP, Port: 5060},
		{Name: "snmp", Proto: packet.ProtoUDP, Port: 161, family: packet.IPv4},
	} {
		all = append(all, &h)
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
// helper reads the packet, and sequence numbers that a helper moved are put
// right. false: drop, p.Reason is set.
func (w *Worker) Help(p *packet.Packet) bool {
	e := w.Entry(p)
	if e == nil {
		return true
	}
	if e.helper != 0 && p.CtInfo != packet.CtRelatedReply && p.CtInfo != packet.CtRelated {
		if h := w.t.helperOf(e.helper); h != nil && h.help != nil {
			c := helpCall{w: w, p: p, e: e, idx: p.Ct, dir: PacketDir(p)}
			if e.Status()&NATMask != 0 {
				c.nat = w.t.nat()
			}
			if !h.help(&c) {
				p.Reason = ReasonHelper
				return false
			}
		}
	}
	if e.Status()&SeqAdjust != 0 && p.Proto == packet.ProtoTCP && p.Flags&packet.Loopback == 0 {
		w.adjustSeq(p, e)
	}
	return true
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
	x := &Expectation{Tuple: c.e.reply, Mask: TupleMask{Src: fullMask(c.e.reply.Family)}}
	x.Tuple.SrcPort = 0
	if c.nat != nil {
		return c.nat.TFTP(c.w, c.p, c.e, x)
	}
	return c.w.Expect(c.e, c.idx, x) == ExpectOK
}

func fullMask(family uint8) (m [16]byte) {
	n := 16
	if family == packet.IPv4 {
		n = 4
	}
	for i := range n {
		m[i] = 0xff
	}
	return m
}
