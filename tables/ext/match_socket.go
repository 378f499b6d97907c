package ext

import (
	"encoding/binary"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var socketOptions = []string{"transparent", "nowildcard", "restore-skmark"}

func socketText(a *tables.Args) (s string) {
	for _, o := range socketOptions {
		if a.Has(o) {
			s += " --" + o
		}
	}
	return s
}

var matchSocket = &tables.Match{
	Name:     "socket",
	Families: tables.V4V6,
	Doc:      "Matches packets that an open socket of the router would get: a connection's, or a listener's that is bound to an address. For ICMP errors, the packet that they quote counts.",
	Options: []tables.Option{
		{Name: "transparent", Type: tables.Flag, Doc: "only transparent sockets count"},
		{Name: "nowildcard", Type: tables.Flag, Doc: "sockets bound to no address count as well"},
		{Name: "restore-skmark", Type: tables.Flag, Doc: "give the packet the mark of the socket that it matched"},
	},
	Hooks: hooks.At(hooks.Prerouting, hooks.Input),
	Save:  socketText,
	List:  func(a *tables.Args, _ bool) string { return " socket" + socketText(a) },
	// Sockets come and go between two packets of a flow: no Depends.
	Compile: func(a *tables.Args, env *tables.Env) (tables.Pred, error) {
		transparent, anyAddr, restore := a.Has("transparent"), a.Has("nowildcard"), a.Has("restore-skmark")
		return func(c *tables.Context, p *packet.Packet) bool {
			if env == nil || env.Sockets == nil {
				return false
			}
			s, ok := env.Sockets.Assigned(p.Socket)
			if !ok {
				var k tables.SocketKey
				if !socketKey(c, p, &k) {
					return false
				}
				s, ok = env.Sockets.Find(&k)
			}
			if !ok || s.Wildcard && !anyAddr || !s.Transparent && transparent {
				return false
			}
			if restore && s.Marked {
				p.Mark = s.Mark
			}
			return true
		}, nil
	},
}

// socketKey finds the ends that a socket would have: the packet's own, those of
// the packet that an ICMP error quotes, and behind source NAT what they were
// before it.
func socketKey(c *tables.Context, p *packet.Packet, k *tables.SocketKey) bool {
	if p.Flags&packet.HasL4 == 0 {
		return false
	}
	k.Family = p.Family
	t := p.Transport()
	info := packet.CtEstablishedReply
	switch p.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		k.Proto, k.Remote, k.Local = p.Proto, p.Src(), p.Dst()
		k.RemotePort, k.LocalPort = p.SrcPort(), p.DstPort()
	case packet.ProtoICMP:
		if p.Family != packet.IPv4 || !quotes4(t[0]) || !quotedEnds4(t[8:], k) {
			return false
		}
		info = packet.CtRelatedReply
	case packet.ProtoICMPv6:
		// Linux takes the protocol of the quoted packet for this one's when it
		// looks for NAT, so an error's NAT is never undone.
		if p.Family != packet.IPv6 || t[0] >= 128 || !quotedEnds6(t[8:], k) {
			return false
		}
	default:
		return false
	}
	if e := c.Entry(p); e != nil && p.CtInfo == info && e.Has(conntrack.SrcNATDone) {
		o := e.Tuple(conntrack.Original)
		k.Local, k.LocalPort = o.Src, o.SrcPort
	}
	return true
}

// quotes4: ICMP types that quote a packet.
func quotes4(typ uint8) bool {
	switch typ {
	case 3, 4, 5, 11, 12:
		return true
	}
	return false
}

// quotedEnds4 reads a quoted packet: its source is the local end.
func quotedEnds4(b []byte, k *tables.SocketKey) bool {
	if len(b) < 20 {
		return false
	}
	at := int(b[0]&15) * 4
	if k.Proto = b[9]; k.Proto != packet.ProtoTCP && k.Proto != packet.ProtoUDP || len(b) < at+4 {
		return false
	}
	copy(k.Local[:4], b[12:16])
	copy(k.Remote[:4], b[16:20])
	k.LocalPort, k.RemotePort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	return true
}

func quotedEnds6(b []byte, k *tables.SocketKey) bool {
	if len(b) < 40 {
		return false
	}
	k.Proto = b[6]
	at := 40
	for packet.Extension(k.Proto) {
		if len(b) < at+8 || k.Proto == packet.ProtoNone {
			return false
		}
		n := int(b[at+1])*8 + 8
		switch k.Proto {
		case 44: // a fragment
			if n = 8; binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return false
			}
		case packet.ProtoAH:
			n = int(b[at+1])*4 + 8
		}
		k.Proto = b[at]
		at += n
	}
	if k.Proto != packet.ProtoTCP && k.Proto != packet.ProtoUDP || len(b) < at+4 {
		return false
	}
	copy(k.Local[:], b[8:24])
	copy(k.Remote[:], b[24:40])
	k.LocalPort, k.RemotePort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	return true
}
