package nat

import (
	"bytes"

	"sluice/conntrack"
	"sluice/packet"
)

// Manip says which end of a connection a binding changes.
type Manip uint8

const (
	Src Manip = iota // SNAT, MASQUERADE: INPUT and POSTROUTING
	Dst              // DNAT, REDIRECT: PREROUTING and OUTPUT
)

func (m Manip) String() string {
	if m == Src {
		return "src"
	}
	return "dst"
}

// Hook numbers, netfilter's (package hooks has them under the same values).
const (
	hookPrerouting uint8 = iota
	hookInput
	hookForward
	hookOutput
	hookPostrouting
)

// ManipOf is what the nat table changes at a hook: the source at INPUT and
// POSTROUTING, the destination at PREROUTING and OUTPUT.
func ManipOf(hook uint8) Manip {
	if hook == hookInput || hook == hookPostrouting {
		return Src
	}
	return Dst
}

// RangeFlags qualify a Range; the values are the kernel's NF_NAT_RANGE_*.
type RangeFlags uint8

const (
	MapIPs           RangeFlags = 1 << iota // Min and Max are given
	ProtoSpecified                          // MinPort and MaxPort are given
	ProtoRandom                             // --random
	Persistent                              // --persistent: the address depends on the client alone
	ProtoRandomFully                        // --random-fully
	ProtoOffset                             // shift ports by their distance from BasePort
	Netmap                                  // keep the host part, take the network part of Min (NETMAP)
)

const randomAll = ProtoRandom | ProtoRandomFully

// Range is where a binding may lie: addresses Min to Max and ports MinPort to
// MaxPort, all inclusive. Addresses are in network order, IPv4 in the first four
// bytes with the rest zero; ports are in host order. For ICMP the ports are
// identifiers, for GRE keys. With Netmap, Min is the first and Max the last
// address of the network.
type Range struct {
	Min, Max         [16]byte
	MinPort, MaxPort uint16
	BasePort         uint16 // with ProtoOffset
	Flags            RangeFlags
}

// forward is the tuple that packets of the original direction have once they
// are translated: the reply tuple the other way round. The message type that an
// ICMP tuple carries is left out.
func forward(reply *conntrack.Tuple) conntrack.Tuple {
	t := *reply
	t.Src, t.Dst = reply.Dst, reply.Src
	if isICMP(reply.Proto) {
		t.DstPort = 0
	} else {
		t.SrcPort, t.DstPort = reply.DstPort, reply.SrcPort
	}
	return t
}

// backward is the reply tuple that belongs to fwd; was is the connection's present one.
func backward(fwd, was *conntrack.Tuple) conntrack.Tuple {
	t := *was
	t.Src, t.Dst = fwd.Dst, fwd.Src
	if isICMP(was.Proto) {
		t.SrcPort = fwd.SrcPort
	} else {
		t.SrcPort, t.DstPort = fwd.DstPort, fwd.SrcPort
	}
	return t
}

func isICMP(proto uint8) bool { return proto == packet.ProtoICMP || proto == packet.ProtoICMPv6 }

// hasPorts says whether proto's tuples have ports. Linux 6.18 does not track
// those of DCCP, so its packets get other addresses only.
func hasPorts(proto uint8) bool {
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP:
		return true
	}
	return false
}

// addrIn reports min <= a <= max.
func addrIn(a, min, max *[16]byte) bool {
	return bytes.Compare(a[:], min[:]) >= 0 && bytes.Compare(a[:], max[:]) <= 0
}

// protoIn reports whether the part of t that m changes is within the range's
// ports. The identifier of ICMP is the same in both directions; protocols
// without such a part are always in range.
func (r *Range) protoIn(t *conntrack.Tuple, m Manip) bool {
	port := t.SrcPort
	switch {
	case isICMP(t.Proto):
	case hasPorts(t.Proto) || t.Proto == packet.ProtoGRE:
		if m == Dst {
			port = t.DstPort
		}
	default:
		return true
	}
	return port >= r.MinPort && port <= r.MaxPort
}

// holdsSrc reports whether t's source meets r.
func (r *Range) holdsSrc(t *conntrack.Tuple) bool {
	if r.Flags&MapIPs != 0 && !addrIn(&t.Src, &r.Min, &r.Max) {
		return false
	}
	return r.Flags&ProtoSpecified == 0 || r.protoIn(t, Src)
}

// netmapped resolves Netmap for an address: the network part of Min, the host part of a.
func (r *Range) netmapped(a [16]byte) Range {
	out := *r
	for i := range a {
		host := r.Min[i] ^ r.Max[i]
		out.Min[i] = r.Min[i]&^host | a[i]&host
	}
	out.Max = out.Min
	out.Flags = r.Flags&^Netmap | MapIPs
	return out
}
