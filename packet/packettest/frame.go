// Package packettest makes frames for tests from one-line descriptions, and
// descriptions from frames. It computes checksums in the most obvious way, on
// its own, so that it can be held against package packet.
//
//	tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=1 ttl=64
//	udp [2001:db8::1]:53 > [2001:db8::2]:53 data="hello"
//	icmp 10.0.0.2 > 9.9.9.9 type=8 id=7 seq=1 len=56
//	icmp 10.0.0.1 > 10.0.0.2 type=3/4 rest=1400 about udp 10.0.0.2:5000 > 9.9.9.9:53
//	udp 10.0.0.2:5000 > 9.9.9.9:53 frag=1480+ ipid=77 len=1480
//
// Words: protocol (tcp udp udplite sctp dccp icmp icmp6, or a number), the two
// ends, then in any order: TCP flags as letters of FSRPAUEC; len=N payload
// bytes (counting up) or data="text" or hex=0a0b; seq ack win urg mss; id seq
// type=T/C rest=N (ICMP); ttl tos ipid df; frag=OFFSET with + for more
// fragments (ipid is then also the IPv6 fragment's identification); opts=HEX
// (IPv4 options, TCP options are tcpopts=HEX); ext=hop,dest,route (IPv6);
// flow=N; nocsum (UDP 0), badcsum, badip; about DESCRIPTION, last.
package packettest

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"sluice/packet"
)

// frame is a description taken apart.
type frame struct {
	proto            uint8
	src, dst         netip.Addr
	sport, dport     uint16
	flags            uint8
	seq, ack, rest   uint32
	win, urg, mss    uint16
	typ, code        uint8
	id               uint16
	hasRest          bool
	payload          []byte
	ttl, tos         uint8
	ipid             uint32
	df               bool
	frag             int // offset, bytes; -1: none
	more             bool
	opts, tcpopts    []byte
	ext              []string
	flow             uint32
	nocsum, badcsum  bool
	badip            bool
	checksum, length int // of the transport header; -1: right ones
}

var protocols = map[string]uint8{
	"icmp": 1, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "icmp6": 58, "sctp": 132, "udplite": 136,
}

// New makes a parsed packet of a description; a bad description fails the test.
func New(t testing.TB, desc string) *packet.Packet {
	t.Helper()
	p := Raw(t, desc)
	if r := p.Parse(); r != 0 {
		t.Fatalf("%s: %v", desc, r)
	}
	return p
}

// Raw is New without Parse.
func Raw(t testing.TB, desc string) *packet.Packet {
	t.Helper()
	b, err := Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	p := packet.New()
	p.SetBytes(b)
	return p
}

// MustFrame is Frame for descriptions known to be good.
func MustFrame(desc string) []byte {
	b, err := Frame(desc)
	if err != nil {
		panic(err)
	}
	return b
}

// Frame makes the network packet of a description.
func Frame(desc string) ([]byte, error) {
	f, err := parse(desc)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", desc, err)
	}
	return f.network(f.transport()), nil
}

// Fragments makes a description's packet and cuts its payload into IP fragments
// of the given sizes (bytes, multiples of 8 but for the last); what is left
// over is the last one. ipid is their identification.
func Fragments(desc string, sizes ...int) ([][]byte, error) {
	f, err := parse(desc)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", desc, err)
	}
	t := f.transport()
	var out [][]byte
	for at, i := 0, 0; at < len(t); i++ {
		n := len(t) - at
		if i < len(sizes) {
			n = min(n, sizes[i])
		}
		g := *f
		g.frag, g.more = at, at+n < len(t)
		out = append(out, g.network(t[at:at+n]))
		at += n
	}
	return out, nil
}

