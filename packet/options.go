package packet

// IPOptions is what ip_options_compile finds in an IPv4 header. Offsets count
// from the network header, 0: not there.
type IPOptions struct {
	SourceRoute uint8 // LSRR or SSRR
	Strict      bool  // SSRR
	RecordRoute uint8
	Timestamp   uint8
	RouterAlert bool
	CIPSO       uint8

	recordAddr bool // there is room for our address in RecordRoute
	stampTime  bool
	stampAddr  bool
	stampHere  bool // a prespecified address: only if it is one of ours
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

// CompileOptions checks the IPv4 options as Linux does once PREROUTING is done.
// It returns 0 (also for a packet without options) or DropBadOptions, whose
// pointer Problem knows. Nothing in the packet changes.
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
			// What follows is overwritten with END by Linux; nothing reads it here.
			return 0
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
				o.RecordRoute, o.recordAddr = uint8(at), int(opt[2]) <= n
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
			if o.CIPSO != 0 {
				bad = 0
			} else {
				o.CIPSO = uint8(at)
			}
		}
		if bad >= 0 {
			return p.badOption(at + bad)
		}
		at += n
	}
	return 0
}

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
	if ptr := int(opt[2]); ptr <= n {
		if ptr+3 > n {
			return 2
		}
		switch opt[3] & 15 {
		case 0: // timestamps only
			o.stampTime = true
		case 1: // address and timestamp
			if ptr+7 > n {
				return 2
			}
			o.stampTime, o.stampAddr = true, true
		case 3: // prespecified addresses
			if ptr+7 > n {
				return 2
			}
			o.stampTime, o.stampHere = true, true
		default:
			return 3
		}
	} else if opt[3]>>4 == 15 { // the overflow counter would overflow
		return 3
	}
	o.Timestamp = uint8(at)
	return -1
}

func (p *Packet) badOption(at int) Reason {
	p.errAt = uint16(at)
	return DropBadOptions
}

// Problem gives the ICMP or ICMPv6 error that Linux sends for a packet that
// Parse or CompileOptions refused for reason r; rest is BuildICMPError's. ok is
// false where none is sent.
func (p *Packet) Problem(r Reason) (typ, code uint8, rest uint32, ok bool) {
	switch r {
	case DropBadOptions:
		return 12, 0, uint32(p.errAt) << 24, true
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
