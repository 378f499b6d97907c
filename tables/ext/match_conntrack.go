package ext

import (
	"strconv"

	"sluice/conntrack"
	"sluice/packet"
	"sluice/tables"
)

var ctStates = tables.StateList{
	What:  "ctstate",
	Words: []string{"INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"},
	Bits:  []uint64{stateInvalid, stateNew, stateRelated, stateEstablished, stateUntracked, stateSNAT, stateDNAT},
}

// ctStatuses has NONE as no bits: printed where no bit is set.
var ctStatuses = tables.StateList{
	What:  "ctstatus",
	Words: []string{"EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "NONE"},
	Bits:  []uint64{uint64(conntrack.Expected), uint64(conntrack.SeenReply), uint64(conntrack.Assured), uint64(conntrack.Confirmed), 0},
}

// ctProto is a protocol by name or number, printed as a number.
type ctProto struct{}

func (ctProto) Args() int { return 1 }

func (ctProto) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	n, ok := tables.ProtocolByName(text[0])
	if !ok {
		return tables.Usagef("unknown protocol \"%s\" specified", text[0])
	}
	v.Lo = uint64(n)
	return nil
}

func (ctProto) Format(v *tables.Value) string { return strconv.FormatUint(v.Lo, 10) }

// ctPort is a range of ports; one that ends at 0 is printed as its first port,
// though it is kept as it is.
type ctPort struct{ tables.Type }

func (t ctPort) Format(v *tables.Value) string {
	if v.Hi == 0 {
		return strconv.FormatUint(v.Lo, 10)
	}
	return t.Type.Format(v)
}

var ctDir = tables.OneOf{Words: []string{"ORIGINAL", "REPLY"}, Bad: "conntrack: Bad value for \"--ctdir\" option: \"%s\""}

// ctAddrs and ctPorts are the options that look at an end of one of the two tuples.
var (
	ctAddrs = []string{"ctorigsrc", "ctorigdst", "ctreplsrc", "ctrepldst"}
	ctPorts = []string{"ctorigsrcport", "ctorigdstport", "ctreplsrcport", "ctrepldstport"}
)

func conntrackOptions() []tables.Option {
	os := []tables.Option{
		{Name: "ctstate", Type: ctStates, Negatable: true, Arg: "state[,state]…", Doc: "INVALID, NEW, RELATED, ESTABLISHED, UNTRACKED, SNAT or DNAT"},
		{Name: "ctproto", Type: ctProto{}, Negatable: true, Arg: "protocol", Doc: "the connection's protocol"},
	}
	for _, n := range ctAddrs {
		os = append(os, tables.Option{Name: n, Type: tables.HostMask, Negatable: true, Arg: "address[/mask]", Doc: "address of the original or reply tuple"})
	}
	for _, n := range ctPorts {
		os = append(os, tables.Option{Name: n, Type: ctPort{tables.ServiceRange}, Negatable: true, Arg: "port[:port]", Doc: "port of the original or reply tuple"})
	}
	return append(os,
		tables.Option{Name: "ctstatus", Type: ctStatuses, Negatable: true, Arg: "status[,status]…", Doc: "NONE, EXPECTED, SEEN_REPLY, ASSURED or CONFIRMED"},
		tables.Option{Name: "ctexpire", Type: tables.U32Range, Negatable: true, Arg: "time[:time]", Doc: "seconds that the connection has left"},
		tables.Option{Name: "ctdir", Type: ctDir, Arg: "ORIGINAL|REPLY", Doc: "the packet's direction"},
	)
}

