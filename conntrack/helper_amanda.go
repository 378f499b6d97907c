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
		ok = c.expectBackup(off, n, uint16(v))
	}
	return ok
}

// expectBackup expects the server at a port that the client has named in n bytes at off.
func (c *helpCall) expectBackup(off, n int, port uint16) bool {
	x := c.expectation(packet.ProtoTCP, &c.e.orig.Src, c.e.orig.Dst, port)
	if !c.translated {
		return c.expect(x)
	}
	x.Follow, x.NATDir, x.SavedPort = FollowMaster, Reply, port
	if !c.w.ExpectPort(c.e, c.idx, x) {
		return false
	}
	var text [8]byte
	if c.mangle(off, n, strconv.AppendUint(text[:0], uint64(x.Tuple.DstPort), 10)) {
		return true
	}
	c.w.unexpect(x)
	return false
}
