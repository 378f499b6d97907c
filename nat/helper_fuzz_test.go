package nat

import (
	"strings"
	"testing"

	"sluice/conntrack"
	"sluice/packet"
)

// FuzzHelpers: whatever a payload holds, it leaves with valid checksums and the
// sizes that its headers say, or not at all.
func FuzzHelpers(f *testing.F) {
	helpers := []struct {
		name  string
		proto uint8
		port  uint16
		seed  string
	}{
		{"ftp", packet.ProtoTCP, 21, "PORT 10,0,1,2,19,137\r\n"},
		{"tftp", packet.ProtoUDP, 69, "\x00\x01file\x00octet\x00"},
		{"irc", packet.ProtoTCP, 6667, "PRIVMSG bob :\x01DCC SEND file 167837954 5001 1234\x01\r\n"},
		{"amanda", packet.ProtoUDP, 10080, "CONNECT DATA 5001 MESG 5002 INDEX 5003\n"},
		{"pptp", packet.ProtoTCP, 1723, "\x00\x10\x00\x01\x1a+<M\x00\x05\x00\x00\x00\x00\x00\x00"},
		{"snmp", packet.ProtoUDP, 161, "0)\x02\x01\x01\x04\x06public\xa2\x1c\x02\x01\x01\x02\x01\x00\x02\x01\x000\x110\x0f\x06\x07+\x06\x01\x02\x01\x04\x14@\x04\n\x00\x01\x02"},
		{"sip", packet.ProtoUDP, 5060, "INVITE sip:bob@9.9.9.9:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.1.2:5000;rport\r\nFrom: <sip:a@10.0.1.2:5000>\r\nTo: <sip:b@9.9.9.9:5060>\r\nCSeq: 1 INVITE\r\n" +
			"Contact: <sip:a@10.0.1.2:5000>\r\nContent-Length: 78\r\n\r\nv=0\r\no=- 1 1 IN IP4 10.0.1.2\r\nc=IN IP4 10.0.1.2\r\nm=audio 4000 RTP/AVP 0\r\nm=video 4002 x\r\n"},
		{"sip", packet.ProtoTCP, 5060, "REGISTER sip:9.9.9.9 SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.1.2:5000\r\nCSeq: 1 REGISTER\r\nm: <sip:a@10.0.1.2:5000>;expires=60\r\nl: 0\r\n\r\n"},
	}
	for i, h := range helpers {
		f.Add(uint8(i), h.seed, h.seed)
		f.Add(uint8(i)|0x80, strings.Replace(h.seed, "REGISTER sip:9.9.9.9 SIP/2.0", "SIP/2.0 200 OK", 1), h.seed)
	}
	f.Fuzz(func(t *testing.T, which uint8, one, two string) {
		h := helpers[int(which&0x7f)%len(helpers)]
		if len(one) > 8000 || len(two) > 8000 {
			return
		}
		b := newBox(t)
		b.rule(hookPostrouting, snat("198.51.100.7", 0, 0, 0), out(b, b.s))
		tm := b.table.Template(conntrack.Template{Helper: b.table.HelperFor(h.name, packet.IPv4, h.proto)})
		b.raw = func(p *packet.Packet) { b.w.SetTemplate(p, tm) }
		client := flowSpec{src: "10.0.1.2", dst: "9.9.9.9", proto: h.proto, sport: 5000, dport: h.port}
		server := flowSpec{src: "9.9.9.9", dst: "198.51.100.7", proto: h.proto, sport: h.port, dport: 5000}
		pass := func(x flowSpec, flags uint8, seq, ack uint32, text string) {
			x.flags, x.seq, x.ack, x.payload = flags, seq, ack, []byte(text)
			in := b.c
			if x.src == "9.9.9.9" {
				in = b.s
			}
			if got := b.pass(in, x.build()); got != nil {
				verify(t, got)
			}
		}
		if h.proto == packet.ProtoTCP {
			pass(client, syn, 99, 0, "")
			pass(server, syn|ack, 199, 100, "")
			pass(client, ack, 100, 200, "")
		} else {
			pass(client, 0, 0, 0, "\x00\x00")
		}
		if which&0x80 == 0 {
			pass(client, psh|ack, 100, 200, one)
			pass(server, psh|ack, 200, 100+uint32(len(one)), two)
		} else {
			pass(server, psh|ack, 200, 100, one)
			pass(client, psh|ack, 100, 200+uint32(len(one)), two)
		}
		for _, x := range b.table.Expectations() {
			if x.Tuple.Proto != packet.ProtoGRE {
				pass(flowSpec{src: "9.9.9.9", dst: x.Tuple.DstAddr().String(), proto: x.Tuple.Proto, sport: 7000, dport: x.Tuple.DstPort}, syn, 1, 0, "")
			}
		}
	})
}
