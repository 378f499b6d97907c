package router

import (
	"sluice/hooks"
	"sluice/netstack"
	"sluice/packet"
	"sluice/tables"
)

// tee makes a copy of p for a gateway (TEE). It is not tracked, passes OUTPUT and
// POSTROUTING, has no socket, and leaves once the packet at hand has ended.
func (w *worker) tee(c *tables.Context, gateway [16]byte, dev string, p *packet.Packet) {
	if w.teeing || len(w.tees) >= outputQueue {
		return // never a copy of a copy
	}
	cp := w.alloc()
	cp.Copy(p)
	cp.CtInfo = packet.CtUntracked
	cp.Flags = cp.Flags&^(packet.Loopback|packet.HasOwner|packet.SystemSocket) | packet.Untracked | packet.Local
	cp.In = nil
	var via *packet.Iface
	if dev != "" {
		for _, i := range w.fib.Ifaces() {
			if i.Name == dev {
				via = i
			}
		}
		if via == nil {
			w.free(cp)
			return
		}
	}
	rt, ok := w.fib.Lookup(&netstack.Query{Family: p.Family, TOS: p.TOS(), Out: via, Dst: gateway})
	if !ok || rt.Dev == nil {
		w.free(cp)
		return
	}
	setRoute(cp, &rt)
	// A loop between two routers has to end, and whoever sent the packet is told
	// if the copy's way is narrower.
	if c.Hook == hooks.Prerouting || c.Hook == hooks.Input {
		cp.SetTTL(cp.TTL() - 1)
	}
	if cp.Family == packet.IPv4 {
		b := cp.Bytes()
		b[6] |= 0x40
		cp.Flags |= packet.DontFragment
		cp.FixHeader()
	}
	w.tees = append(w.tees, cp)
}

// sendTees sends the copies that the packet at hand left behind.
func (w *worker) sendTees() {
	w.teeing = true
	for i := 0; i < len(w.tees); i++ {
		p := w.tees[i]
		p.Now, p.Worker = w.now, uint16(w.id)
		w.outDev = nil
		ok := true
		if done, passed := w.run(hooks.Output, p); done {
			ok = passed
		} else {
			ok = w.outputDone(p)
		}
		if !ok {
			w.countDrop(p)
		}
		w.ct.Release(p)
		w.free(p)
	}
	w.tees = w.tees[:0]
	w.teeing = false
}
