// Package play drives a router.Sim with packets as people write them: alone, in
// conversations, in hex and from capture files; and tells traces in words.
package play

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/packettext"
	"sluice/router"
)

// Syntax is what Play reads, for help texts.
const Syntax = `A packet is written [+TIME] [INTERFACE:] PROTO SOURCE > DESTINATION WORDS:

  tcp 10.0.1.2:4000 > 203.0.113.9:80 S
  lan0: udp [fd00:1::2]:5000 > [2001:db8::9]:53 data="hello"
  wan0: icmp 198.51.100.9 > 198.51.100.1 type=8 id=7 seq=1 len=56
  icmp 10.0.1.9 > 10.0.1.2 type=3/4 rest=1400 about udp 10.0.1.2:5000 > 9.9.9.9:53
  hex:4500001c...

PROTO is tcp, udp, udplite, sctp, dccp, icmp, icmp6, gre, esp or a number. WORDS
are TCP flags as letters of FSRPAUEC, len=N or data="text" or hex=0a0b (payload),
seq= ack= win= urg= mss=, id= seq= type=TYPE/CODE rest= (ICMP), ttl= tos= ipid=
df, frag=OFFSET with + where more follow, opts=HEX tcpopts=HEX, ext=hop,dest,route,ah
(IPv6), flow=, nocsum badcsum badip, and about DESCRIPTION at the end. A port that
is left out is 0.

Without INTERFACE a packet comes in where its source is routed to, and one from an
address of the router's own is the router's. +TIME moves the clock first (+30s).

A conversation goes on with
  reply WORDS        the receiver's answer to the packet before, as it arrived there
  more WORDS         another packet of the same sender
  error TYPE/CODE    an ICMP error of the receiver's about the packet before
Addresses, ports and TCP's numbers follow from what was sent; WORDS may change them.`

// Player plays packets into a Sim, one after the other.
type Player struct {
	Sim *router.Sim
	In  string // interface of packets that name none; "": by their source

	last     []byte // as the last one was sent …
	lastIn   string
	arrived  []byte // … and as it left the router
	arriveAt string
	acks     map[flow]uint32 // what the sender of a flow has received so far
}

// flow is one direction of a TCP connection as its sender sees it.
type flow struct{ src, dst netip.AddrPort }

// New makes a Player.
func New(s *router.Sim) *Player { return &Player{Sim: s, acks: map[flow]uint32{}} }

// Error is an item that cannot be played.
type Error struct {
	Item string
	Err  error
}

