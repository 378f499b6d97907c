package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestEditUnderTraffic: rules are edited hundreds of times while iperf3 runs
// with several flows, short connections come and go and a stream of datagrams
// is counted. No connection fails, and nothing is lost to an edit.
func TestEditUnderTraffic(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds of full load")
	}
	const rules = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:scratch - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -o wan0 -m comment --comment new-ones -j ACCEPT
COMMIT
`
	b := newLoneBed(t, "")
	b.Need("iperf3")
	b.r.MustInput(rules, "iptables-restore")
	serve(b.server, "198.51.100.2:80")
	echo(b.server, "198.51.100.2:9000")
	b.server.Start("iperf3", "-s")
	b.Eventually(deadline, "iperf3 to listen", func() bool {
		c, err := b.client.Dial("tcp", "198.51.100.2:5201")
		if err == nil {
			c.Close()
		}
		return err == nil
	})

	stop := make(chan struct{})
	var wg sync.WaitGroup
	background := func(f func() bool) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !f() {
					return
				}
			}
		}()
	}
	var connections, failed atomic.Int64
	for range 2 {
		background(func() bool {
			got, err := hear(b.client, "198.51.100.2:80")
			connections.Add(1)
			if err != nil || !strings.HasPrefix(got, "198.51.100.1:") {
				failed.Add(1)
				t.Errorf("a connection failed: %q, %v", got, err)
			}
			return failed.Load() < 10
		})
	}
	// Lockstep: a datagram that does not come back within five seconds is lost.
	var datagrams, lost atomic.Int64
	stream := dial(t, b.client, "udp", "198.51.100.2:9000")
	background(func() bool {
		n := datagrams.Add(1)
		var out, in [8]byte
		binary.BigEndian.PutUint64(out[:], uint64(n))
		stream.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := stream.Write(out[:]); err != nil {
			t.Errorf("sending a datagram: %v", err)
			return false
		}
		for {
			if _, err := stream.Read(in[:]); err != nil {
				lost.Add(1)
				return lost.Load() < 10
			}
			if in == out {
				return true
			}
		}
	})
	iperf := b.client.Start("iperf3", "-c", "198.51.100.2", "-t", "6", "-P", "4")

	big, err := os.ReadFile("../internal/iptables/testdata/rulesets/medium-company.rules")
	if err != nil {
		t.Fatal(err)
	}
	// The company's rules as chains that no packet meets.
	var chains strings.Builder
	chains.WriteString("*filter\n:company - [0:0]\n")
	for _, l := range strings.Split(string(big), "\n") {
		if rest, ok := strings.CutPrefix(l, "-A FORWARD "); ok && !strings.Contains(rest, "-j LOG_") {
			if target := rest[strings.LastIndexByte(rest, ' ')+1:]; target == "ACCEPT" || target == "DROP" {
				chains.WriteString("-A company " + rest + "\n")
			}
		}
	}
	chains.WriteString("COMMIT\n")
	edits := 0
	edit := func(line string) {
		t.Helper()
		b.r.Must(append([]string{"iptables"}, strings.Fields(line)...)...)
		edits++
	}
	ended := func() bool {
		select {
		case <-iperf.Done():
			return true
		default:
			return false
		}
	}
	rounds := 0
	for ; !ended() || rounds < 9; rounds++ {
		edit("-I FORWARD -s 10.0.1.0/24 -p tcp --dport 80 -m comment --comment in-front")
		for i := range 8 {
			edit(fmt.Sprintf("-A scratch -s 192.0.2.%d -p tcp --dport %d -j DROP", i+1, 1000+rounds%1000))
		}
		edit("-I FORWARD 2 -p udp -j scratch")
		edit("-R FORWARD 1 -s 10.0.1.0/24 -p tcp --dport 81 -m comment --comment replaced")
		edit("-D scratch 1")
		edit("-t nat -I POSTROUTING -s 192.0.2.0/24 -j SNAT --to-source 198.51.100.1")
		edit("-t mangle -A PREROUTING -p udp -j MARK --set-mark 7")
		b.r.MustInput(chains.String(), "iptables-restore", "--noflush")
		edit("-Z FORWARD")
		edit("-D FORWARD 2")
		edit("-F scratch")
		edit("-F company")
		edit("-X company")
		edit("-t mangle -F")
		edit("-t nat -D POSTROUTING 1")
		b.r.MustInput(rules, "iptables-restore") // the whole, at once
		edits += 2
	}
	if err := iperf.Wait(30 * time.Second); err != nil {
		t.Errorf("iperf3: %v\n%s", err, iperf.Output())
	}
	close(stop)
	wg.Wait()
	t.Logf("%d edits in %d rounds; %d connections, %d datagrams; %s", edits, rounds, connections.Load(), datagrams.Load(), lastLine(iperf.Output(), "receiver"))
	if edits < 200 || connections.Load() < 100 || datagrams.Load() < 100 {
		t.Errorf("only %d edits, %d connections, %d datagrams", edits, connections.Load(), datagrams.Load())
	}
	// A full queue of a device is the kernel's own loss; what the router drops has a name here.
	for _, d := range b.r.Status().Drops {
		t.Errorf("%d packets dropped as %s", d.Packets, d.Reason)
	}
	if full := deviceDrops(t, b); lost.Load() > full {
		t.Errorf("%d datagrams were lost, and the devices' queues lost %d packets", lost.Load(), full)
	}
}

// deviceDrops is what the kernel's ends of the devices dropped because their queues were full.
func deviceDrops(t *testing.T, b *bed) (n int64) {
	t.Helper()
	for ns, dev := range map[interface{ Must(...string) string }]string{b.client: "lan0", b.server: "wan0"} {
		var k int64
		fmt.Sscan(ns.Must("cat", "/sys/class/net/"+dev+"/statistics/tx_dropped"), &k)
		n += k
	}
	return n
}

func lastLine(text, with string) string {
	last := ""
	for _, l := range strings.Split(text, "\n") {
		if strings.Contains(l, with) {
			last = strings.TrimSpace(l)
		}
	}
	return last
}
