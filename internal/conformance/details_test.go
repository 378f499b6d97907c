package conformance

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/packet"
)

// detail is what conntrack -L does not print of a connection.
type detail struct {
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16 // ICMP: the identifier, type and code
	zone         uint16 // of both directions
	status       uint32
	helper       string
	labels       []byte
	adjusted     [2]string // sequence numbers: from where, by how much before and after
}

// adjustment tells how sequence numbers change. SYNPROXY moves all from the
// first on, by what its cookie, which is drawn, makes it.
func adjustment(from uint32, before, after int32) string {
	switch {
	case before == 0 && after == 0:
		return ""
	case from == 0 && before == after:
		return "moved"
	}
	return fmt.Sprint(from, before, after)
}

func (d *detail) String() string {
	return fmt.Sprintf("proto=%d src=%s dst=%s port=%d port=%d zone=%d status=%#x helper=%s labels=%s adjusted=%s", d.proto, d.src, d.dst, d.sport, d.dport,
		d.zone, d.status, d.helper, strings.Trim(fmt.Sprintf("%x", d.labels), "0"), d.adjusted)
}

// details gives them for all connections of a family.
func (x *kernelSide) details(family uint8) []string {
	x.t.Helper()
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: map[uint8]uint8{packet.IPv4: unix.AF_INET, packet.IPv6: unix.AF_INET6}[family]})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		x.t.Fatal("a dump of connections: ", err)
	}
	var out []string
	for _, m := range msgs {
		out = append(out, kernelDetail(x.t, m[4:]).String())
	}
	sort.Strings(out)
	return out
}

// Attributes of ctnetlink that package nl does not name.
const (
	ctaHelp       = 5
	ctaSeqOrig    = 15
	ctaSeqReply   = 16
	ctaICMPID     = 4
	ctaICMPType   = 5
	ctaICMPCode   = 6
	ctaICMPv6ID   = 7
	ctaICMPv6Type = 8
	ctaICMPv6Code = 9
)

func kernelDetail(t testing.TB, b []byte) *detail {
	t.Helper()
	d := &detail{}
	each := func(b []byte, f func(typ uint16, v []byte)) {
		attrs, err := nl.ParseRouteAttr(b)
		if err != nil {
			t.Fatal("an attribute of a connection: ", err)
		}
		for _, a := range attrs {
			f(a.Attr.Type&nl.NLA_TYPE_MASK, a.Value)
		}
	}
	be := binary.BigEndian
	each(b, func(typ uint16, v []byte) {
		switch typ {
		case nl.CTA_TUPLE_ORIG:
			each(v, func(typ uint16, v []byte) {
				each(v, func(part uint16, v []byte) {
					switch a, _ := netip.AddrFromSlice(v); {
					case typ == nl.CTA_TUPLE_IP && part%2 == 1:
						d.src = a
					case typ == nl.CTA_TUPLE_IP:
						d.dst = a
					case typ == nl.CTA_TUPLE_PROTO && part == nl.CTA_PROTO_NUM:
						d.proto = v[0]
					case typ == nl.CTA_TUPLE_PROTO:
						switch part {
						case nl.CTA_PROTO_SRC_PORT, ctaICMPID, ctaICMPv6ID:
							d.sport = be.Uint16(v)
						case nl.CTA_PROTO_DST_PORT:
							d.dport = be.Uint16(v)
						case ctaICMPType, ctaICMPv6Type:
							d.dport |= uint16(v[0]) << 8
						case ctaICMPCode, ctaICMPv6Code:
							d.dport |= uint16(v[0])
						}
					}
				})
			})
		case nl.CTA_STATUS:
			d.status = be.Uint32(v)
		case nl.CTA_ZONE:
			d.zone = be.Uint16(v)
		case nl.CTA_LABELS:
			d.labels = v
		case ctaHelp:
			each(v, func(typ uint16, v []byte) {
				if typ == 1 {
					d.helper = strings.TrimRight(string(v), "\x00")
				}
			})
		case ctaSeqOrig, ctaSeqReply:
			var n [4]uint32
			each(v, func(typ uint16, v []byte) { n[typ] = be.Uint32(v) })
			d.adjusted[typ-ctaSeqOrig] = adjustment(n[1], int32(n[2]), int32(n[3]))
		}
	})
	return d
}

func (x *ourSide) details(family uint8) []string {
	var out []string
	x.r.Conntrack().Each(func(s *conntrack.Snapshot) bool {
		d := &detail{proto: s.Orig.Proto, src: s.Orig.SrcAddr(), dst: s.Orig.DstAddr(), sport: s.Orig.SrcPort, dport: s.Orig.DstPort, status: uint32(s.Status), helper: s.Helper}
		if s.ZoneDir == conntrack.ZoneBoth {
			d.zone = s.Zone
		}
		if s.HasLabels {
			d.labels = s.Labels[:]
		}
		for i, a := range s.SeqAdj {
			d.adjusted[i] = adjustment(a.Pos, a.Before, a.After)
		}
		if d.src.Is4() == (family == packet.IPv4) {
			out = append(out, d.String())
		}
		return true
	})
	sort.Strings(out)
	return out
}
