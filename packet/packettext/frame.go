// Package packettext makes frames of one-line descriptions, and descriptions of
// frames. It computes checksums in the most obvious way, on its own, so that
// package packet can be held against it.
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
package packettext

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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

// Example is a description that can be read, for messages.
const Example = "tcp 10.0.1.2:4000 > 203.0.113.9:80 S"

// Error is a description that cannot be read: the word at byte Off, and what
// belongs there.
type Error struct {
	Text string // the whole description
	Off  int
	Word string // "": the description ends there
	Want string
}

func (e *Error) Error() string {
	what := "the description ends"
	if e.Word != "" {
		what = fmt.Sprintf("%q", e.Word)
	}
	return fmt.Sprintf("%q, column %d: %s: want %s; for example: %s", e.Text, e.Off+1, what, e.Want, Example)
}

// Frame makes the network packet of a description. The error is an *Error.
func Frame(desc string) ([]byte, error) {
	f, err := parse(desc)
	if err != nil {
		return nil, err
	}
	return f.bytes(desc)
}

func (f *frame) bytes(desc string) ([]byte, error) {
	b := f.network(f.transport())
	if len(b) > 65535 {
		return nil, &Error{desc, 0, desc, fmt.Sprintf("a packet of at most 65535 bytes, not %d", len(b))}
	}
	return b, nil
}

