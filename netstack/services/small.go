package services

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

// streams serves one TCP connection each, until it returns.
var streams = map[string]func(net.Conn){
	Echo: func(c net.Conn) {
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64<<10)); err == nil {
			linger(c)
		}
	},
	Discard: func(c net.Conn) { io.Copy(io.Discard, c) },
	Chargen: func(c net.Conn) {
		pattern := make([]byte, 0, chargenTimes*chargenLine*chargenChars)
		for i := range chargenTimes * chargenChars {
			pattern = appendLine(pattern, i)
		}
		for {
			if _, err := c.Write(pattern); err != nil {
				return
			}
		}
	},
	Daytime: func(c net.Conn) { c.Write(daytime()) },
	Time:    func(c net.Conn) { c.Write(seconds()) },
}

// datagrams makes the answer to one datagram each; discard has none.
var datagrams = map[string]func(in []byte) []byte{
	Echo:    func(in []byte) []byte { return in },
	Chargen: func([]byte) []byte { return appendLine(nil, int(time.Now().Unix()%chargenChars)) },
	Daytime: func([]byte) []byte { return daytime() },
	Time:    func([]byte) []byte { return seconds() },
}

// linger waits for the other side's end, so that closing does not reset what it
// has not read yet.
func linger(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		io.Copy(io.Discard, c)
	}
}

const (
	chargenChars = 95 // ' ' to '~'
	chargenLine  = 74 // 72 characters, CR, LF
	chargenTimes = 18 // the pattern's repetitions in one write, 126 KB
)

// appendLine appends the i-th line of RFC 864's pattern.
func appendLine(b []byte, i int) []byte {
	for j := range chargenLine - 2 {
		b = append(b, ' '+byte((i+j)%chargenChars))
	}
	return append(b, '\r', '\n')
}

func daytime() []byte {
	return []byte(time.Now().UTC().Format("Monday, January 2, 2006 15:04:05-MST") + "\r\n")
}

// seconds is the time since 1900 (RFC 868).
func seconds() []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(time.Now().Unix()+2208988800))
}
