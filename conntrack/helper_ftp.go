package conntrack

import (
	"net/netip"
	"strconv"

	"sluice/packet"
)

// ftpNotation is how an address is written.
type ftpNotation uint8

const (
	ftpPort ftpNotation = iota // PORT h1,h2,h3,h4,p1,p2 and 227 … h1,h2,h3,h4,p1,p2
	ftpEprt                    // EPRT |1|addr|port|
	ftpEpsv                    // 229 … |||port|
)

// ftpForm is one kind of message that announces a data connection.
type ftpForm struct {
	word string
	skip byte // the announcement begins after this; 0: right after word
	form ftpNotation
	read func(b []byte, family uint8) (ftpAddr, int, int)
}

// ftpAddr is what was announced. An extended passive reply has no address: it
// is the sender's.
type ftpAddr struct {
	addr    [16]byte
	hasAddr bool
	port    uint16
}

var ftpForms = [2][2]ftpForm{
	Original: {
		{"PORT", ' ', ftpPort, func(b []byte, family uint8) (ftpAddr, int, int) { a, n := readPort(b, '\r', family); return a, 0, n }},
		{"EPRT", ' ', ftpEprt, func(b []byte, family uint8) (ftpAddr, int, int) { a, n := readEprt(b, family); return a, 0, n }},
	},
	Reply: {
		{"227 ", 0, ftpPort, readPasv},
		{"229 ", '(', ftpEpsv, func(b []byte, family uint8) (ftpAddr, int, int) { a, n := readEpsv(b); return a, 0, n }},
	},
}

// helpFTP looks for PORT, EPRT and the replies 227 and 229 (RFC 959, 1123,
// 2428) at the beginning of a line, which is where a segment begins whose
// predecessor ended one.
func helpFTP(c *helpCall) bool {
	data, _, seq := tcpPayload(c.p)
	ext := c.w.t.extOf(c.e)
	if data == nil || ext == nil || !c.established() {
		return true
	}
	next := seq + uint32(len(data))
	newline := data[len(data)-1] == '\n'
	c.e.lock()
	atStart := ext.lineStarts(c.dir, seq)
	c.e.unlock()
	ok := true
	if atStart {
		ok = c.announced(data)
	}
	if ok && newline {
		c.e.lock()
		ext.lineEnds(c.dir, next)
		c.e.unlock()
	}
	return ok
}

// announced acts on an announcement at the start of data; false: drop.
func (c *helpCall) announced(data []byte) bool {
	family := c.e.orig.Family
	for i := range ftpForms[c.dir] {
		f := &ftpForms[c.dir][i]
		off, n, a, found := f.find(data, family)
		switch found {
		case 0:
			continue
		case -1:
			return false // half an announcement: the rest would pass unseen
		}
		src := c.e.Tuple(c.dir).Src
		if !a.hasAddr {
			a.addr = src
		}
		if a.addr != src {
			return true // speaks of a third host: no business of ours
		}
		back := c.e.Tuple(c.dir.Other())
		x := c.expectation(packet.ProtoTCP, &back.Src, back.Dst, a.port)
		return c.announce(x, off, n, f.form.write)
	}
	return true
}

// write appends an address and port in the notation (RFC 959, 2428). IPv6
// addresses are written in full, as Linux writes them.
func (form ftpNotation) write(b []byte, x *Expectation) []byte {
	addr, port := &x.Tuple.Dst, x.Tuple.DstPort
	dec := func(v uint64) { b = strconv.AppendUint(b, v, 10) }
	switch form {
	case ftpPort:
		for _, v := range addr[:4] {
			dec(uint64(v))
			b = append(b, ',')
		}
		dec(uint64(port >> 8))
		b = append(b, ',')
		dec(uint64(port & 0xff))
	case ftpEprt:
		if x.Tuple.Family == packet.IPv4 {
			b = append(b, "|1|"...)
			b = x.Tuple.DstAddr().AppendTo(b)
		} else {
			b = append(b, "|2|"...)
			b = append(b, x.Tuple.DstAddr().StringExpanded()...)
		}
		b = append(b, '|')
		dec(uint64(port))
		b = append(b, '|')
	case ftpEpsv:
		b = append(b, "|||"...)
		dec(uint64(port))
		b = append(b, '|')
	}
	return b
}