func parse(desc string) (*frame, error) {
	f := &frame{frag: -1, ttl: 64, win: 65535, checksum: -1, length: -1}
	desc, about, hasAbout := strings.Cut(desc, " about ")
	w, err := words(desc)
	if err != nil {
		return nil, err
	}
	if len(w) < 4 || w[2] != ">" {
		return nil, fmt.Errorf("want: PROTO SRC > DST …")
	}
	p, ok := protocols[w[0]]
	if !ok {
		n, err := strconv.ParseUint(w[0], 0, 8)
		if err != nil {
			return nil, fmt.Errorf("unknown protocol %q", w[0])
		}
		p = uint8(n)
	}
	f.proto = p
	if f.src, f.sport, err = endpoint(w[1]); err != nil {
		return nil, err
	}
	if f.dst, f.dport, err = endpoint(w[3]); err != nil {
		return nil, err
	}
	if f.src.Is4() != f.dst.Is4() {
		return nil, fmt.Errorf("two address families")
	}
	if f.proto == 1 {
		f.typ = 8
	} else if f.proto == 58 {
		f.typ = 128
	}
	if hasAbout {
		if f.payload, err = Frame(about); err != nil {
			return nil, err
		}
	}
	for _, x := range w[4:] {
		if err := f.word(x); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// words splits at spaces outside double quotes.
func words(s string) ([]string, error) {
	var out []string
	quoted, start := false, -1
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s) || s[i] == ' ' && !quoted:
			if start >= 0 {
				out = append(out, s[start:i])
			}
			start = -1
			continue
		case s[i] == '"':
			quoted = !quoted
		}
		if start < 0 {
			start = i
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is open")
	}
	return out, nil
}

func endpoint(s string) (netip.Addr, uint16, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, 0, nil
	}
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr(), ap.Port(), err
}

const flagLetters = "FSRPAUEC"

func (f *frame) word(x string) error {
	key, val, has := strings.Cut(x, "=")
	if !has {
		switch x {
		case "df":
			f.df = true
		case "nocsum":
			f.nocsum = true
		case "badcsum":
			f.badcsum = true
		case "badip":
			f.badip = true
		case ".":
		default:
			for _, c := range x {
				i := strings.IndexRune(flagLetters, c)
				if i < 0 {
					return fmt.Errorf("unknown word %q", x)
				}
				f.flags |= 1 << i
			}
		}
		return nil
	}
	var err error
	switch key {
	case "data":
		f.payload = []byte(strings.Trim(val, `"`))
		return nil
	case "hex":
		f.payload, err = hex.DecodeString(val)
		return err
	case "opts":
		f.opts, err = hex.DecodeString(val)
		return err
	case "tcpopts":
		f.tcpopts, err = hex.DecodeString(val)
		return err
	case "ext":
		f.ext = strings.Split(val, ",")
		return nil
	case "type":
		t, c, hasCode := strings.Cut(val, "/")
		n, err := strconv.ParseUint(t, 0, 8)
		if err != nil {
			return err
		}
		f.typ = uint8(n)
		if hasCode {
			n, err = strconv.ParseUint(c, 0, 8)
			f.code = uint8(n)
		}
		return err
	case "frag":
		val, f.more = strings.CutSuffix(val, "+")
		f.frag, err = strconv.Atoi(val)
		return err
	}
	n, err := strconv.ParseUint(val, 0, 32)
	if err != nil {
		return fmt.Errorf("%s: %w", x, err)
	}
	switch key {
	case "len":
		f.payload = make([]byte, n)
		for i := range f.payload {
			f.payload[i] = byte(i)
		}
	case "seq":
		f.seq = uint32(n)
	case "ack":
		f.ack = uint32(n)
	case "win":
		f.win = uint16(n)
	case "urg":
		f.urg = uint16(n)
	case "mss":
		f.mss = uint16(n)
	case "id":
		f.id = uint16(n)
	case "rest":
		f.rest, f.hasRest = uint32(n), true
	case "ttl":
		f.ttl = uint8(n)
	case "tos":
		f.tos = uint8(n)
	case "ipid":
		f.ipid = uint32(n)
	case "flow":
		f.flow = uint32(n)
	case "csum":
		f.checksum = int(n)
	case "l4len":
		f.length = int(n)
	default:
		return fmt.Errorf("unknown word %q", x)
	}
	return nil
}
