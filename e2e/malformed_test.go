package e2e

import (
	"encoding/binary"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// fixSum puts an IPv4 header's checksum right.
func fixSum(f []byte) []byte {
	n := int(f[0]&15) * 4
	if n < 20 || n > len(f) {
		return f
	}
	f[10], f[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < n; i += 2 {
		sum += uint32(f[i])<<8 | uint32(f[i+1])
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(f[10:], ^uint16(sum))
	return f
}

// fragment is a piece of an IPv4 datagram.
func fragment(id uint16, offset int, more bool, payload string) []byte {
	ip := lab.IP4("10.0.1.77", "198.51.100.77", layers.IPProtocolUDP)
	ip.Id, ip.FragOffset = id, uint16(offset/8)
	if more {
		ip.Flags = layers.IPv4MoreFragments
	}
	return lab.Build(ip, gopacket.Payload(payload))
}

// fragment6 is a piece of an IPv6 datagram.
func fragment6(id uint32, offset int, more bool, payload string) []byte {
	h := make([]byte, 8)
	h[0] = 17
	binary.BigEndian.PutUint16(h[2:], uint16(offset))
	if more {
		h[3] |= 1
	}
	binary.BigEndian.PutUint32(h[4:], id)
	return lab.Build(lab.IP6("fd00:1::77", "fd00:2::77", 44), gopacket.Payload(h), gopacket.Payload(payload))
}

// TestMalformed: each kind of broken frame is dropped under its own name, and none is forwarded.
func TestMalformed(t *testing.T) {
	b := newBed(t, "")
	in, out := b.client.Raw("lan0"), b.server.Raw("wan0")
	good := func() []byte { return lab.UDP("10.0.1.77", "198.51.100.77", 1000, 666, "0123456789") }
	good6 := func() []byte { return lab.UDP("fd00:1::77", "fd00:2::77", 1000, 666, "0123456789") }
	edit := func(f []byte, f2 func([]byte)) []byte { f2(f); return fixSum(f) }
	options := func(o ...byte) []byte {
		f := good()
		for len(o)%4 != 0 {
			o = append(o, 0)
		}
		f = append(append(append([]byte{}, f[:20]...), o...), f[20:]...)
		f[0] = 0x45 + byte(len(o)/4)
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		return fixSum(f)
	}
	hopByHop := func(o ...byte) []byte {
		f := good6()
		h := append([]byte{17, 0}, o...)
		for len(h)%8 != 0 {
			h = append(h, 0)
		}
		h[1] = byte(len(h)/8 - 1)
		f = append(append(append([]byte{}, f[:40]...), h...), f[40:]...)
		f[6] = 0
		binary.BigEndian.PutUint16(f[4:], uint16(len(f)-40))
		return f
	}
	eight := strings.Repeat("x", 64)
	var long [][]byte // together more than a datagram can be
	for at := 0; at < 65520; at += 1456 {
		long = append(long, fragment(3, at, true, strings.Repeat("x", 1456)))
	}
	long = append(long, fragment(3, 65520, false, eight))
	for _, x := range []struct {
		reason string
		frames [][]byte
	}{
		{"ip.truncated", [][]byte{good()[:12], good()[:24], edit(good(), func(f []byte) { f[3]++ })}},
		{"ip.bad_header", [][]byte{edit(good(), func(f []byte) { f[0] = 0x44 }), edit(good(), func(f []byte) { f[0] = 0x40 })}},
		{"ip.bad_checksum", [][]byte{func() []byte { f := good(); f[10] ^= 1; return f }()}},
		{"ip.bad_length", [][]byte{edit(good(), func(f []byte) { f[2], f[3] = 0, 19 })}},
		{"ip.bad_options", [][]byte{options(7, 0), options(7, 40, 4), options(148, 3, 0), options(68, 3, 0), options(7, 7, 1)}},
		{"ip.source_route", [][]byte{options(131, 7, 4, 192, 0, 2, 1), options(137, 7, 4, 192, 0, 2, 1)}},
		{"ipv6.truncated", [][]byte{good6()[:30], good6()[:45], func() []byte { f := good6(); f[5]++; return f }()}},
		{"ipv6.bad_options", [][]byte{hopByHop(5, 40, 0, 0), hopByHop(1, 200)}},
		{"ipv6.unknown_option", [][]byte{hopByHop(0x40|30, 2, 0, 0), hopByHop(0x80|30, 2, 0, 0)}},
		{"frag.overlap", [][]byte{fragment(1, 0, true, eight), fragment(1, 32, true, eight)}},
		{"frag.bad_length", [][]byte{fragment(2, 64, true, "")}},
		{"frag.too_long", long},
		{"frag.overlap", [][]byte{fragment6(4, 0, true, eight), fragment6(4, 32, true, eight)}},
	} {
		before := b.r.Dropped(x.reason)
		want := before + uint64(len(x.frames))
		if strings.HasPrefix(x.reason, "frag.") { // one datagram each
			want = before + 1
		}
		for _, f := range x.frames {
			in.TrySend(f)
		}
		for end := time.Now().Add(deadline); b.r.Dropped(x.reason) < want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d of %d dropped as %s; all: %+v", b.r.Dropped(x.reason)-before, want-before, x.reason, b.r.Status().Drops)
				break
			}
		}
	}
	// What follows them is as if nothing had been.
	in.Send(lab.UDP("10.0.1.77", "198.51.100.77", 1000, 667, "good"))
	out.Await("a good one", isUDP(667))
	for _, p := range out.Frames() {
		if u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && u.DstPort == 666 {
			t.Errorf("forwarded: %v", p)
		}
	}
	for _, want := range []struct{ typ, code uint8 }{{12, 0}} { // about options, the sender is told
		in.Await("a parameter problem", lab.ICMPError(want.typ, want.code))
	}
}

// TestFlood throws tens of thousands of frames at the router, each broken in
// some way: it lives, every drop has a name, and what it forwards is well formed.
func TestFlood(t *testing.T) {
	b := newBed(t, services+`
[iptables.raw]
rules = [
  "-A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
  "-A PREROUTING -p udp --dport 69 -j CT --helper tftp",
]
[iptables.mangle]
rules = [
  "-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
  "-A PREROUTING -m ttl --ttl-lt 3 -j TTL --ttl-set 9",
  "-A PREROUTING -m dscp --dscp 3 -j DSCP --set-dscp 4",
  "-A POSTROUTING -p udp -j CHECKSUM --checksum-fill",
]
[iptables.nat]
rules = [
  "-A PREROUTING -p tcp -m multiport --dports 1:100 -j DNAT --to-destination 198.51.100.9:1000-1010 --random",
  "-A PREROUTING -p udp --dport 101:200 -j REDIRECT --to-ports 7",
  "-A POSTROUTING -o wan0 -j MASQUERADE",
]
[iptables.filter]
rules = [
  "-A FORWARD -m conntrack --ctstate INVALID -m limit --limit 5/sec -j LOG --log-tcp-options --log-ip-options --log-tcp-sequence",
  "-A FORWARD -p icmp -m icmp --icmp-type any",
  "-A FORWARD -p sctp --chunk-types any INIT,DATA",
  "-A FORWARD -m length --length 0:65535",
  "-A FORWARD -p tcp -m tcpmss --mss 0:500 -j REJECT --reject-with tcp-reset",
  "-A FORWARD -f",
  "-A FORWARD -p tcp --tcp-option 8",
  "-A FORWARD -p udp --dport 300:400 -j REJECT",
  "-A FORWARD -m recent --name r --set",
  "-A FORWARD -m hashlimit --hashlimit-upto 1000/sec --hashlimit-mode srcip,dstport --hashlimit-name h",
]
[ip6tables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[ip6tables.filter]
rules = ["-A FORWARD -m conntrack --ctstate INVALID -m limit --limit 5/sec -j LOG", "-A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type echo-request", "-A FORWARD -p udp --dport 300:400 -j REJECT"]
[sysctl]
"net.netfilter.nf_conntrack_max" = 2000
"net.ipv4.conf.all.log_martians" = 1
`)
	lan, wan := b.client.Raw("lan0"), b.server.Raw("wan0")
	r := rand.New(rand.NewSource(1))
	addr4 := []string{"10.0.1.77", "10.0.1.2", "10.0.1.1", "198.51.100.2", "198.51.100.1", "198.51.100.99", "192.0.2.1", "255.255.255.255", "224.0.0.5", "127.0.0.1"}
	addr6 := []string{"fd00:1::77", "fd00:1::2", "fd00:1::1", "fd00:2::2", "fd00:2::1", "ff02::1", "fe80::1", "::", "2001:db8::1"}
	seed := func() []byte {
		addrs := addr4
		if r.Intn(3) == 0 {
			addrs = addr6
		}
		src, dst := addrs[r.Intn(len(addrs))], addrs[r.Intn(len(addrs))]
		if r.Intn(2) == 0 {
			src, dst = addrs[r.Intn(2)], addrs[3+r.Intn(3)]
		}
		v6 := addrs[0] == addr6[0]
		network := func(proto layers.IPProtocol) gopacket.SerializableLayer {
			if v6 {
				return lab.IP6(src, dst, proto)
			}
			ip := lab.IP4(src, dst, proto)
			ip.TTL, ip.TOS, ip.Id = uint8(1+r.Intn(64)), uint8(r.Intn(256)), uint16(r.Intn(4))
			return ip
		}
		payload := make([]byte, r.Intn(200))
		r.Read(payload)
		switch r.Intn(9) {
		case 0:
			return lab.UDP(src, dst, r.Intn(2000), []int{7, 69, 53, 150, 350, 9000}[r.Intn(6)], string(payload))
		case 1:
			return lab.TCP(src, dst, 1+r.Intn(2000), []int{7, 21, 80, 9999}[r.Intn(4)], []string{"S", "SA", "A", "R", "F", "SFRPA", ""}[r.Intn(7)], r.Uint32(), r.Uint32())
		case 2:
			return lab.Echo(src, dst, uint16(r.Intn(9)), uint16(r.Intn(9)))
		case 3: // an error about something
			inner := lab.UDP(dst, src, r.Intn(2000), 7, "x")
			if v6 {
				return lab.Build(network(58), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(uint8(r.Intn(5)), uint8(r.Intn(6)))}, gopacket.Payload(append(make([]byte, 4), inner...)))
			}
			return lab.Build(network(1), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode([]uint8{3, 4, 5, 11, 12}[r.Intn(5)], uint8(r.Intn(16))), Seq: uint16(r.Intn(2000))}, gopacket.Payload(inner))
		case 4:
			if v6 {
				return fragment6(uint32(r.Intn(4)), r.Intn(100)*8, r.Intn(2) == 0, string(payload[:len(payload)&^7]))
			}
			return fragment(uint16(r.Intn(4)), r.Intn(100)*8, r.Intn(2) == 0, string(payload[:len(payload)&^7]))
		case 5: // any protocol: SCTP, DCCP, GRE, ESP, AH, UDP-Lite among them
			return lab.Build(network([]layers.IPProtocol{132, 33, 47, 50, 51, 136, 4, 41, 89, layers.IPProtocol(r.Intn(256))}[r.Intn(10)]), gopacket.Payload(payload))
		case 6: // FTP's words, cut anywhere
			text := []string{"PORT 10,0,1,77,4,1\r\n", "227 Entering (10,0,1,77,4,1)\r\n", "EPRT |1|10.0.1.77|1025|\r\n", "229 (|||1025|)\r\n", "EPRT |2|fd00:1::77|1025|\r\n"}[r.Intn(5)]
			t := &layers.TCP{SrcPort: 4000, DstPort: 21, Seq: r.Uint32(), ACK: true, PSH: true, Window: 1000}
			n := network(layers.IPProtocolTCP)
			return lab.Build(n, t, gopacket.Payload(text[:r.Intn(len(text)+1)]))
		case 7: // options
			if v6 {
				f := lab.Build(network([]layers.IPProtocol{0, 43, 60, 51, 44}[r.Intn(5)]), gopacket.Payload(payload))
				return f
			}
			f := lab.Build(network(layers.IPProtocolUDP), gopacket.Payload(append(make([]byte, 40), payload...)))
			f[0] = 0x40 | byte(5+r.Intn(11))
			r.Read(f[20:60])
			for i := 20; i < 60; i += 1 + r.Intn(8) {
				f[i] = []byte{0, 1, 7, 68, 131, 137, 148}[r.Intn(7)]
			}
			return f
		}
		f := make([]byte, r.Intn(1600))
		r.Read(f)
		if len(f) > 0 {
			f[0] = []byte{0x45, 0x60, 0x4f, byte(r.Intn(256))}[r.Intn(4)]
		}
		return f
	}
	const frames = 40000
	for i := range frames {
		f := seed()
		for range r.Intn(4) {
			switch r.Intn(6) {
			case 0: // cut
				f = f[:r.Intn(len(f)+1)]
			case 1: // longer
				f = append(f, make([]byte, r.Intn(64))...)
			case 2, 3: // any byte
				if len(f) > 0 {
					f[r.Intn(len(f))] = byte(r.Intn(256))
				}
			case 4: // a byte of the headers
				if len(f) > 0 {
					f[r.Intn(min(len(f), 60))] ^= 1 << r.Intn(8)
				}
			case 5: // another length
				if len(f) > 6 {
					binary.BigEndian.PutUint16(f[[]int{2, 4}[r.Intn(2)]:], uint16(r.Intn(2*len(f))))
				}
			}
		}
		if len(f) >= 20 && f[0]>>4 == 4 && r.Intn(4) != 0 {
			if r.Intn(2) == 0 {
				binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
			}
			f = fixSum(f)
		} else if len(f) >= 40 && f[0]>>4 == 6 && r.Intn(2) == 0 {
			binary.BigEndian.PutUint16(f[4:], uint16(len(f)-40))
		}
		if len(f) == 0 {
			continue
		}
		if i%3 == 0 {
			wan.TrySend(f)
		} else {
			lan.TrySend(f)
		}
	}
	// The queues are in order: when these come back, all before them is done.
	for _, dst := range []string{"198.51.100.2", "10.0.1.1", "fd00:2::2"} {
		b.Eventually(deadline, "ping of "+dst, func() bool {
			_, err := b.client.Run("ping", "-n", "-c", "1", "-W", "1", dst)
			return err == nil
		})
	}
	serve(b.server, "198.51.100.2:8888")
	if got, err := hear(b.client, "198.51.100.2:8888"); err != nil || !strings.HasPrefix(got, "198.51.100.1:") {
		t.Errorf("after the flood: %q, %v", got, err)
	}
	st := b.r.Status()
	dropped := uint64(0)
	for _, d := range st.Drops {
		dropped += d.Packets
		if d.Reason == "hook.unnamed" || d.Doc == "" {
			t.Errorf("%d packets dropped as %q", d.Packets, d.Reason)
		}
	}
	if dropped < frames/10 || len(st.Drops) < 20 {
		t.Errorf("only %d frames dropped, for %d reasons: %+v", dropped, len(st.Drops), st.Drops)
	}
	t.Logf("%d forwarded, %d delivered, %d dropped for %d reasons", st.Forwarded, st.Delivered, dropped, len(st.Drops))
	for _, side := range []*lab.Raw{lan, wan} {
		for _, p := range side.Frames() {
			f := p.Data()
			switch {
			case len(f) >= 20 && f[0]>>4 == 4:
				n := int(f[0]&15) * 4
				if n < 20 || n > len(f) || int(binary.BigEndian.Uint16(f[2:])) != len(f) || !goodIPv4Sum(f[:n]) {
					t.Errorf("a malformed frame left: %x", f)
				}
			case len(f) >= 40 && f[0]>>4 == 6:
				if int(binary.BigEndian.Uint16(f[4:]))+40 != len(f) {
					t.Errorf("a malformed frame left: %x", f)
				}
			default:
				t.Errorf("a malformed frame left: %x", f)
			}
		}
	}
	if out := b.r.Output(); strings.Contains(out, "panic") || strings.Contains(out, "goroutine ") {
		t.Errorf("the log:\n%.3000s", out)
	}
	b.r.Signal(15)
	if err := b.r.Wait(deadline); err != nil {
		t.Errorf("ended with %v", err)
	}
}
