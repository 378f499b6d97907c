package conntrack

import (
	"bytes"
	"strconv"

	"sluice/packet"
)

// amandaTimeout is how long a backup server may wait for its client, seconds.
const amandaTimeout = 300

// helpAmanda reads a client's answer "CONNECT DATA port MESG port INDEX port":
// the server connects to those ports.
func helpAmanda(c *helpCall) bool {
	if c.dir == Original {
		return true
	}
	c.refresh(amandaTimeout)
	data, _ := udpPayload(c.p)
	start := bytes.Index(data, []byte("CONNECT "))
	if start < 0 {
		return true
	}
	start += len("CONNECT ")
	stop := bytes.IndexByte(data[start:], '\n')
	if stop < 0 {
		return true
	}
	stop += start
	ok := true
	for _, word := range []string{"DATA ", "MESG ", "INDEX ", "STATE "} {
		// A port that was written anew may have moved the line's end, which is not looked for again.
		data, _ = udpPayload(c.p)
		end := min(stop, len(data))
		off := bytes.Index(data[min(start, end):end], []byte(word))
		if off < 0 {
			continue
		}
		off += start + len(word)
		v, n := decimal(data[off:min(off+5, end)])
		if uint16(v) == 0 {
			break
		}
		x := c.expectation(packet.ProtoTCP, &c.e.orig.Src, c.e.orig.Dst, uint16(v))
		ok = c.announce(x, off, n, backupPort)
	}
	return ok
}

func backupPort(b []byte, x *Expectation) []byte {
	return strconv.AppendUint(b, uint64(x.Tuple.DstPort), 10)
}
