package nat

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// hostPort is an address and port as SIP writes them.
func hostPort(a string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(a), port).String()
}

func bracketed(a string) string {
	if strings.Contains(a, ":") {
		return "[" + a + "]"
	}
	return a
}

// sipMessage makes a message of from's, a request or (first line given) an
// answer to one of to's.
func (x *talk) sipMessage(from, to *end, answer bool, first, method string, seq int, contact, body string) string {
	r := x.r
	proto := map[uint8]string{packet.ProtoTCP: "TCP", packet.ProtoUDP: "UDP"}[from.proto]
	me, peer := hostPort(from.addr, from.port), hostPort(from.peer, from.peerPort)
	via := me
	if answer {
		via = peer
	}
	if r.IntN(10) == 0 {
		via = hostPort(from.addr, pick(r, uint16(5062), 5060))
	}
	var h []string
	add := func(name, short, value string) {
		if r.IntN(6) == 0 && short != "" {
			name = short
		}
		if r.IntN(12) == 0 {
			value = strings.Replace(value, ";", "\r\n ;", 1)
		}
		h = append(h, name+pick(r, ": ", ":", " : ", ": ")+value)
	}
	params := ";branch=z9hG4bK" + fmt.Sprint(r.IntN(1000))
	if answer {
		params += pick(r, "", ";received="+from.peer, ";received="+from.addr) + pick(r, "", fmt.Sprint(";rport=", from.peerPort), ";rport=5060", ";rport=x")
	} else {
		params += pick(r, "", ";rport", ";maddr="+bracketed(from.addr))
	}
	add("Via", "v", "SIP/2.0/"+proto+" "+via+params)
	if r.IntN(4) == 0 {
		add("Via", "v", "SIP/2.0/"+proto+" "+peer+";branch=z9")
	}
	add("From", "f", "\"A\" <sip:alice@"+pick(r, me, "example.org", peer, bracketed(from.addr))+">;tag=1")
	add("To", "t", "<sip:bob@"+pick(r, peer, "example.org", me)+">")
	add("Call-ID", "i", "77@"+from.addr)
	add("CSeq", "", fmt.Sprint(seq, " ", method))
	if contact != "" {
		add("Contact", "m", contact)
	}
	if r.IntN(3) == 0 {
		add("Expires", "", fmt.Sprint(pick(r, 0, 60, 600)))
	}
	if body != "" {
		add("Content-Type", "c", "application/sdp")
	}
	if body != "" && r.IntN(15) > 0 || body == "" {
		add("Content-Length", "l", fmt.Sprint(len(body)+pick(r, 0, 0, 0, 0, 0, 0, 0, 1)))
	}
	eol := pick(r, "\r\n", "\r\n", "\r\n", "\n")
	if from.proto == packet.ProtoTCP {
		eol = "\r\n"
	}
	return first + eol + strings.Join(h, eol) + eol + eol + body
}

// sdpOf is a session description that names the streams of an end.
func (x *talk) sdpOf(e *end, port int) string {
	r := x.r
	v := "4"
	if strings.Contains(e.addr, ":") {
		v = "6"
	}
	addr := pick(r, e.addr, e.addr, e.addr, e.addr, e.peer)
	c := "c=IN IP" + v + " " + addr + "\r\n"
	b := "v=0\r\no=- 1 1 IN IP" + v + " " + addr + "\r\ns=x\r\n"
	session := r.IntN(4) > 0
	if session {
		b += c
	}
	b += "t=0 0\r\n"
	for i := range 1 + r.IntN(4) {
		p := port + 2*i
		if r.IntN(8) == 0 {
			p = pick(r, 0, 80, port, p+1, 70000)
		}
		b += fmt.Sprintf("m=%s %d RTP/AVP 0 8\r\n", pick(r, "audio", "audio", "audio", "video", "image", "application"), p)
		if !session || r.IntN(4) == 0 {
			b += c
		}
		if r.IntN(3) == 0 {
			b += "a=rtpmap:0 PCMU/8000\r\n"
		}
	}
	return b
}

