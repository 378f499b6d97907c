package tables

import (
	"strconv"
	"strings"

	"sluice/packet"
)

// Has reports whether port is in r.
func (r *PortRange) Has(port uint16) bool {
	return !r.Set || (port >= r.Min && port <= r.Max) != r.Not
}

// NoPorts is what a port match says of a packet without ports (no
// packet.HasL4): a later fragment just does not match, and anything else is cut
// short and dropped. So is the fragment at offset 8 of a TCP packet, which could
// overwrite flags. It always returns false.
func (c *Context) NoPorts(p *packet.Packet) bool {
	if p.Flags&packet.LaterFragment == 0 || p.Family == packet.IPv4 && p.Proto == packet.ProtoTCP && p.FragOff == 8 {
		c.Hotdrop = true
	}
	return false
}

// PortRangeType is "port", "port:port", ":port" or "port:", numbers or service
// names of Proto, in Value.Lo and Hi.
type PortRangeType struct{ Proto string }

func (PortRangeType) Args() int { return 1 }

func (t PortRangeType) Parse(_ *OptionContext, text []string, v *Value) error {
	lo, hi, isRange := strings.Cut(text[0], ":")
	a, b := uint16(0), uint16(65535)
	var err error
	if lo != "" || !isRange {
		if a, err = ParsePort(lo, t.Proto); err != nil {
			return err
		}
	}
	if !isRange {
		b = a
	} else if hi != "" {
		if b, err = ParsePort(hi, t.Proto); err != nil {
			return err
		}
	}
	if a > b {
		return Usagef("invalid portrange (min > max)")
	}
	v.Lo, v.Hi = uint64(a), uint64(b)
	return nil
}

func (PortRangeType) Format(v *Value) string {
	if v.Lo == v.Hi {
		return strconv.FormatUint(v.Lo, 10)
	}
	return strconv.FormatUint(v.Lo, 10) + ":" + strconv.FormatUint(v.Hi, 10)
}

// ServiceRange is PortRangeType as newer extensions read it: decimal numbers or
// service names of any protocol; the ends need not be in order.
var ServiceRange Type = serviceRange{}

type serviceRange struct{}

func (serviceRange) Args() int { return 1 }

func (serviceRange) Parse(o *OptionContext, text []string, v *Value) error {
	ends := [2]uint64{0, 65535}
	n, err := o.parts(text[0], func(i int, s string) (string, error) {
		word, rest := s, ""
		if at := strings.IndexByte(s, ':'); at >= 0 {
			word, rest = s[:at], s[at:]
		}
		var err error
		ends[i], err = NumericService(word)
		return rest, err
	})
	v.Lo, v.Hi = ends[0], ends[1]
	if n == 1 {
		v.Hi = v.Lo
	}
	return err
}

// NumericService reads a port as getaddrinfo does: a decimal number, or a
// service's name of any protocol.
func NumericService(s string) (uint64, error) {
	digits := strings.TrimLeft(s, " ")
	if digits = strings.TrimPrefix(digits, "+"); strings.Trim(digits, "0") == "-" {
		digits = strings.TrimPrefix(digits, "-")
	}
	if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
		return n, nil
	}
	p, ok := ServicePort(s, "")
	if !ok {
		return 0, Usagef("Port \"%s\" does not resolve to anything.\n", s)
	}
	return uint64(p), nil
}

func (serviceRange) Format(v *Value) string { return PortRangeType{}.Format(v) }
