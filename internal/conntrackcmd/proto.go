package conntrackcmd

import (
	"strings"

	"sluice/conntrack"
	"sluice/packet"
)

// Options of the protocols; their keys are keyProto plus these.
const (
	poSport = iota
	poDport
	poReplySport
	poReplyDport
	poMaskSport
	poMaskDport
	poTupleSport
	poTupleDport
	poState
	poOrigTag
	poReplyTag
	poType
	poCode
	poID
	poRole
	numProtoOpts
)

var protoOptNames = [numProtoOpts]string{"sport", "dport", "reply-port-src", "reply-port-dst", "mask-port-src",
	"mask-port-dst", "tuple-port-src", "tuple-port-dst", "state", "orig-vtag", "reply-vtag", "icmp-type", "icmp-code", "icmp-id", "role"}

func protoLongs(proto uint8) (out []long) {
	add := func(po int, names ...string) {
		for _, n := range names {
			out = append(out, long{n, argMust, keyProto + po})
		}
	}
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		add(poSport, "orig-port-src", "sport")
		add(poDport, "orig-port-dst", "dport")
		for i := poReplySport; i <= poTupleDport; i++ {
			add(i, protoOptNames[i])
		}
		if proto != packet.ProtoUDP && proto != packet.ProtoUDPLite {
			add(poState, "state")
		}
		if proto == packet.ProtoSCTP {
			add(poOrigTag, "orig-vtag")
			add(poReplyTag, "reply-vtag")
		}
		if proto == packet.ProtoDCCP {
			add(poRole, "role")
		}
	case packet.ProtoGRE:
		add(poSport, "orig-key-src", "srckey")
		add(poDport, "orig-key-dst", "dstkey")
		add(poReplySport, "reply-key-src")
		add(poReplyDport, "reply-key-dst")
		add(poMaskSport, "mask-key-src")
		add(poMaskDport, "mask-key-dst")
		add(poTupleSport, "tuple-key-src")
		add(poTupleDport, "tuple-key-dst")
	case packet.ProtoICMP, packet.ProtoICMPv6:
		n := protoNames[proto]
		add(poType, n+"-type")
		add(poCode, n+"-code")
		add(poID, n+"-id")
	}
	return out
}

// protoNumbers are names beyond those that conntrack has options for.
var protoNumbers = map[string]uint8{"ipv6-icmp": 58, "igmp": 2, "ipip": 4, "ipencap": 4, "esp": 50, "ah": 51, "ospf": 89,
	"pim": 103, "vrrp": 112, "l2tp": 115, "rsvp": 46, "ipv6": 41, "eigrp": 88, "ip": 0}

func findProto(s string) (uint8, bool) {
	l := strings.ToLower(s)
	for n, name := range protoNames {
		if name == l {
			return n, true
		}
	}
	if n, ok := protoNumbers[l]; ok {
		return n, true
	}
	n, rest := number(s)
	if s == "" || rest != "" || n > 255 {
		return 0, false
	}
	return uint8(n), true
}

var dccpStates = []string{"NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT"}

// protoOption takes one protocol option.
func (c *cmdline) protoOption(po int, val string) error {
	c.protoGiven |= 1 << po
	switch po {
	case poState:
		switch c.proto {
		case packet.ProtoTCP:
			for s := conntrack.TCPNone; s <= conntrack.TCPSynSent2; s++ {
				if s.String() == val {
					c.state = uint8(s)
					return nil
				}
			}
			if val == "LISTEN" {
				c.state = uint8(conntrack.TCPSynSent2)
				return nil
			}
			return usagef("unknown TCP state `%s'", val)
		case packet.ProtoSCTP:
			for s := conntrack.SCTPNone; s <= conntrack.SCTPHeartbeatSent; s++ {
				if s.String() == val {
					c.state = uint8(s)
					return nil
				}
			}
			return usagef("unknown SCTP state `%s'", val)
		}
		for i, s := range dccpStates {
			if s == val {
				c.state = uint8(i)
				return nil
			}
		}
		return usagef("Unknown DCCP state `%s'", val)
	case poRole:
		if val != "client" && val != "server" {
			return usagef("Unknown DCCP role `%s'", val)
		}
	default:
		v := uint32(atoi(val))
		switch {
		case c.proto == packet.ProtoGRE:
			v = uint32(strtoul(val)) & 0xffff
		case po == poType || po == poCode:
			v &= 0xff
		case po != poOrigTag && po != poReplyTag:
			v &= 0xffff
		}
		c.protoVals[po] = v
	}
	return nil
}

// checkProto says what a command still lacks of its protocol's options.
func (c *cmdline) checkProto() error {
	has := func(po int) bool { return c.protoGiven>>po&1 != 0 }
	need := func(pos ...int) error {
		for _, po := range pos {
			if !has(po) {
				n := protoOptNames[po]
				if c.proto == packet.ProtoICMPv6 {
					n = strings.Replace(n, "icmp", "icmpv6", 1)
				}
				return usagef("You need to supply the `--%s' option for this command", n)
			}
		}
		return nil
	}
	ports, what := false, "`--sport' and `--dport'"
	switch c.proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		ports = true
	case packet.ProtoGRE:
		ports, what = true, "`--srckey' and `--dstkey'"
	}
	if c.table == tableExpect {
		switch {
		case !ports:
			return nil
		case c.cmd == cmdCreate:
			return need(poSport, poDport, poMaskSport, poMaskDport, poTupleSport, poTupleDport)
		case c.cmd == cmdDelete || c.cmd == cmdGet:
			return need(poSport, poDport, poReplySport, poReplyDport)
		}
		return nil
	}
	create := c.cmd == cmdCreate || c.cmd == cmdAdd
	for _, po := range []int{poMaskSport, poMaskDport, poTupleSport, poTupleDport, poOrigTag, poReplyTag, poRole} {
		if has(po) && (po <= poTupleDport || !create) {
			return usagef("Illegal option `--%s' with this command", protoOptNames[po])
		}
	}
	if !create && c.cmd != cmdGet {
		return nil
	}
	var err error
	switch c.proto {
	case packet.ProtoTCP:
		if create {
			err = need(poState)
		}
	case packet.ProtoDCCP:
		if create {
			err = need(poState, poRole)
		}
	case packet.ProtoSCTP:
		if create {
			err = need(poState, poOrigTag, poReplyTag)
		}
	case packet.ProtoICMP, packet.ProtoICMPv6:
		err = need(poType, poCode)
	}
	if err != nil {
		return err
	}
	if ports && !(has(poSport) && has(poDport)) && !(has(poReplySport) && has(poReplyDport)) {
		return usagef("you have to specify %s", what)
	}
	return nil
}
