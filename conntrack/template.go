package conntrack

import "sluice/packet"

// Template is what a CT rule gives to the connections of the packets it sees:
// it takes effect when such a packet starts one.
type Template struct {
	Zone      uint16
	ZoneDir   ZoneDir
	ZoneMark  bool // the zone is the packet's mark (--zone mark); see WithZone
	Helper    *Helper
	Events    Events         // with ExpEvents 0: all
	ExpEvents uint32         // expectation events; with Events 0: all
	Timeout   *TimeoutPolicy // of this table; nil: none
	Synproxy  bool           // the packet is SYNPROXY's; see Synproxy

	id uint32
}

// Template registers tm and returns the value to give to SetTemplate. Equal
// templates share one; they live as long as the table.
func (t *Table) Template(tm Template) *Template {
	tm.id = 0
	t.mu.Lock()
	defer t.mu.Unlock()
	all := *t.tmpls.Load()
	for _, o := range all {
		c := *o
		c.id = 0
		if c == tm {
			return o
		}
	}
	n := new(Template)
	*n = tm
	n.id = uint32(len(all) + 1)
	grown := append(append([]*Template{}, all...), n)
	t.tmpls.Store(&grown)
	return n
}

// SetTemplate attaches tm to a packet that is not tracked yet.
func (w *Worker) SetTemplate(p *packet.Packet, tm *Template) {
	if p.CtInfo == packet.CtNone && p.Ct == 0 {
		p.Ct = tm.id
		if tm.ZoneMark {
			p.Ct |= templateMark
		}
	}
}

const templateMark = 1 << 31

// template is p's template: p.Ct holds its number while p.CtInfo is CtNone.
func (w *Worker) template(p *packet.Packet) *Template {
	if p.CtInfo != packet.CtNone || p.Ct == 0 {
		return nil
	}
	tm := (*w.t.tmpls.Load())[p.Ct&^templateMark-1]
	if p.Ct&templateMark != 0 {
		w.marked = *tm
		w.marked.Zone = uint16(p.Mark)
		return &w.marked
	}
	return tm
}

// zones are the zones to look the two directions up in.
func (tm *Template) zones() (orig, reply uint16) {
	if tm == nil {
		return 0, 0
	}
	if tm.ZoneDir != ZoneReply {
		orig = tm.Zone
	}
	if tm.ZoneDir != ZoneOrig {
		reply = tm.Zone
	}
	return orig, reply
}
