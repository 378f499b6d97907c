package ext

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

var reasonNPT = packet.NewReason("npt.impossible", "the address has no bits left to keep the checksum right by (RFC 6296 3.5)")

// prefix is address/length of IPv6.
type prefix struct{}

func (prefix) Args() int { return 1 }

func (prefix) Parse(o *tables.OptionContext, text []string, v *tables.Value) error {
	return tables.HostMask.Parse(o, text, v)
}

func (prefix) Format(v *tables.Value) string {
	return fmt.Sprintf("%s/%d", tables.FormatAddr(packet.IPv6, v.A), v.Hi)
}

// npt translates one prefix to another, adjusting 16 bits of the address such
// that checksums over it stay the same (RFC 6296).
type npt struct {
	src, dst [16]byte
	srcBits  int
	mask     [16]byte // of the longer prefix
	bits     int
	adjust   uint16
	at, old  int // offsets of the address in the packet, and in one that an ICMPv6 error quotes
}

func nptTarget(name, doc string, at hooks.Mask, addr, quoted int) *tables.Target {
	return &tables.Target{
		Name:     name,
		Families: tables.V6,
		Doc:      doc,
		Tables:   tables.In(tables.Mangle),
		Hooks:    at,
		Options: []tables.Option{
			{Name: "src-pfx", Type: prefix{}, Required: true, Arg: "prefix/length", Doc: "the prefix that is there, up to 64 bits"},
			{Name: "dst-pfx", Type: prefix{}, Required: true, Arg: "prefix/length", Doc: "the prefix it becomes"},
		},
		List: func(a *tables.Args, _ bool) string {
			return " " + name + " src-pfx " + prefix{}.Format(a.Get("src-pfx")) + " dst-pfx " + prefix{}.Format(a.Get("dst-pfx"))
		},
		Check: func(a *tables.Args, _ *tables.Place) error {
			for _, o := range []string{"src-pfx", "dst-pfx"} {
				v := a.Get(o)
				if v.Hi > 64 {
					return errors.New(name + ": a prefix is longer than 64 bits")
				}
				for i := range v.A {
					if v.A[i]&^v.B[i] != 0 {
						return errors.New(name + ": a prefix has bits behind its length")
					}
				}
			}
			return nil
		},
		Compile: func(a *tables.Args, _ *tables.Env) (tables.TargetFunc, error) {
			s, d := a.Get("src-pfx"), a.Get("dst-pfx")
			n := &npt{src: s.A, dst: d.A, srcBits: int(s.Hi), bits: int(max(s.Hi, d.Hi)), mask: s.B, at: addr, old: quoted}
			if d.Hi > s.Hi {
				n.mask = d.B
			}
			n.adjust = packet.AddSum(packet.Sum(s.A[:]), ^packet.Sum(d.A[:]))
			return n.target, nil
		},
	}
}

func (n *npt) target(c *tables.Context, p *packet.Packet) tables.Result {
	b := p.Bytes()
	if !n.translate(b[n.at : n.at+16]) {
		if c.ICMPError != nil {
			c.ICMPError(p, 4, 0, uint32(n.at))
		}
		p.Reason = reasonNPT
		return tables.Drop
	}
	// An error quotes a packet that has been translated the other way.
	if typ, _, ok := p.ICMPType(); ok && b[6] == packet.ProtoICMPv6 && typ < 128 {
		if t := p.Transport()[8:]; len(t) >= 40 {
			q := t[n.old : n.old+16]
			if hasPrefix(q, &n.src, n.srcBits) {
				n.translate(q)
			}
		}
	}
	return tables.Continue
}

func hasPrefix(a []byte, prefix *[16]byte, bits int) bool {
	for i := range a {
		k := min(max(bits-8*i, 0), 8)
		if (a[i]^prefix[i])&^(0xff>>k) != 0 {
			return false
		}
	}
	return true
}

// translate changes an address in place; false: it cannot be done, though the
// prefix has been written.
func (n *npt) translate(a []byte) bool {
	for i := range a {
		a[i] = a[i]&^n.mask[i] | n.dst[i]&n.mask[i]
	}
	at := 6
	if n.bits > 48 {
		for at = 8; binary.BigEndian.Uint16(a[at:]) == 0xffff; {
			if at += 2; at == 16 {
				return false
			}
		}
	}
	sum := packet.AddSum(binary.BigEndian.Uint16(a[at:]), n.adjust)
	if sum == 0xffff {
		sum = 0
	}
	binary.BigEndian.PutUint16(a[at:], sum)
	return true
}

var (
	targetSNPT = nptTarget("SNPT", "Translates the prefix of source addresses without state (RFC 6296).",
		hooks.At(hooks.Input, hooks.Postrouting), 8, 24)
	targetDNPT = nptTarget("DNPT", "Translates the prefix of destination addresses without state (RFC 6296).",
		hooks.At(hooks.Prerouting, hooks.Output), 24, 8)
)
