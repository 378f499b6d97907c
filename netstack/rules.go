package netstack

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"sluice/packet"
)

// rule is a Rule made ready for packets.
type rule struct {
	Rule
	all      bool               // nothing to compare
	iif, oif int                // interface index; 0: any, -1: named, but not there
	table    *bart.Table[*ways] // nil: Action, or nothing to look in
}

// match compares a packet with a rule, as fib_rule_match.
func (r *rule) match(q *Query, dst netip.Addr) bool {
	return r.fits(q, dst) != r.Not
}

func (r *rule) fits(q *Query, dst netip.Addr) bool {
	if r.iif != 0 {
		in := 1 // what the router itself sends comes "from lo"
		if q.In != nil {
			in = q.In.Index
		}
		if in != r.iif {
			return false
		}
	}
	if r.oif != 0 && (q.Out == nil || q.Out.Index != r.oif) {
		return false
	}
	if (q.Mark^r.Mark)&r.Mask != 0 {
		return false
	}
	if r.TOS != 0 && q.TOS&0xfc != r.TOS {
		return false
	}
	if r.To.IsValid() && !r.To.Contains(dst) {
		return false
	}
	return !r.From.IsValid() || r.From.Contains(Addr(q.Family, q.Src))
}

// The default rules of Linux; IPv6 has no "default" table.
var defaultRules = []Rule{
	{Family: packet.IPv4, Priority: 0, Table: TableLocal},
	{Family: packet.IPv4, Priority: 32766, Table: TableMain},
	{Family: packet.IPv4, Priority: 32767, Table: TableDefault},
	{Family: packet.IPv6, Priority: 0, Table: TableLocal},
	{Family: packet.IPv6, Priority: 32766, Table: TableMain},
}

func isDefaultRule(r *Rule) bool {
	for i := range defaultRules {
		if *r == defaultRules[i] {
			return true
		}
	}
	return false
}

// compileRules makes the rules ready once tables and interfaces are as they will be.
func (s *Snapshot) compileRules() {
	s.rules, s.custom = [2][]rule{}, [2]bool{}
	for i := range s.specs {
		r := rule{Rule: s.specs[i]}
		fam := 0
		if r.Family == packet.IPv6 {
			fam = 1
		}
		if !isDefaultRule(&r.Rule) {
			s.custom[fam] = true
		}
		r.iif, r.oif = s.indexOf(r.IIF), s.indexOf(r.OIF)
		if r.From.IsValid() && r.From.Bits() == 0 {
			r.From = netip.Prefix{}
		}
		if r.To.IsValid() && r.To.Bits() == 0 {
			r.To = netip.Prefix{}
		}
		r.all = r.iif == 0 && r.oif == 0 && r.Mask == 0 && r.TOS == 0 && !r.From.IsValid() && !r.To.IsValid() && !r.Not
		if r.Action <= RouteUnicast {
			if t := s.tables[r.Table]; t != nil && (fam == 0 && t.Size4() > 0 || fam == 1 && t.Size6() > 0) {
				r.table = t
			} else {
				continue // nothing will be found there
			}
		}
		s.rules[fam] = append(s.rules[fam], r)
	}
}

func (s *Snapshot) indexOf(name string) int {
	if name == "" {
		return 0
	}
	if d := s.devNamed(name); d != nil {
		return d.iface.Index
	}
	return -1
}

// AddRule adds a policy rule behind those of the same priority.
func (tx *Tx) AddRule(r Rule) error {
	if err := r.normalize(); err != nil {
		return err
	}
	if r.Action == RouteNone && r.Table == 0 {
		r.Table = TableMain
	}
	if r.Auto {
		// Just before the first rule with a priority other than 0, as the kernel chooses.
		r.Auto = false
		for i := range tx.s.specs {
			if s := &tx.s.specs[i]; s.Family == r.Family && s.Priority != 0 {
				r.Priority = s.Priority - 1
				break
			}
		}
	}
	at := len(tx.s.specs)
	for i := range tx.s.specs {
		s := &tx.s.specs[i]
		if *s == r {
			return unix.EEXIST
		}
		if at == len(tx.s.specs) && (s.Family > r.Family || s.Family == r.Family && s.Priority > r.Priority) {
			at = i
		}
	}
	tx.s.specs = slices.Insert(tx.s.specs, at, r)
	return nil
}

// DelRule removes the first rule that r describes: what r leaves empty does
// not count, nor does the priority with Auto.
func (tx *Tx) DelRule(r Rule) error {
	if err := r.normalize(); err != nil {
		return err
	}
	for i := range tx.s.specs {
		s := &tx.s.specs[i]
		if s.Family != r.Family || (r.Priority != 0 || !r.Auto) && s.Priority != r.Priority ||
			r.From.IsValid() && s.From != r.From || r.To.IsValid() && s.To != r.To ||
			r.IIF != "" && s.IIF != r.IIF || r.OIF != "" && s.OIF != r.OIF ||
			r.Mask != 0 && (s.Mark != r.Mark || s.Mask != r.Mask) ||
			r.TOS != 0 && s.TOS != r.TOS || r.Table != 0 && s.Table != r.Table ||
			r.Action > RouteUnicast && s.Action != r.Action {
			continue
		}
		tx.s.specs = slices.Delete(tx.s.specs, i, i+1)
		return nil
	}
	return unix.ENOENT
}

func (r *Rule) normalize() error {
	if r.Family != packet.IPv4 && r.Family != packet.IPv6 {
		return errors.New("a rule needs a family: 4 or 6")
	}
	for _, p := range []*netip.Prefix{&r.From, &r.To} {
		if p.IsValid() && familyOf(p.Addr()) != r.Family {
			return errors.New("a rule's prefixes are of its own family: " + p.String() + " is not")
		}
		*p = p.Masked()
	}
	if r.Mark != 0 && r.Mask == 0 {
		r.Mask = 0xffffffff
	}
	switch r.Action {
	case RouteNone:
	case RouteUnicast:
		r.Action = RouteNone
	case RouteBlackhole, RouteUnreachable, RouteProhibit:
		if r.Table != 0 {
			return errors.New("a rule has a table or a type, not both")
		}
	default:
		return errors.New("a rule cannot be of type " + r.Action.String())
	}
	return nil
}
