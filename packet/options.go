package packet

// IPOptions is what ip_options_compile finds in an IPv4 header. Offsets count
// from the network header, 0: not there.
type IPOptions struct {
	SourceRoute uint8 // LSRR or SSRR
	Strict      bool  // SSRR
	RecordRoute uint8
	Timestamp   uint8
	RouterAlert bool
	CIPSO       bool

	Hit     bool     // the packet came to an address of ours and goes on to NextHop
	NextHop [16]byte // from the source route; see FollowSourceRoute
}

// IPv4 option types.
const (
	optEnd   = 0
	optNop   = 1
	optRR    = 7
	optTS    = 68
	optLSRR  = 131
	optCIPSO = 134
	optSSRR  = 137
	optRA    = 148
)

// CompileOptions checks the IPv4 options, which Linux does once PREROUTING and
// the routing decision are done. It returns 0 (also for a packet without options) or DropBadOptions, whose
// pointer Problem knows. Whatever follows an end of options becomes zero.
func (p *Packet) CompileOptions(o *IPOptions) Reason {
	*o = IPOptions{}
	if p.Flags&Options == 0 || p.Family != IPv4 {
		return 0
	}
	b := p.Bytes()
	b = b[:int(b[0]&15)*4]
	for at := 20; at < len(b); {
		switch b[at] {
		case optEnd:
			return p.endOptions(b[at:])
		case optNop:
			at++
			continue
		}
		if at+1 >= len(b) {
			return p.badOption(at)
		}
		n := int(b[at+1])
		if n < 2 || n > len(b)-at {
			return p.badOption(at)
		}
		opt := b[at : at+n]
		bad := -1
		switch opt[0] {
		case optLSRR, optSSRR:
			switch {
			case n < 3:
				bad = 1
			case opt[2] < 4:
				bad = 2
			case o.SourceRoute != 0:
				bad = 0
			default:
				o.SourceRoute, o.Strict = uint8(at), opt[0] == optSSRR
			}
		case optRR:
			switch {
			case o.RecordRoute != 0:
				bad = 0
			case n < 3:
				bad = 1
			case opt[2] < 4:
				bad = 2
			case int(opt[2]) <= n && int(opt[2])+3 > n:
				bad = 2
			default:
				o.RecordRoute = uint8(at)
			}
		case optTS:
			bad = o.compileTimestamp(opt, at)
		case optRA:
			if n < 4 {
				bad = 1
			} else {
				o.RouterAlert = opt[2] == 0 && opt[3] == 0
			}
		case optCIPSO:
			switch { // no domain of interpretation is known here
			case o.CIPSO:
				bad = 0
			case n < 8:
				bad = 1
			default:
				bad = 2
			}
			o.CIPSO = true
		}
		if bad >= 0 {
			return p.badOption(at + bad)
		}
		at += n
	}
	return 0
}

func (p *Packet) endOptions(rest []byte) Reason {
	for _, x := range rest {
		if x != optEnd {
			clear(rest)
			p.FixHeader()
			break
		}
	}
	return 0
}

// The timestamp option's flag field: what is recorded.
const (
	tsOnly = 0 // timestamps
	tsAddr = 1 // address and timestamp
	tsHere = 3 // timestamp, where the next prespecified address is ours
)

func (o *IPOptions) compileTimestamp(opt []byte, at int) int {
	n := len(opt)
	switch {
	case o.Timestamp != 0:
		return 0
	case n < 4:
		return 1
	case opt[2] < 5:
		return 2
	}
	flag := opt[3] & 15
	if ptr := int(opt[2]); ptr <= n {
		if ptr+3 > n || (flag == tsAddr || flag == tsHere) && ptr+7 > n {
			return 2
		}
	} else if flag != tsHere && opt[3]>>4 == 15 { // the count of hosts that had no room would overflow
		return 3
	}
	o.Timestamp = uint8(at)
	return -1
}

func (p *Packet) badOption(at int) Reason {
	p.errAt = uint16(at)
	return DropBadOptions
}

// Route types that FollowSourceRoute tells apart (RTN_UNICAST, RTN_LOCAL).
const (
	routeUnicast = 1
	routeLocal   = 2
)

// FollowSourceRoute does what Linux does with a source route where those are
// accepted, after CompileOptions: typeOf gives an address's route type (RTN_*).
// If the packet came to one of our addresses and the list goes on, Hit and
// NextHop are set: NextHop is where to route it. A drop may come with a Problem.
func (p *Packet) FollowSourceRoute(o *IPOptions, typeOf func(addr [16]byte) uint8) Reason {
	if o.SourceRoute == 0 {
		return 0
	}
	if p.PktType != PktHost {
		return DropSourceRt
	}
	switch typeOf(p.Dst()) {
	case routeUnicast:
		if !o.Strict {
			return 0
		}
		p.errAt = 16 // we are not the next hop that a strict route names
		return DropSourceRt
	case routeLocal:
	default:
		return DropSourceRt
	}
	b := p.Bytes()
	opt := b[o.SourceRoute:]
	for ptr, n := int(opt[2]), int(opt[1]); ptr <= n; ptr += 4 {
		if ptr+3 > n {
			p.errAt = uint16(o.SourceRoute) + 2
			return DropSourceRt
		}
		var hop [16]byte
		copy(hop[:4], opt[ptr-1:ptr+3])
		switch typeOf(hop) {
		case routeUnicast:
			o.Hit, o.NextHop = true, hop
			return 0
		case routeLocal:
			copy(b[16:20], hop[:4])
			p.FixHeader()
		default:
			return DropSourceRt
		}
	}
	return 0
}