func (e *Error) Error() string {
	var d *packettext.Error
	if errors.As(e.Err, &d) {
		return d.Error()
	}
	return fmt.Sprintf("%q: %v", e.Item, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Play brings one item in and gives the traces of what comes of it, the item's own first.
func (p *Player) Play(item string) ([]*router.Trace, error) {
	ts, err := p.play(item)
	if err != nil {
		return nil, &Error{item, err}
	}
	return ts, nil
}

func (p *Player) play(item string) ([]*router.Trace, error) {
	text := strings.TrimSpace(item)
	in := p.In
	if t, ok := strings.CutPrefix(text, "+"); ok {
		at, rest, _ := strings.Cut(t, " ")
		d, err := time.ParseDuration(at)
		if err != nil || d < 0 || d > 10*365*24*time.Hour {
			return nil, fmt.Errorf("%q is no time: want +30s, +5m or +24h before the packet; for example: +30s %s", "+"+at, packettext.Example)
		}
		p.Sim.Advance(d)
		if text = strings.TrimSpace(rest); text == "" {
			return nil, fmt.Errorf("no packet after the time; for example: +%s %s", at, packettext.Example)
		}
	}
	if name, rest, ok := strings.Cut(text, ": "); ok && !strings.ContainsAny(name, " \"") {
		in, text = name, strings.TrimSpace(rest)
	}
	word, rest, _ := strings.Cut(text, " ")
	var frame []byte
	var err error
	switch {
	case word == "reply":
		frame, in, err = p.reply(rest, in)
	case word == "more":
		frame, in, err = p.more(rest)
	case word == "error":
		frame, in, err = p.icmpError(rest, in)
	case strings.HasPrefix(text, "hex:"):
		frame, err = hex.DecodeString(strings.Join(strings.Fields(text[4:]), ""))
		if err != nil || len(frame) == 0 {
			err = fmt.Errorf("want hex: and the packet's octets, two digits each, from the IP header on; for example: hex:45000014…")
		}
	default:
		frame, err = packettext.Frame(text)
	}
	if err != nil {
		return nil, err
	}
	return p.Frame(in, frame)
}

// Frame brings a frame in through an interface; "": by its source.
func (p *Player) Frame(in string, frame []byte) ([]*router.Trace, error) {
	if in == "" || in == "lo" {
		var own bool
		var err error
		if in, own, err = p.whereFrom(frame); err != nil {
			return nil, err
		}
		if own {
			ts := p.Sim.SendOwn(frame, 0, 0)
			p.note("", frame, ts)
			return ts, nil
		}
	}
	ts, err := p.Sim.Send(in, frame)
	if err != nil {
		return nil, fmt.Errorf("%w: this configuration has %s", err, strings.Join(p.Sim.Interfaces(), ", "))
	}
	p.note(in, frame, ts)
	return ts, nil
}

// whereFrom finds the interface that leads to a frame's source.
func (p *Player) whereFrom(frame []byte) (in string, own bool, err error) {
	names := p.Sim.Interfaces()
	q := packet.New()
	if len(frame) > packet.MaxLen {
		return "", false, fmt.Errorf("%d bytes: a packet has at most %d", len(frame), packet.MaxLen)
	}
	q.SetBytes(frame)
	reason := q.Parse()
	if reason == 0 {
		fib := p.Sim.Router().FIB().Load()
		rt, ok := fib.Lookup(&netstack.Query{Family: q.Family, Dst: q.Src()})
		if ok && rt.Type == netstack.RouteLocal {
			return "", true, nil
		}
		if ok && rt.Dev != nil && slices.Contains(names, rt.Dev.Name) {
			return rt.Dev.Name, false, nil
		}
	}
	if len(names) == 1 {
		return names[0], false, nil
	}
	if len(names) == 0 {
		return "", false, errors.New("the configuration has no interface that a packet could come in by")
	}
	if reason != 0 {
		return "", false, fmt.Errorf("no IP packet that has a source (%s): say where it comes in, as in %s: hex:45…", reason, names[0])
	}
	return "", false, fmt.Errorf("no route leads to the packet's source: say where it comes in, as in %s: %s", names[0], packettext.Example)
}

// note keeps what the conversation goes on from.
func (p *Player) note(in string, frame []byte, ts []*router.Trace) {
	p.last, p.lastIn, p.arrived, p.arriveAt = frame, in, nil, ""
	for i, t := range ts {
		for k := range t.Out {
			o := &t.Out[k]
			if i == 0 {
				p.arrived, p.arriveAt = o.Bytes(), o.Iface
			}
			if v, ok := view(o.Bytes()); ok && v.tcp {
				p.acks[flow{v.dst, v.src}] = v.next()
			}
		}
	}
}

// seen is what a conversation needs to know of a packet.
type seen struct {
	proto    string
	src, dst netip.AddrPort
	ports    bool
	tcp      bool
	icmp     bool
	typ      uint8
	id, n    uint16
	seq, ack uint32
	flags    uint8
	payload  int
}

func (v *seen) next() uint32 {
	return v.seq + uint32(v.payload) + uint32(v.flags&1) + uint32(v.flags>>1&1)
}

func view(b []byte) (v seen, ok bool) {
	q := packet.New()
	q.SetBytes(b)
	if q.Parse() != 0 {
		return v, false
	}
	v.src, v.dst = netip.AddrPortFrom(q.SrcAddr(), q.SrcPort()), netip.AddrPortFrom(q.DstAddr(), q.DstPort())
	v.proto, _, _ = strings.Cut(packettext.Describe(b), " ")
	v.ports = q.Is(packet.HasPorts)
	v.payload = len(q.Payload())
	if q.Proto == packet.ProtoTCP && q.Is(packet.HasL4) {
		v.tcp, v.seq, v.ack, v.flags = true, q.TCPSeq(), q.TCPAck(), uint8(q.TCPFlags())
	}
	if typ, _, is := q.ICMPType(); is {
		t := q.Transport()
		v.icmp, v.typ, v.id, v.n = true, typ, binary.BigEndian.Uint16(t[4:]), binary.BigEndian.Uint16(t[6:])
	}
	return v, true
}

func (v *seen) ends(swap bool) string {
	a, b := v.src, v.dst
	if swap {
		a, b = b, a
	}
	if v.ports {
		return a.String() + " > " + b.String()
	}
	return a.Addr().String() + " > " + b.Addr().String()
}

// hasFlags: words set TCP flags of their own.
func hasFlags(words string) bool {
	for _, w := range strings.Fields(words) {
		if strings.Trim(w, "FSRPAUEC") == "" || w == "." {
			return true
		}
	}
	return false
}

func (p *Player) reply(words, in string) ([]byte, string, error) {
	v, ok := view(p.arrived)
	if p.arrived == nil || !ok {
		return nil, "", errors.New("reply: nothing arrived that could be answered: the packet before did not leave the router")
	}
	if in == "" || in == p.In {
		in = p.arriveAt
	}
	desc := v.proto + " " + v.ends(true)
	switch {
	case v.tcp:
		seq := v.ack
		if v.flags&0x10 == 0 {
			seq = 1000
		}
		if a, ok := p.acks[flow{v.src, v.dst}]; ok && v.flags&0x10 == 0 {
			seq = a
		}
		desc += fmt.Sprintf(" seq=%d ack=%d", seq, v.next())
		if !hasFlags(words) {
			desc += " A"
			if v.flags&0x12 == 2 {
				desc += " S"
			}
		}
	case v.icmp:
		typ := v.typ
		if typ == 8 && v.proto == "icmp" {
			typ = 0
		} else if typ == 128 {
			typ = 129
		}
		desc += fmt.Sprintf(" type=%d id=%d seq=%d len=%d", typ, v.id, v.n, v.payload)
	}
	frame, err := packettext.Frame(strings.TrimSpace(desc + " " + words))
	return frame, in, err
}

func (p *Player) more(words string) ([]byte, string, error) {
	v, ok := view(p.last)
	if p.last == nil || !ok {
		return nil, "", errors.New("more: there is no packet before whose sender could send another")
	}
	desc := v.proto + " " + v.ends(false)
	switch {
	case v.tcp:
		ack := v.ack
		if a, ok := p.acks[flow{v.src, v.dst}]; ok {
			ack = a
		}
		desc += fmt.Sprintf(" seq=%d ack=%d", v.next(), ack)
		if !hasFlags(words) {
			desc += " A"
		}
	case v.icmp:
		desc += fmt.Sprintf(" type=%d id=%d seq=%d", v.typ, v.id, v.n+1)
	}
	frame, err := packettext.Frame(strings.TrimSpace(desc + " " + words))
	return frame, p.lastIn, err
}

func (p *Player) icmpError(words, in string) ([]byte, string, error) {
	v, ok := view(p.arrived)
	if p.arrived == nil || !ok {
		return nil, "", errors.New("error: nothing arrived that an error could be about: the packet before did not leave the router")
	}
	if in == "" || in == p.In {
		in = p.arriveAt
	}
	code, rest, _ := strings.Cut(words, " ")
	proto := "icmp"
	if v.src.Addr().Is6() {
		proto = "icmp6"
	}
	desc := fmt.Sprintf("%s %s > %s type=%s %s about %s", proto, v.dst.Addr(), v.src.Addr(), code, rest, strings.TrimSuffix(packettext.Describe(p.arrived), " badcsum"))
	frame, err := packettext.Frame(desc)
	return frame, in, err
}

// Capture plays the packets of a capture file, in through an interface ("": each
// by its source), with the capture's clock.
func (p *Player) Capture(file, in string, each func([]*router.Trace)) error {
	l, err := netstack.OpenPcap(netstack.PcapConfig{Name: "capture", Index: 1, Read: file})
	if err != nil {
		return err
	}
	defer l.Close()
	var last int64
	for n := 1; ; n++ {
		at, err := l.Next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err // it names the file and the packet
		}
		if last != 0 && at > last {
			p.Sim.Advance(time.Duration(at - last))
		}
		last = max(last, at)
		q := packet.New()
		if _, err := l.ReadAt(q); errors.Is(err, netstack.ErrFrame) {
			continue // no IP packet, as an interface would see it
		} else if err != nil {
			return fmt.Errorf("%s: packet %d: %w", file, n, err)
		}
		ts, err := p.Frame(in, append([]byte(nil), q.Bytes()...))
		if err != nil {
			return fmt.Errorf("%s: packet %d: %w", file, n, err)
		}
		each(ts)
	}
}
