package conntrack

import "sluice/packet"

// Template is what a CT rule gives to the connections of the packets it sees:
// it takes effect when such a packet starts one.
type Template struct {
	Zone        uint16
	ZoneDir     ZoneDir
	ZoneMark    bool // the zone is the packet's mark (--zone mark); see WithZone
	Helper      *Helper
	Events      Events // with ExpEvents 0: all
	ExpEvents   uint32 // expectation events; with Events 0: all
	TimeoutName string // a policy of this table, "" for none

	id    uint32
	table *Table
}

// Template registers tm and returns the value to give to SetTemplate. Equal
// templates share one; they live as long as the table.
func (t *Table) Template(tm Template) *Template {
	tm.id, tm.table = 0, nil
	t.mu.Lock()
	defer t.mu.Unlock()
	all := *t.tmpls.Load()
	for _, o := range all {
		c := *o
		c.id, c.table = 0, nil
		if c == tm {
			return o
		}
	}
	n := new(Template)
	*n = tm
	n.id, n.table = uint32(len(all)+1), t
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

// TimeoutPolicy replaces the timeouts of one protocol for the connections of a
// template. Seconds is by state; 0 keeps the tunable's value. The order is
// TCPState's (then retransmission, unacknowledged), SCTPState's, or unreplied
// then replied for UDP and GRE, or just one.
type TimeoutPolicy struct {
	Name    string
	Family  uint8
	Proto   uint8
	Seconds []uint32
	index   uint8
}

// AddTimeoutPolicy registers a policy under its name; false if the name is
// taken or there are too many (255).
func (t *Table) AddTimeoutPolicy(tp TimeoutPolicy) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := *t.policies.Load()
	for _, o := range all {
		if o.Name == tp.Name {
			return false
		}
	}
	if len(all) == 255 {
		return false
	}
	tp.index = uint8(len(all) + 1)
	grown := append(append([]*TimeoutPolicy{}, all...), &tp)
	t.policies.Store(&grown)
	return true
}

// TimeoutPolicy finds a policy by name; nil if there is none.
func (t *Table) TimeoutPolicy(name string) *TimeoutPolicy {
	for _, o := range *t.policies.Load() {
		if o.Name == name {
			return o
		}
	}
	return nil
}

func (tm *Template) policyIndex(family, proto uint8) uint8 {
	if tm.TimeoutName == "" || tm.table == nil {
		return 0
	}
	if tp := tm.table.TimeoutPolicy(tm.TimeoutName); tp != nil && tp.Proto == proto && (tp.Family == 0 || tp.Family == family) {
		return tp.index
	}
	return 0
}

func (t *Table) policyTimeout(e *Entry, row int) (int64, bool) {
	tp := (*t.policies.Load())[e.policy-1]
	if row < len(tp.Seconds) && tp.Seconds[row] != 0 {
		return int64(tp.Seconds[row]) * second, true
	}
	return 0, false
}