// ForwardOptions does to the options of a packet in transit what a router
// owes them: src, our address towards the next hop, goes into a record route, a
// timestamp and the source route; ms is the time since midnight UT in
// milliseconds; ours says of a prespecified address whether it is not
// somebody else's. The header checksum is recomputed.
func (p *Packet) ForwardOptions(o *IPOptions, src [16]byte, ms uint32, ours func(addr [16]byte) bool) {
	b := p.Bytes()
	if o.RecordRoute != 0 {
		opt := b[o.RecordRoute:]
		if ptr := int(opt[2]); ptr+3 <= int(opt[1]) {
			copy(opt[ptr-1:ptr+3], src[:4])
			opt[2] += 4
		}
	}
	if o.Hit {
		opt := b[o.SourceRoute:]
		for ptr := int(opt[2]); ptr+3 <= int(opt[1]); ptr += 4 {
			if [4]byte(opt[ptr-1:]) == [4]byte(o.NextHop[:4]) {
				copy(b[16:20], o.NextHop[:4])
				copy(opt[ptr-1:ptr+3], src[:4])
				opt[2] = uint8(ptr) + 4
				break
			}
		}
	}
	if o.Timestamp != 0 {
		stamp(b[o.Timestamp:], src, ms, ours)
	}
	p.FixHeader()
}

// stamp writes into a timestamp option.
func stamp(opt []byte, src [16]byte, ms uint32, ours func([16]byte) bool) {
	ptr, flag := int(opt[2]), opt[3]&15
	if ptr > int(opt[1]) {
		if flag != tsHere {
			opt[3] += 1 << 4
		}
		return
	}
	switch flag {
	case tsOnly:
		be.PutUint32(opt[ptr-1:], ms)
		opt[2] += 4
	case tsAddr:
		copy(opt[ptr-1:ptr+3], src[:4])
		be.PutUint32(opt[ptr+3:], ms)
		opt[2] += 8
	case tsHere:
		var a [16]byte
		copy(a[:4], opt[ptr-1:ptr+3])
		if ours != nil && ours(a) {
			be.PutUint32(opt[ptr+3:], ms)
			opt[2] += 8
		}
	}
}

// Problem gives the ICMP or ICMPv6 error that Linux sends for a packet that
// Parse, CompileOptions or FollowSourceRoute refused for reason r; rest is BuildICMPError's. ok is
// false where none is sent.
func (p *Packet) Problem(r Reason) (typ, code uint8, rest uint32, ok bool) {
	switch r {
	case DropBadOptions:
		return 12, 0, uint32(p.errAt) << 24, true
	case DropSourceRt:
		return 12, 0, uint32(p.errAt) << 24, p.errAt != 0
	case Drop6UnknownOpt:
		return 4, 2, uint32(p.errAt), p.errAt != 0
	case Drop6BadJumbo:
		return 4, 0, uint32(p.errAt), p.errAt != 0
	}
	return 0, 0, 0, false
}

// Hop-by-hop option types and Linux's limit on their number.
const (
	tlvPad1    = 0
	tlvPadN    = 1
	tlvAlert   = 5
	tlvCalipso = 7
	tlvIOAM    = 49
	tlvJumbo   = 194
	maxOptions = 8
)

// hopOptions checks the hop-by-hop header as ipv6_parse_hopopts does.
func (p *Packet) hopOptions(b []byte) Reason {
	if len(b) < 48 {
		return Drop6BadOptions
	}
	end := 40 + (int(b[41])+1)*8
	if end > len(b) {
		return Drop6BadOptions
	}
	pad, count := 0, 0
	for at := 42; at < end; {
		if b[at] == tlvPad1 {
			if pad++; pad > 7 {
				return Drop6BadOptions
			}
			at++
			continue
		}
		if at+2 > end {
			return Drop6BadOptions
		}
		n := int(b[at+1]) + 2
		if at+n > end {
			return Drop6BadOptions
		}
		if b[at] == tlvPadN {
			if pad += n; pad > 7 {
				return Drop6BadOptions
			}
			for _, x := range b[at+2 : at+n] {
				if x != 0 {
					return Drop6BadOptions
				}
			}
			at += n
			continue
		}
		if count++; count > maxOptions {
			return Drop6BadOptions
		}
		if r := p.hopOption(b, at, n); r != 0 {
			return r
		}
		pad = 0
		at += n
	}
	return 0
}

func (p *Packet) hopOption(b []byte, at, n int) Reason {
	switch b[at] {
	case tlvAlert:
		if n != 4 {
			return Drop6BadOptions
		}
	case tlvIOAM:
		if at&3 != 0 {
			return Drop6BadOptions
		}
	case tlvCalipso: // no domain of interpretation is configured
		return Drop6BadOptions
	case tlvJumbo:
		if n != 6 || at&3 != 2 {
			return Drop6BadOptions
		}
		if be.Uint32(b[at+2:]) <= 65535 {
			p.errAt = uint16(at + 2)
			return Drop6BadJumbo
		}
		if be.Uint16(b[4:]) != 0 {
			p.errAt = uint16(at)
			return Drop6BadJumbo
		}
		return Drop6Truncated // larger than any frame here
	default:
		switch b[at] >> 6 {
		case 1:
			return Drop6UnknownOpt
		case 3:
			if b[24] == 0xff {
				return Drop6UnknownOpt
			}
			fallthrough
		case 2:
			p.errAt = uint16(at)
			return Drop6UnknownOpt
		}
	}
	return 0
}