// Fragments makes a description's packet and cuts its payload into IP fragments
// of the given sizes (bytes, multiples of 8 but for the last); what is left
// over is the last one. ipid is their identification.
func Fragments(desc string, sizes ...int) ([][]byte, error) {
	f, err := parse(desc)
	if err != nil {
		return nil, err
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

// word is one word of a description and where it begins.
type word struct {
	text string
	off  int
}

// parser reads one description.
type parser struct {
	desc string
	frame
}

func (d *parser) fail(w word, want string, a ...any) error {
	return &Error{d.desc, w.off, w.text, fmt.Sprintf(want, a...)}
}

func parse(desc string) (*frame, error) {
	d := &parser{desc: desc, frame: frame{frag: -1, ttl: 64, win: 65535, checksum: -1, length: -1}}
	head, about, hasAbout := strings.Cut(desc, " about ")
	w, open := words(head)
	if open >= 0 {
		return nil, d.fail(word{head[open:], open}, "a second quote that ends the text")
	}
	at := func(i int) word {
		if i < len(w) {
			return w[i]
		}
		return word{"", len(head)}
	}
	p, ok := protocols[at(0).text]
	if !ok {
		n, err := strconv.ParseUint(at(0).text, 0, 8)
		if err != nil {
			return nil, d.fail(at(0), "a protocol: %s or a number", strings.Join(protocolNames(), ", "))
		}
		p = uint8(n)
	}
	d.proto = p
	if d.src, d.sport, ok = endpoint(at(1).text); !ok {
		return nil, d.fail(at(1), "the source: ADDRESS, ADDRESS:PORT or [IPV6]:PORT")
	}
	if at(2).text != ">" {
		return nil, d.fail(at(2), "> between source and destination")
	}
	if d.dst, d.dport, ok = endpoint(at(3).text); !ok {
		return nil, d.fail(at(3), "the destination: ADDRESS, ADDRESS:PORT or [IPV6]:PORT")
	}
	if d.src.Is4() != d.dst.Is4() {
		return nil, d.fail(at(3), "an address of the source's family")
	}
	if d.proto == 1 {
		d.typ = 8
	} else if d.proto == 58 {
		d.typ = 128
	}
	if hasAbout {
		inner, err := Frame(about)
		if err != nil {
			e := err.(*Error)
			return nil, d.fail(word{e.Word, len(head) + len(" about ") + e.Off}, "%s", e.Want)
		}
		d.payload = inner
	}
	for _, x := range w[4:] {
		if err := d.word(x); err != nil {
			return nil, err
		}
	}
	return &d.frame, nil
}

func protocolNames() []string {
	var out []string
	for n := range protocols {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// words splits at spaces outside double quotes; open is where an unended quote begins, or -1.
func words(s string) (out []word, open int) {
	start := -1
	open = -1
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s) || s[i] == ' ' && open < 0:
			if start >= 0 {
				out = append(out, word{s[start:i], start})
			}
			start = -1
			continue
		case s[i] == '"' && open < 0:
			open = i
		case s[i] == '"':
			open = -1
		}
		if start < 0 {
			start = i
		}
	}
	return out, open
}

func endpoint(s string) (netip.Addr, uint16, bool) {
	a, err := netip.ParseAddr(s)
	if err == nil {
		return a, 0, a.Zone() == ""
	}
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr(), ap.Port(), err == nil && ap.Addr().Zone() == ""
}

const flagLetters = "FSRPAUEC"

const knownWords = "TCP flags (letters of FSRPAUEC, or .), len= data= hex= seq= ack= win= urg= mss= id= type= rest= ttl= tos= ipid= df frag= opts= tcpopts= ext= flow= nocsum badcsum badip, or about DESCRIPTION"

// limits are the largest values of the words that take a number.
var limits = map[string]uint64{
	"len": 65535, "seq": 1<<32 - 1, "ack": 1<<32 - 1, "win": 65535, "urg": 65535, "mss": 65535, "id": 65535, "rest": 1<<32 - 1,
	"ttl": 255, "tos": 255, "ipid": 1<<32 - 1, "flow": 1<<20 - 1, "csum": 65535, "l4len": 65535,
}

func (d *parser) word(w word) error {
	f := &d.frame
	key, val, has := strings.Cut(w.text, "=")
	if !has {
		switch w.text {
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
			for _, c := range w.text {
				i := strings.IndexRune(flagLetters, c)
				if i < 0 {
					return d.fail(w, "%s", knownWords)
				}
				f.flags |= 1 << i
			}
		}
		return nil
	}
	value := word{val, w.off + len(key) + 1}
	octets := func(most int) ([]byte, error) {
		b, err := hex.DecodeString(val)
		if err != nil || len(b) > most {
			return nil, d.fail(value, "at most %d octets in hex, two digits each", most)
		}
		return b, nil
	}
	var err error
	switch key {
	case "data":
		f.payload = []byte(strings.Trim(val, `"`))
		return nil
	case "hex":
		f.payload, err = octets(65535)
		return err
	case "opts":
		f.opts, err = octets(40)
		return err
	case "tcpopts":
		f.tcpopts, err = octets(40)
		return err
	case "ext":
		f.ext = strings.Split(val, ",")
		for _, x := range f.ext {
			if _, ok := extensions[x]; !ok {
				return d.fail(value, "IPv6 extension headers: hop, dest, route or ah, with commas between")
			}
		}
		return nil
	case "type":
		t, c, hasCode := strings.Cut(val, "/")
		n, err := strconv.ParseUint(t, 0, 8)
		var k uint64
		if err == nil && hasCode {
			k, err = strconv.ParseUint(c, 0, 8)
		}
		if err != nil {
			return d.fail(value, "an ICMP type, or TYPE/CODE, each up to 255")
		}
		f.typ, f.code = uint8(n), uint8(k)
		return nil
	case "frag":
		val, f.more = strings.CutSuffix(val, "+")
		if f.frag, err = strconv.Atoi(val); err != nil || f.frag < 0 || f.frag > 65528 || f.frag%8 != 0 {
			return d.fail(value, "a fragment offset in bytes, a multiple of 8, with + where more follow")
		}
		return nil
	}
	most, known := limits[key]
	if !known {
		return d.fail(w, "%s", knownWords)
	}
	n, err := strconv.ParseUint(val, 0, 64)
	if err != nil || n > most {
		return d.fail(value, "a number up to %d", most)
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
	}
	return nil
}