func (x *talk) sip() {
	r := x.r
	tcp := x.client.proto == packet.ProtoTCP
	if tcp {
		x.connect()
	} else {
		x.server.peer, x.server.peerPort = "", 0
	}
	port := 4000 + 2*r.IntN(500)
	last := "REGISTER"
	for seq := 1; seq < 9; seq++ {
		from, to := &x.client, &x.server
		if x.server.peer != "" && r.IntN(3) == 0 {
			from, to = to, from
		}
		me, peer := hostPort(from.addr, from.port), hostPort(from.peer, from.peerPort)
		method := pick(r, "REGISTER", "INVITE", "INVITE", "INVITE", "UPDATE", "ACK", "BYE", "PRACK", "OPTIONS", "CANCEL")
		contact := pick(r, "", "<sip:a@"+me+">", "<sip:a@"+me+">;expires=60", "<sip:a@"+me+";transport=udp>;expires=60", "sip:"+me+", <sip:b@"+peer+">", "<sip:c@example.org>, <sip:d@"+me+">;expires=0",
			"<sip:a@"+bracketed(from.addr)+">", "<sip:"+hostPort(from.addr, 5061)+">;expires=100", "*")
		body := ""
		if method != "REGISTER" && method != "BYE" && r.IntN(4) > 0 {
			body = x.sdpOf(from, port)
			port += 20
		}
		msg := x.sipMessage(from, to, false, method+" sip:"+pick(r, peer, "bob@"+peer, "example.org", me)+" SIP/2.0", method, seq, contact, body)
		if tcp && r.IntN(6) == 0 {
			// A second one, whole: one that is cut off breaks Linux's count of what was added.
			more := x.sipMessage(from, to, false, "OPTIONS sip:"+peer+" SIP/2.0", "OPTIONS", seq, "", "")
			msg += regexp.MustCompile(`(?i)(content-length|\nl)( ?: ?)1`).ReplaceAllString(more, "${1}${2}0")
		} else {
			msg = spoil(r, msg)
		}
		if x.say(from, psh|ack, msg) == nil {
			if tcp {
				return
			}
			continue
		}
		last = method
		if r.IntN(3) > 0 && to.peer != "" {
			code := pick(r, "200 OK", "200 OK", "200 OK", "180 Ringing", "100 Trying", "404 Not Found", "302 x")
			// What the answer gives back is what was received.
			contact := pick(r, "", "<sip:a@"+hostPort(to.peer, to.peerPort)+">;expires=90", "<sip:z@example.org>;expires=9, <sip:a@"+hostPort(to.peer, to.peerPort)+">", "<sip:a@"+hostPort(to.peer, 5061)+">;expires=30")
			body := ""
			if last != "REGISTER" && r.IntN(2) == 0 {
				body = x.sdpOf(to, port)
				port += 20
			}
			msg := x.sipMessage(to, from, true, "SIP/2.0 "+code, last, seq, contact, body)
			if x.say(to, psh|ack, spoil(r, msg)) == nil && tcp {
				return
			}
		}
		if r.IntN(2) == 0 {
			x.streams()
		}
		if seq%3 == 0 {
			x.same()
		}
	}
}

// streams sends the first packets of some of what is expected, from whom it is expected.
func (x *talk) streams() {
	for _, e := range x.b.table.Expectations() {
		if e.Flags&conntrack.ExpectInactive != 0 || x.r.IntN(3) == 0 {
			continue
		}
		src := e.Tuple.SrcAddr()
		dev := ""
		for _, end := range []*end{&x.client, &x.server} {
			if src.String() == end.addr {
				dev = end.dev
			}
		}
		if dev == "" || strings.HasPrefix(e.Tuple.DstAddr().String(), "10.0.1.") == (dev == "c0") && !strings.Contains(src.String(), ":") {
			continue // it would leave by where it came from
		}
		if e.Tuple.DstAddr().String() == x.client.addr && dev == "c0" {
			continue
		}
		f := flowSpec{src: src.String(), dst: e.Tuple.DstAddr().String(), proto: e.Tuple.Proto, sport: uint16(6000 + x.r.IntN(100)), dport: e.Tuple.DstPort, flags: syn, seq: 7}
		if f.proto == packet.ProtoUDP {
			f.payload = []byte("\x80 rtp")
		}
		if out := x.pass(dev, f.build()); out != nil && x.r.IntN(2) == 0 {
			x.pass(opposite(dev), reply(out))
		}
	}
}

func TestSIPAsLinux(t *testing.T) {
	twin(t, both, packet.ProtoUDP, 5060, "sip", (*talk).sip)
}

func TestSIPOverTCPAsLinux(t *testing.T) {
	twin(t, both, packet.ProtoTCP, 5060, "sip", (*talk).sip)
}
