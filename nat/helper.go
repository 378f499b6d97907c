package nat

import (
	"sluice/conntrack"
	"sluice/packet"
)

// helpers is the NAT part of conntrack's helpers.
type helpers struct{ n *NAT }

// Expected makes a connection that a helper announced follow its master. That
// settles its manips, so the connection does not meet the nat table. A clash
// shows at Confirm.
func (h helpers) Expected(w *conntrack.Worker, p *packet.Packet, e *conntrack.Entry, x *conntrack.Expectation) {
	master := w.Table().At(x.Master)
	if master.Generation() != x.MasterGen {
		return
	}
	// It comes from whom the master's announcer talks to and goes to the
	// announcer, at the port, or by the call id, that was announced.
	from := master.Tuple(x.NATDir)
	src := &Range{Min: from.Dst, Max: from.Dst, Flags: MapIPs}
	dst := &Range{Min: from.Src, Max: from.Src, Flags: MapIPs}
	saved := func(r *Range) {
		r.Flags |= ProtoSpecified
		r.MinPort, r.MaxPort = x.SavedPort, x.SavedPort
	}
	switch x.Follow {
	case conntrack.FollowMaster:
		saved(dst)
	case conntrack.FollowCall:
		if x.NATDir == conntrack.Reply {
			saved(src)
		} else {
			saved(dst)
		}
	case conntrack.FollowSaved:
		dst.Min, dst.Max = x.SavedAddr, x.SavedAddr
		saved(dst)
		h.n.settle(w, e, p.Ct, dst, Dst)
		if src = mediaSource(w.Table(), master, e, x); src != nil {
			h.n.settle(w, e, p.Ct, src, Src)
		}
		return
	}
	h.n.settle(w, e, p.Ct, src, Src)
	h.n.settle(w, e, p.Ct, dst, Dst)
}

// mediaSource is where a SIP connection is to come from: media from what the
// other stream of the call was announced as, what comes from the master's other
// end from that end's translated address. Nil: it stays.
func mediaSource(t *conntrack.Table, master, e *conntrack.Entry, x *conntrack.Expectation) *Range {
	u := e.Tuple(conntrack.Original)
	if addr, port, ok := t.AnnouncedAs(x, u); ok {
		return &Range{Min: addr, Max: addr, MinPort: port, MaxPort: port, Flags: MapIPs | ProtoSpecified}
	}
	if there := master.Tuple(x.NATDir.Other()); u.Src == there.Src {
		a := master.Tuple(x.NATDir).Dst
		return &Range{Min: a, Max: a, Flags: MapIPs}
	}
	return nil
}
