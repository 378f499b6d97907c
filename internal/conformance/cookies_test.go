package conformance

import (
	"encoding/binary"

	"sluice/packet"
)

// cookies makes alike what SYNPROXY takes from a secret: the sequence numbers of
// its SYN/ACKs, the time in their timestamps, and all that follows from them.
type cookies struct{ seqs, times []uint32 }

// near is how far from a cookie a number still counts as made from it: little,
// so that chance does not make it look so.
const near = 1 << 10

// all is plain for the frames that left after a step.
func (c *cookies) all(in []sent) (out []sent) {
	for _, x := range in {
		x.b = c.plain(x.b)
		out = append(out, x)
	}
	return out
}

// plain is a frame whose numbers that come from the n-th cookie count from n<<20.
func (c *cookies) plain(b []byte) []byte {
	p := reparse(b)
	if p == nil || p.Proto != packet.ProtoTCP || p.TCPHeaderLen() == 0 || !p.VerifyL4() {
		return b
	}
	be := binary.BigEndian
	t := p.Transport()
	ts := timestampAt(t)
	if t[13]&0x17 == packet.TCPSyn|packet.TCPAckFlag && p.TCPWindow() == 0 {
		c.seqs = append(c.seqs, p.TCPSeq())
		if ts > 0 {
			c.times = append(c.times, be.Uint32(t[ts:])&^0x3f)
		}
	}
	for _, at := range []int{4, 8} {
		for i, x := range c.seqs {
			if d := be.Uint32(t[at:]) - x + 1; d < near {
				be.PutUint32(t[at:], uint32(i+1)<<20+d)
				break
			}
		}
	}
	if ts > 0 {
		c.plainTime(t[ts:])
		c.plainTime(t[ts+4:])
	}
	p.FixChecksums()
	return p.Bytes()
}

// plainTime leaves of a timestamp that comes from a cookie's the bits that do
// not tell the time. The ACK to the server has one that was moved twice.
func (c *cookies) plainTime(b []byte) {
	v := binary.BigEndian.Uint32(b)
	for _, x := range c.times {
		if v-x < near || v+x < near {
			binary.BigEndian.PutUint32(b, 1<<20|v&0x3f)
			return
		}
	}
}

// timestampAt is where a TCP header's timestamp is; 0: it has none.
func timestampAt(t []byte) int {
	for i := 20; i+1 < int(t[12]>>4)*4; {
		switch t[i] {
		case 0:
			return 0
		case 1:
			i++
			continue
		case 8:
			return i + 2
		}
		if t[i+1] < 2 {
			return 0
		}
		i += int(t[i+1])
	}
	return 0
}