// find: 1 with the announcement's place in data, 0 if data is something else,
// -1 if it may be the beginning of one.
func (f *ftpForm) find(data []byte, family uint8) (off, n int, a ftpAddr, found int) {
	k := min(len(data), len(f.word))
	for i := range k {
		if upper(data[i]) != f.word[i] {
			return 0, 0, a, 0
		}
	}
	if len(data) <= len(f.word) {
		return 0, 0, a, -1
	}
	i := len(f.word)
	if f.skip != 0 {
		for ; data[i] != f.skip; i++ {
			if i == len(data)-1 {
				return 0, 0, a, -1
			}
		}
		i++
	}
	a, lead, n := f.read(data[i:], family)
	if n == 0 {
		return 0, 0, a, -1
	}
	return i + lead, n, a, 1
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 32
	}
	return c
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// numbers reads len(out) decimal numbers separated by sep up to term (0: up to
// anything) and gives the length before it; 0 if there is something else.
func numbers(b []byte, out []uint32, sep, term byte) int {
	i := 0
	for n, c := range b {
		switch {
		case digit(c):
			out[i] = out[i]*10 + uint32(c-'0')
		case c == sep && i < len(out)-1:
			i++
		case (c == term || term == 0) && i == len(out)-1:
			return n
		default:
			return 0
		}
	}
	return 0
}

// readPort: h1,h2,h3,h4,p1,p2.
func readPort(b []byte, term byte, family uint8) (a ftpAddr, n int) {
	var v [6]uint32
	if n = numbers(b, v[:], ',', term); n == 0 {
		return a, 0
	}
	ip := v[0]<<24 | v[1]<<16 | v[2]<<8 | v[3]
	be.PutUint32(a.addr[:], ip)
	a.hasAddr = family == packet.IPv4 // on IPv6 the connection's own address holds
	a.port = uint16(v[4]<<8 | v[5])
	return a, n
}

// readPasv: the numbers begin at the first digit, in parentheses or not (RFC 1123 4.1.2.6).
func readPasv(b []byte, family uint8) (ftpAddr, int, int) {
	for i, c := range b {
		if digit(c) {
			a, n := readPort(b[i:], 0, family)
			return a, i, n
		}
	}
	return ftpAddr{}, 0, 0
}

// readEprt: |1|132.235.1.2|6275| or |2|1080::8:800:200C:417A|5282|.
func readEprt(b []byte, family uint8) (a ftpAddr, n int) {
	if len(b) <= 3 {
		return a, 0
	}
	delim := b[0]
	if digit(delim) || delim < 33 || delim > 126 || b[2] != delim {
		return a, 0
	}
	if family == packet.IPv4 && b[1] != '1' || family == packet.IPv6 && b[1] != '2' {
		return a, 0
	}
	if b[1] == '1' {
		var v [4]uint32
		if n = numbers(b[3:], v[:], '.', delim); n == 0 {
			return a, 0
		}
		be.PutUint32(a.addr[:], v[0]<<24|v[1]<<16|v[2]<<8|v[3])
	} else {
		for n = 0; n < 46 && 3+n < len(b) && b[3+n] != delim; n++ {
		}
		ip, err := netip.ParseAddr(string(b[3 : 3+n]))
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return a, 0
		}
		a.addr = ip.As16()
	}
	a.hasAddr = true
	a.port, n = readDelimited(b, 3+n+1, delim)
	return a, n
}

// readEpsv: |||6446|.
func readEpsv(b []byte) (a ftpAddr, n int) {
	if len(b) <= 3 {
		return a, 0
	}
	delim := b[0]
	if digit(delim) || delim < 33 || delim > 126 || b[1] != delim || b[2] != delim {
		return a, 0
	}
	a.port, n = readDelimited(b, 3, delim)
	return a, n
}

// readDelimited reads a port from b[at:] up to delim and gives the length of
// all that was read.
func readDelimited(b []byte, at int, delim byte) (port uint16, n int) {
	for i := at; i < len(b); i++ {
		switch c := b[i]; {
		case c == delim:
			if port == 0 {
				return 0, 0
			}
			return port, i + 1
		case digit(c):
			port = port*10 + uint16(c-'0')
		default:
			return 0, 0
		}
	}
	return 0, 0
}

// lineStarts: seq is where a line that ended was followed.
func (x *extension) lineStarts(d Dir, seq uint32) bool {
	for i := range x.nlCount[d] {
		if x.nl[d][i] == seq {
			return true
		}
	}
	return false
}

// lineEnds remembers the two newest places where a line ended.
func (x *extension) lineEnds(d Dir, seq uint32) {
	if x.lineStarts(d, seq) {
		return
	}
	if x.nlCount[d] < 2 {
		x.nl[d][x.nlCount[d]] = seq
		x.nlCount[d]++
		return
	}
	oldest := 1
	if before(x.nl[d][0], x.nl[d][1]) {
		oldest = 0
	}
	if after(seq, x.nl[d][oldest]) {
		x.nl[d][oldest] = seq
	}
}