var matchConntrack = &tables.Match{
	Name:     "conntrack",
	Families: tables.V4V6,
	Doc:      "Matches what is known of the packet's connection.",
	Options:  conntrackOptions(),
	First:    needOption("conntrack: At least one option is required"),
	List: func(a *tables.Args, numeric bool) string {
		var s string
		for _, o := range a.Options() {
			v := a.Get(o.Name)
			if !v.Set {
				continue
			}
			s += notOf(v) + " " + o.Name + " "
			if o.Type == tables.HostMask && !numeric && v.A == [16]byte{} {
				s += "anywhere"
			} else {
				s += o.Type.Format(v)
			}
		}
		return s
	},
	Depends: tables.DependsCtState | tables.DependsCtStatus,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		m := newCtMatch(a)
		if a.Count() == 1 && m.state.Set && m.state.Lo&(stateSNAT|stateDNAT) == 0 {
			mask := uint8(m.state.Lo)
			if m.state.Not {
				mask = ^mask
			}
			return func(_ *tables.Context, p *packet.Packet) bool { return packetState(p)&mask != 0 }, nil
		}
		return m.match, nil
	},
}

// ctMatch is the compiled general form.
type ctMatch struct {
	state, status, expire, proto tables.Value
	dir                          tables.Value
	ends                         []ctEnd
}

// ctEnd is an address or a port to look at in one tuple.
type ctEnd struct {
	dir     conntrack.Dir
	dst     bool
	port    bool
	not     bool
	a, mask [16]byte
	lo, hi  uint16
}

func newCtMatch(a *tables.Args) *ctMatch {
	m := &ctMatch{state: *a.Get("ctstate"), status: *a.Get("ctstatus"), expire: *a.Get("ctexpire"), proto: *a.Get("ctproto"), dir: *a.Get("ctdir")}
	for i := range 4 {
		e := ctEnd{dir: conntrack.Dir(i / 2), dst: i%2 == 1}
		if v := a.Get(ctAddrs[i]); v.Set {
			e.a, e.mask, e.not = v.A, v.B, v.Not
			m.ends = append(m.ends, e)
		}
		if v := a.Get(ctPorts[i]); v.Set {
			e.port, e.lo, e.hi, e.not = true, uint16(v.Lo), uint16(v.Hi), v.Not
			m.ends = append(m.ends, e)
		}
	}
	return m
}

func (x *ctEnd) match(e *conntrack.Entry) bool {
	t := e.Tuple(x.dir)
	if x.port {
		n := t.SrcPort
		if x.dst {
			n = t.DstPort
		}
		return (n >= x.lo && n <= x.hi) != x.not
	}
	addr := &t.Src
	if x.dst {
		addr = &t.Dst
	}
	same := true
	for i := range addr {
		same = same && (addr[i]^x.a[i])&x.mask[i] == 0
	}
	return same != x.not
}

func (m *ctMatch) match(c *tables.Context, p *packet.Packet) bool {
	e := connection(c, p)
	if m.state.Set {
		bits := packetState(p)
		if e != nil {
			st := e.Status()
			if st&conntrack.SrcNAT != 0 {
				bits |= stateSNAT
			}
			if st&conntrack.DstNAT != 0 {
				bits |= stateDNAT
			}
		}
		if (uint8(m.state.Lo)&bits != 0) == m.state.Not {
			return false
		}
	}
	if e == nil {
		// Without a connection the state is all there is to look at, and Linux
		// lets it decide alone.
		return m.state.Set
	}
	if m.dir.Set && p.CtInfo.Reply() != (m.dir.Lo == 1) {
		return false
	}
	if m.proto.Set && (e.Tuple(conntrack.Original).Proto == uint8(m.proto.Lo)) == m.proto.Not {
		return false
	}
	for i := range m.ends {
		if !m.ends[i].match(e) {
			return false
		}
	}
	if m.status.Set && (uint64(e.Status())&m.status.Lo != 0) == m.status.Not {
		return false
	}
	if m.expire.Set {
		c.NotRepeatable()
		left := uint64(0) // of a connection that is not in the table yet
		if e.Status()&conntrack.Confirmed != 0 {
			left = uint64(e.Timeout(p.Now)) / 1e9
		}
		if (left >= m.expire.Lo && left <= m.expire.Hi) == m.expire.Not {
			return false
		}
	}
	return true
}
