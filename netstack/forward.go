package netstack

import "sluice/packet"

// The questions that a packet asks once, straight at the FIB: each loads the
// present Snapshot. See the Snapshot's methods of the same names.

// Lookup is Snapshot.Lookup.
func (f *FIB) Lookup(q *Query) (Route, bool) { return f.Load().Lookup(q) }

// Input is Snapshot.Input.
func (f *FIB) Input(p *packet.Packet, r *Route) packet.Reason { return f.Load().Input(p, r) }

// Output is Snapshot.Output.
func (f *FIB) Output(p *packet.Packet, r *Route) { f.Load().Output(p, r) }

// Back is Snapshot.Back.
func (f *FIB) Back(p *packet.Packet, r *Route) bool { return f.Load().Back(p, r) }

// ReversePath is Snapshot.ReversePath.
func (f *FIB) ReversePath(p *packet.Packet, loose, validMark, acceptLocal bool) bool {
	return f.Load().ReversePath(p, loose, validMark, acceptLocal)
}

// ValidateSource is Snapshot.ValidateSource.
func (f *FIB) ValidateSource(p *packet.Packet, in *packet.Iface) packet.Reason {
	return f.Load().ValidateSource(p, in)
}

// Forwarding is Snapshot.Forwarding.
func (f *FIB) Forwarding(in *packet.Iface, family uint8) bool { return f.Load().Forwarding(in, family) }

// SendRedirects is Snapshot.SendRedirects.
func (f *FIB) SendRedirects(p *packet.Packet) bool { return f.Load().SendRedirects(p) }

// MulticastMember is Snapshot.MulticastMember.
func (f *FIB) MulticastMember(p *packet.Packet) bool { return f.Load().MulticastMember(p) }

// AddrType is Snapshot.AddrType.
func (f *FIB) AddrType(family uint8, a [16]byte, dev *packet.Iface) RouteType {
	return f.Load().AddrType(family, a, dev)
}

// IsLocal is Snapshot.IsLocal.
func (f *FIB) IsLocal(family uint8, a [16]byte) bool { return f.Load().IsLocal(family, a) }

// SourceFor is Snapshot.SourceFor.
func (f *FIB) SourceFor(family uint8, dev *packet.Iface, nexthop [16]byte) ([16]byte, bool) {
	return f.Load().SourceFor(family, dev, nexthop)
}

// Conf is Snapshot.Conf.
func (f *FIB) Conf(i *packet.Iface) *Conf { return f.Load().Conf(i) }
