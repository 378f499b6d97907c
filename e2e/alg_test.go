package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/e2e/lab"
)

// algRules let in what is RELATED alone, beside what the client begins.
const algRules = `
[iptables.raw]
rules = [
  "-A PREROUTING -p tcp --dport 6667 -j CT --helper irc",
  "-A PREROUTING -p tcp --dport 1723 -j CT --helper pptp",
  "-A PREROUTING -p udp --dport 5060 -j CT --helper sip",
  "-A PREROUTING -p udp --dport 162 -j CT --helper snmp_trap",
  "-A PREROUTING -p udp --dport 10080 -j CT --helper amanda",
  "-A PREROUTING -p udp --dport 9 -j CT --timeout brief",
]
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
  "-A FORWARD -m conntrack --ctstate RELATED -m helper --helper irc -j ACCEPT",
  "-A FORWARD -m conntrack --ctstate RELATED -m helper --helper pptp -j ACCEPT",
  "-A FORWARD -m conntrack --ctstate RELATED -m helper --helper sip -j ACCEPT",
  "-A FORWARD -m conntrack --ctstate RELATED -m helper --helper amanda -j ACCEPT",
  "-A FORWARD -i lan0 -p tcp -m multiport --dports 1723,6667 -j ACCEPT",
  "-A FORWARD -i lan0 -p udp -m multiport --dports 9,162,5060,10080 -j ACCEPT",
]
[[timeout]]
name     = "brief"
protocol = "udp"
policy   = { unreplied = 77 }
`

// TestIRC: a DCC offer through a real server names the router's address, and
// who takes it reaches the client.
func TestIRC(t *testing.T) {
	b := newBed(t, algRules)
	b.Need("ngircd")
	conf := b.File("ngircd.conf", "[Global]\nName = irc.example.net\nInfo = x\nListen = 0.0.0.0\nPorts = 6667\nMotdFile = /dev/null\n[Options]\nDNS = no\nIdent = no\nPAM = no\n[Limits]\nMaxPenaltyTime = 0\n")
	b.server.Start("ngircd", "-n", "-f", conf)
	login := func(ns *lab.NS, addr, nick string) (net.Conn, *bufio.Reader) {
		var c net.Conn
		b.Eventually(deadline, "ngircd to listen", func() (ok bool) {
			var err error
			c, err = ns.Dial("tcp", addr)
			return err == nil
		})
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(c)
		fmt.Fprintf(c, "NICK %s\r\nUSER %s 0 * :%s\r\n", nick, nick, nick)
		awaitLine(t, c, r, " 001 ")
		return c, r
	}
	alice, _ := login(b.client, "198.51.100.2:6667", "alice")
	bob, fromAlice := login(b.server, "127.0.0.1:6667", "bob")
	say(b.client, "10.0.1.2:5001", "the file")
	fmt.Fprintf(alice, "PRIVMSG bob :\x01DCC SEND file %d 5001 8\x01\r\n", 10<<24|1<<8|2)
	offer := awaitLine(t, bob, fromAlice, "DCC SEND")
	if want := fmt.Sprintf("DCC SEND file %d 5001 8", 198<<24|51<<16|100<<8|1); !strings.Contains(offer, want) {
		t.Fatalf("bob is offered %q, not %q", offer, want)
	}
	if got, err := hear(b.server, "198.51.100.1:5001"); err != nil || got != "the file" {
		t.Errorf("bob gets %q, %v", got, err)
	}
}

// awaitLine reads up to a line with text in it, and answers pings.
func awaitLine(t *testing.T, c net.Conn, r *bufio.Reader, text string) string {
	t.Helper()
	for {
		l, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("waiting for %q: %v", text, err)
		}
		if rest, ok := strings.CutPrefix(l, "PING"); ok {
			fmt.Fprintf(c, "PONG%s", rest)
		}
		if strings.Contains(l, text) {
			return l
		}
	}
}

