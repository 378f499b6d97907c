package netstack

import (
	"net/netip"

	"sluice/packet"
)

// PrefixLen is the length of the prefix whose route Lookup gives for q; 0 where there is none.
func (s *Snapshot) PrefixLen(q *Query) int {
	dst := Addr(q.Family, q.Dst)
	fam := 0
	if q.Family == packet.IPv6 {
		fam = 1
	}
	for i := range s.rules[fam] {
		ru := &s.rules[fam][i]
		if ru.table == nil || !ru.all && !ru.match(q, dst) {
			continue
		}
		if p, _, ok := ru.table.LookupPrefixLPM(netip.PrefixFrom(dst, dst.BitLen())); ok {
			return p.Bits()
		}
	}
	return 0
}
