package ext

import (
	"encoding/binary"

	"sluice/packet"
	"sluice/tables"
)

// IPv6 extension headers, as the matches for them look for them
// (ipv6_find_hdr).

const (
	headerHopByHop = 0
	headerRouting  = 43
	headerFragment = 44
	headerNone     = 59
	headerDestOpts = 60
	protoMobility  = 135
)

// findHeader gives the bytes from the first extension header of a kind to the
// end of the packet, if its first n bytes are there; nil: there is no such
// header. Where the headers cannot be followed, or this one is cut short, the
// packet is dropped.
func findHeader(c *tables.Context, p *packet.Packet, kind uint8, n int) []byte {
	b := p.Bytes()
	at, next := 40, b[6]
	for {
		found := next == kind
		if !packet.Extension(next) {
			return nil // also for the kinds that are no extension headers: nobody asks for those
		}
		if len(b) < at+2 || next == headerRouting && len(b) < at+4 || next == headerFragment && len(b) < at+4 {
			c.Hotdrop = true
			return nil
		}
		size := (int(b[at+1]) + 1) * 8
		switch next {
		case headerFragment:
			size = 8
			if binary.BigEndian.Uint16(b[at+2:])&^7 != 0 && !found {
				return nil
			}
		case packet.ProtoAH:
			size = (int(b[at+1]) + 2) * 4
		}
		if found {
			if len(b) < at+n {
				c.Hotdrop = true
				return nil
			}
			return b[at:]
		}
		next = b[at]
		at += size
	}
}
