package ext

import (
	"strings"

	"sluice/hooks"
	"sluice/internal/sysctl"
	"sluice/packet"
	"sluice/tables"
)

// rejectType is one --reject-with.
type rejectType struct {
	name, alias string
	typ, code   uint8
	reset       bool
}

var rejectTypes4 = []rejectType{
	{name: "icmp-net-unreachable", alias: "net-unreach", typ: 3, code: 0},
	{name: "icmp-host-unreachable", alias: "host-unreach", typ: 3, code: 1},
	{name: "icmp-proto-unreachable", alias: "proto-unreach", typ: 3, code: 2},
	{name: "icmp-port-unreachable", alias: "port-unreach", typ: 3, code: 3},
	{name: "icmp-net-prohibited", alias: "net-prohib", typ: 3, code: 9},
	{name: "icmp-host-prohibited", alias: "host-prohib", typ: 3, code: 10},
	{name: "tcp-reset", alias: "tcp-rst", reset: true},
	{name: "icmp-admin-prohibited", alias: "admin-prohib", typ: 3, code: 13},
}

var rejectTypes6 = []rejectType{
	{name: "icmp6-no-route", alias: "no-route", typ: 1, code: 0},
	{name: "icmp6-adm-prohibited", alias: "adm-prohibited", typ: 1, code: 1},
	{name: "icmp6-addr-unreachable", alias: "addr-unreach", typ: 1, code: 3},
	{name: "icmp6-port-unreachable", alias: "port-unreach", typ: 1, code: 4},
	{name: "tcp-reset", alias: "tcp-reset", reset: true},
	{name: "icmp6-policy-fail", alias: "policy-fail", typ: 1, code: 5},
	{name: "icmp6-reject-route", alias: "reject-route", typ: 1, code: 6},
}

func (t rejectWith) find(s string) int {
	for i, r := range t.types {
		if hasPrefixFold(r.name, s) || hasPrefixFold(r.alias, s) {
			return i
		}
	}
	return -1
}

func hasPrefixFold(s, prefix string) bool {
	return len(prefix) <= len(s) && strings.EqualFold(s[:len(prefix)], prefix)
}

// rejectWith is a kind of answer by a name that may be cut short; Value.Lo is
// its index.
type rejectWith struct{ types []rejectType }

func (rejectWith) Args() int { return 1 }

func (t rejectWith) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	i := t.find(text[0])
	if i < 0 {
		e := tables.Usagef("unknown reject type \"%s\"", text[0])
		if o.Family == packet.IPv4 && (hasPrefixFold("echo-reply", text[0]) || hasPrefixFold("echoreply", text[0])) {
			e.Before = "--reject-with echo-reply no longer supported"
		}
		return e
	}
	v.Lo = uint64(i)
	return nil
}

func (t rejectWith) Format(v *tables.Value) string { return t.types[v.Lo].name }

func rejectTarget(fam tables.FamilyMask, with rejectWith, def uint64) *tables.Target {
	kind := func(a *tables.Args) *tables.Value { return a.Get("reject-with") }
	return &tables.Target{
		Name:     "REJECT",
		Families: fam,
		Doc:      "Drops the packet and answers with an ICMP error or a TCP reset. Never an answer to an error, a later fragment or a broken packet.",
		Tables:   tables.In(tables.Filter),
		Hooks:    hooks.At(hooks.Input, hooks.Forward, hooks.Output),
		Options: []tables.Option{{
			Name: "reject-with", Type: with, Arg: "type", Doc: "the answer: " + rejectNames(with),
		}},
		Final: func(a *tables.Args) error {
			if !a.Has("reject-with") {
				a.Set("reject-with", tables.Value{Lo: def})
			}
			return nil
		},
		List: func(a *tables.Args, _ bool) string { return " reject-with " + with.Format(kind(a)) },
		Check: func(a *tables.Args, at *tables.Place) error {
			if with.types[kind(a).Lo].reset && !at.Has(packet.ProtoTCP) {
				return tables.Refuse(0, "REJECT --reject-with tcp-reset needs -p tcp")
			}
			return nil
		},
		Compile: func(a *tables.Args, env *tables.Env) (tables.TargetFunc, error) {
			r := with.types[kind(a).Lo]
			if r.reset {
				name := "net.ipv4.ip_default_ttl"
				if a.Family == packet.IPv6 {
					name = "net.ipv6.conf.all.hop_limit"
				}
				var ttl *sysctl.Var
				if env != nil && env.Sysctl != nil {
					ttl = env.Sysctl.Lookup(name)
				}
				return rejectReset(ttl), nil
			}
			return func(c *tables.Context, p *packet.Packet) tables.Result {
				if c.ICMPError != nil && answerable(p) {
					c.ICMPError(p, r.typ, r.code, 0)
				}
				return tables.Drop
			}, nil
		},
	}
}