// TestSIP: a call of SIPp's through MASQUERADE; a stream from outside to where
// the caller was announced reaches it, and its echo comes back.
func TestSIP(t *testing.T) {
	b := newBed(t, algRules)
	b.Need("sipp")
	b.server.Start("sipp", "-sn", "uas", "-i", "198.51.100.2", "-p", "5060", "-mp", "7000", "-nostdin")
	call := b.client.Start("sipp", "-sn", "uac", "-i", "10.0.1.2", "-p", "5070", "-mp", "6000", "-rtp_echo", "-m", "1", "-d", "60000", "-nostdin", "198.51.100.2:5060")
	var list string
	stream := regexp.MustCompile(`proto=17 src=198\.51\.100\.2 dst=198\.51\.100\.1 .*sport=0 dport=6000 .*class=1 helper=sip`)
	b.Eventually(2*deadline, "the caller's stream to be expected", func() bool {
		list = b.r.Must("conntrack", "-L", "expect")
		return stream.MatchString(list)
	})
	c, err := b.server.Dial("udp", "198.51.100.1:6000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	voice := []byte("\x80\x00\x00\x01 some voice")
	b.Eventually(deadline, "the stream's echo", func() bool {
		c.Write(voice)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return err == nil && bytes.Equal(buf[:n], voice)
	})
	if n := b.r.Counter("iptables-save", "--helper sip -j ACCEPT"); n == 0 {
		t.Error("the stream was not RELATED to a connection with the helper")
	}
	call.Stop()
}

// TestSNMPTrap: a trap that names its sender's address names the router's outside.
func TestSNMPTrap(t *testing.T) {
	b := newBed(t, algRules)
	b.Need("snmptrap")
	c := b.server.ListenPacket("198.51.100.2:162")
	b.client.Must("snmptrap", "-v2c", "-c", "public", "198.51.100.2:162", "", "1.3.6.1.6.3.1.1.5.3", "1.3.6.1.2.1.4.20.1.1.10.0.1.2", "a", "10.0.1.2")
	c.SetReadDeadline(time.Now().Add(deadline))
	buf := make([]byte, 1500)
	n, _, err := c.ReadFrom(buf)
	if err != nil || !bytes.Contains(buf[:n], []byte{0x40, 4, 198, 51, 100, 1}) || bytes.Contains(buf[:n], []byte{0x40, 4, 10, 0, 1, 2}) {
		t.Errorf("%v, %x", err, buf[:n])
	}
}

// TestAmanda: the backup server reaches the ports that its client names, and no others.
func TestAmanda(t *testing.T) {
	b := newBed(t, algRules)
	say(b.server, "198.51.100.2:5001", "the data")
	say(b.server, "198.51.100.2:5002", "nobody named this")
	agent := b.server.ListenPacket("198.51.100.2:10080")
	go func() {
		buf := make([]byte, 1500)
		if _, from, err := agent.ReadFrom(buf); err == nil {
			agent.WriteTo([]byte("Amanda 2.6 REP HANDLE 000-1 SEQ 1\nCONNECT DATA 5001 MESG 5003 INDEX 5004\n"), from)
		}
	}()
	c, err := b.client.Dial("udp", "198.51.100.2:10080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("Amanda 2.6 REQ HANDLE 000-1 SEQ 1\nSERVICE sendbackup\n"))
	c.SetReadDeadline(time.Now().Add(deadline))
	if _, err := c.Read(make([]byte, 1500)); err != nil {
		t.Fatal(err)
	}
	if got, err := hear(b.client, "198.51.100.2:5001"); err != nil || got != "the data" {
		t.Errorf("%q, %v", got, err)
	}
	if c, err := b.client.DialTimeout("tcp", "198.51.100.2:5002", time.Second); err == nil {
		c.Close()
		t.Error("a port that was not named is reached")
	}
}

// TestPPTP: the control connection sets up a call, and the tunnel's packets
// pass both ways with the call ids that either side knows.
func TestPPTP(t *testing.T) {
	b := newBed(t, algRules)
	ln := b.server.Listen("198.51.100.2:1723")
	client, err := b.client.Dial("tcp", "198.51.100.2:1723")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	message := func(typ uint16, size int, body ...uint16) []byte {
		m := make([]byte, size)
		for i, v := range append([]uint16{uint16(size), 1, 0x1a2b, 0x3c4d, typ, 0}, body...) {
			binary.BigEndian.PutUint16(m[2*i:], v)
		}
		return m
	}
	pass := func(from, to net.Conn, m []byte) []byte {
		t.Helper()
		from.Write(m)
		to.SetReadDeadline(time.Now().Add(deadline))
		buf := make([]byte, 1500)
		n, err := to.Read(buf)
		if err != nil || n != len(m) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return buf[:n]
	}
	id := func(m []byte, at int) uint16 { return binary.BigEndian.Uint16(m[at:]) }
	pass(client, server, message(1, 156, 0x100))
	pass(server, client, message(2, 156, 0x100, 0x100))
	asked := id(pass(client, server, message(7, 168, 1000)), 12) // the call, as the server knows it
	if port := uint16(server.RemoteAddr().(*net.TCPAddr).Port); asked != port {
		t.Errorf("the server is asked for call %d, not %d", asked, port)
	}
	if got := id(pass(server, client, message(8, 32, 2000, asked, 0x100)), 14); got != 1000 {
		t.Errorf("the client's call is answered as %d", got)
	}
	inside, outside := b.client.Raw("lan0"), b.server.Raw("wan0")
	tunnel := func(src, dst string, call uint16) []byte {
		return lab.Build(lab.IP4(src, dst, layers.IPProtocolGRE), gopacket.Payload(append([]byte{0x30, 0x81, 0x88, 0x0b, 0, 4, byte(call >> 8), byte(call), 0, 0, 0, 1, 0, 0, 0, 1}, "ppp!"...)))
	}
	arrives := func(src string, call uint16) func(gopacket.Packet) bool {
		return func(p gopacket.Packet) bool {
			ip, ok := p.NetworkLayer().(*layers.IPv4)
			return ok && ip.Protocol == layers.IPProtocolGRE && ip.SrcIP.String() == src && len(ip.Payload) > 8 && binary.BigEndian.Uint16(ip.Payload[6:]) == call
		}
	}
	inside.Send(tunnel("10.0.1.2", "198.51.100.2", 2000))
	outside.Await("the client's tunnel", arrives("198.51.100.1", 2000))
	outside.Send(tunnel("198.51.100.2", "198.51.100.1", asked))
	inside.Await("the server's tunnel", arrives("198.51.100.2", 1000))
	if n := b.r.Counter("iptables-save", "--helper pptp -j ACCEPT"); n != 1 {
		t.Errorf("%d packets were RELATED", n)
	}
}

// TestTimeoutPolicy: a policy of the configuration holds; nfct makes others,
// and what a rule names cannot be deleted.
func TestTimeoutPolicy(t *testing.T) {
	b := newBed(t, algRules)
	c, err := b.client.Dial("udp", "198.51.100.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	b.Eventually(deadline, "a connection with the policy's timeout", func() bool {
		return regexp.MustCompile(`udp +17 7\d src=10\.0\.1\.2`).MatchString(b.r.Must("conntrack", "-L", "-p", "udp"))
	})
	b.r.Must("nfct", "add", "timeout", "long", "inet", "tcp", "established", "99")
	b.r.Must("iptables", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-j", "CT", "--timeout", "long")
	if _, text, code := b.r.Tool("nfct", "delete", "timeout", "long"); code != 1 || !strings.Contains(text, "Device or resource busy") {
		t.Errorf("delete: %d %q", code, text)
	}
	if _, text, code := b.r.Tool("iptables", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "CT", "--timeout", "long"); code != 1 {
		t.Errorf("a rule for another protocol: %d %q", code, text)
	}
	b.r.Must("iptables", "-t", "raw", "-D", "PREROUTING", "-p", "tcp", "-j", "CT", "--timeout", "long")
	b.r.Must("nfct", "delete", "timeout", "long")
	if list := b.r.Must("nfct", "list", "timeout"); !strings.Contains(list, ".brief = {") || strings.Contains(list, ".long") {
		t.Errorf("%s", list)
	}
}
