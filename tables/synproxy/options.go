package synproxy

import (
	"encoding/binary"

	"sluice/packet"
)

// TCP options that the proxy knows; Options.Has and rules name them by bits.
const (
	MSS uint8 = 1 << iota
	WScale
	SACKPerm
	Timestamp
	ECN // the ECE and CWR flags of a SYN
)

// Options is what a segment, or a rule, says of them.
type Options struct {
	Has    uint8
	WScale uint8
	MSS    uint16 // bytes

	tsVal, tsEcr uint32
}

// parse reads the options of a TCP header; false: it is not all there.
func (o *Options) parse(th []byte) bool {
	n := int(th[12]>>4) * 4
	if n < 20 || n > len(th) {
		return false
	}
	for b, rest := packet.NextTCPOption(th[20:n]); b != nil; b, rest = packet.NextTCPOption(rest) {
		switch kind, size := b[0], b[1]; {
		case kind == 2 && size == 4:
			o.MSS = binary.BigEndian.Uint16(b[2:])
			o.Has |= MSS
		case kind == 3 && size == 3:
			o.WScale = min(b[2], 14)
			o.Has |= WScale
		case kind == 8 && size == 10:
			o.tsVal, o.tsEcr = binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
			o.Has |= Timestamp
		case kind == 4 && size == 2:
			o.Has |= SACKPerm
		}
	}
	return true
}

// append writes them as options of a header, in Linux's order and padding.
func (o *Options) append(b []byte) []byte {
	be := binary.BigEndian
	if o.Has&MSS != 0 {
		b = be.AppendUint16(append(b, 2, 4), o.MSS)
	}
	switch {
	case o.Has&(Timestamp|SACKPerm) == Timestamp|SACKPerm:
		b = append(b, 4, 2, 8, 10)
	case o.Has&Timestamp != 0:
		b = append(b, 1, 1, 8, 10)
	case o.Has&SACKPerm != 0:
		b = append(b, 1, 1, 4, 2)
	}
	if o.Has&Timestamp != 0 {
		b = be.AppendUint32(be.AppendUint32(b, o.tsVal), o.tsEcr)
	}
	if o.Has&WScale != 0 {
		b = append(b, 1, 3, 3, o.WScale)
	}
	return b
}

// What a SYN asked for is kept in the low bits of the timestamp that answers it,
// for the client sends that back.
const (
	tsBits   = 1<<6 - 1
	tsNoWS   = 0xf // no window scaling
	tsSACK   = 1 << 4
	tsECN    = 1 << 5
	tsWSMask = 0xf
)

// keep makes of a SYN's options those of the SYN/ACK that answers it at now (ms).
func (o *Options) keep(rule *Options, now uint32) {
	o.tsEcr, o.tsVal = o.tsVal, now&^tsBits
	if o.Has&WScale != 0 {
		o.tsVal |= uint32(o.WScale)
		o.WScale = rule.WScale
	} else {
		o.tsVal |= tsNoWS
	}
	if o.Has&SACKPerm != 0 {
		o.tsVal |= tsSACK
	}
	if o.Has&ECN != 0 {
		o.tsVal |= tsECN
	}
}

// recover finds what keep has kept.
func (o *Options) recover() {
	if o.WScale = uint8(o.tsEcr & tsWSMask); o.WScale != tsNoWS {
		o.Has |= WScale
	}
	if o.tsEcr&tsSACK != 0 {
		o.Has |= SACKPerm
	}
	if o.tsEcr&tsECN != 0 {
		o.Has |= ECN
	}
}