func rejectNames(with rejectWith) string {
	var s []string
	for _, r := range with.types {
		s = append(s, r.name)
	}
	return strings.Join(s, ", ")
}

// answerable is what nf_send_unreach asks before an error is sent: no error
// about a later fragment, nor about a packet whose transport checksum is wrong.
// (What an error may be sent about at all is the business of who sends it.)
func answerable(p *packet.Packet) bool {
	if p.Flags&packet.LaterFragment != 0 {
		return false
	}
	if p.Flags&packet.L4ChecksumOK != 0 || p.GSO.NeedsCsum {
		return true
	}
	b := p.Transport()
	switch p.Proto {
	case packet.ProtoTCP:
		return p.Flags&packet.HasL4 != 0 && p.VerifyL4()
	case packet.ProtoUDP:
		return p.Flags&packet.HasL4 != 0 && (b[6]|b[7] == 0 || p.VerifyL4())
	case packet.ProtoAH, packet.ProtoESP, packet.ProtoSCTP, packet.ProtoUDPLite:
		return true // no checksum of this kind over all of the payload
	case packet.ProtoGRE:
		if len(b) >= 4 && b[0]&0x80 == 0 {
			return true
		}
	}
	// Any other protocol is taken for one whose ones' complement sum has to come
	// out right, as ICMP's does. Nothing but zeros does so too, on IPv4: the sum
	// goes over the header, which by itself is right.
	sum := packet.Sum(b)
	if p.Family == packet.IPv4 && sum == 0 {
		return true
	}
	if p.Family == packet.IPv6 {
		if len(b) == 0 {
			return false
		}
		h := p.Bytes()
		sum = packet.AddSum(sum, packet.PseudoSum(h[8:24], h[24:40], p.Proto, len(b)))
	}
	return sum == 0xffff
}

// Route types that no reset is sent about (RTN_*).
const (
	routeBroadcast = 3
	routeMulticast = 5
)

func rejectReset(hopLimit *sysctl.Var) tables.TargetFunc {
	return func(c *tables.Context, p *packet.Packet) tables.Result {
		if c.Alloc == nil || c.Output == nil || p.Proto != packet.ProtoTCP || p.Flags&packet.HasL4 == 0 ||
			p.Route.Type == routeBroadcast || p.Route.Type == routeMulticast {
			return tables.Drop
		}
		answer := c.Alloc()
		if answer == nil {
			return tables.Drop
		}
		if !packet.BuildTCPReset(answer, p) {
			if c.Free != nil {
				c.Free(answer)
			}
			return tables.Drop
		}
		if hopLimit != nil {
			answer.SetTTL(uint8(hopLimit.Load()))
		}
		if c.CT != nil {
			c.CT.Attach(answer, p)
			c.CT.SetClosing(p)
		}
		c.Output(answer)
		return tables.Drop
	}
}

var (
	targetREJECT  = rejectTarget(tables.V4, rejectWith{rejectTypes4}, 3)
	targetREJECT6 = rejectTarget(tables.V6, rejectWith{rejectTypes6}, 3)
)
