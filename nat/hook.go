package nat

import (
	"sluice/conntrack"
	"sluice/packet"
)

// Verdicts that Hook returns, with the values of package hooks.
const (
	verdictDrop   = 0
	verdictAccept = 1
)

// Past, returned by a table, ends the stage at once: the packet goes on, but is
// given no binding here and is not rewritten. So it is in Linux with a packet
// that went past the table by NFQUEUE's --queue-bypass.
const Past = 255

// Hook is the nat stage of a hook point (PREROUTING, INPUT, OUTPUT or
// POSTROUTING). table walks the nat table for p and is called for the first packet of a
// connection alone; nil stands for an empty table. V is hooks.Verdict: a
// verdict of table other than accept is returned as it is. Where the
// destination changed at PREROUTING or OUTPUT, the caller routes p again.
func Hook[V ~uint8](n *NAT, w *conntrack.Worker, p *packet.Packet, hook uint8, table func(*packet.Packet) V) V {
	e := w.Entry(p)
	if e == nil {
		return verdictAccept
	}
	m := ManipOf(hook)
	switch p.CtInfo {
	case packet.CtNew, packet.CtRelated, packet.CtRelatedReply:
		if isICMPError(p) {
			break
		}
		if n.Initialized(e, m) {
			if n.oifChanged(e, p, hook) {
				n.dropChanged(e, p)
				return verdictDrop
			}
			break
		}
		if table != nil {
			switch v := table(p); v {
			case Past:
				return verdictAccept
			case verdictAccept:
			default:
				return v
			}
		}
		if !n.Initialized(e, m) && !n.SetupNull(w, p, m) {
			return verdictDrop
		}
	case packet.CtEstablished, packet.CtEstablishedReply:
		if n.oifChanged(e, p, hook) {
			n.dropChanged(e, p)
			return verdictDrop
		}
	default:
		return verdictAccept
	}
	if !n.rewrite(p, e, m) {
		return verdictDrop
	}
	return verdictAccept
}

// oifChanged reports whether a masqueraded connection now leaves by another
// interface than the one whose address it has.
func (n *NAT) oifChanged(e *conntrack.Entry, p *packet.Packet, hook uint8) bool {
	i := e.MasqIface()
	return i != 0 && hook == hookPostrouting && !p.CtInfo.Reply() && (p.Out == nil || p.Out.Index != i)
}

// dropChanged ends a masqueraded connection that would leave with a wrong
// address; the sender's next packet makes a new one.
func (n *NAT) dropChanged(e *conntrack.Entry, p *packet.Packet) {
	n.table.Kill(e.Tuple(conntrack.Original))
	p.Reason = ReasonOifChanged
}
