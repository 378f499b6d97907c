package packettext

import (
	"strings"
	"testing"
)

func TestDescribe(t *testing.T) {
	for _, d := range []string{
		"udp 10.0.0.2:5000 > 9.9.9.9:53",
		"udp 10.0.0.2:5000 > 9.9.9.9:53 ttl=63 tos=0x10 df len=33",
		"tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=1 win=100",
		"tcp [2001:db8::1]:5000 > [2001:db8::2]:80 PA seq=1 ack=2 len=1000",
		"icmp 10.0.0.2 > 9.9.9.9 type=8/0 id=7 seq=1 len=56",
		"icmp6 fe80::1 > 2001:db8::2 type=128/0 id=7 seq=1 len=5",
		"icmp 10.0.0.1 > 10.0.0.2 type=3/4 rest=1400 about udp 10.0.0.2:5000 > 9.9.9.9:53",
		"icmp6 fe80::1 > 2001:db8::2 type=2/0 rest=1280 about tcp [2001:db8::2]:1 > [2001:db8::3]:2",
		"udp 10.0.0.2 > 9.9.9.9 frag=1480+ ipid=77 len=1480",
		"udp 2001:db8::1 > 2001:db8::2 frag=1448 ipid=77 len=10",
		"sctp 10.0.0.2:1 > 10.0.0.3:2 len=20",
		"udplite 10.0.0.2:1 > 10.0.0.3:2 len=20",
		"dccp 10.0.0.2:1 > 10.0.0.3:2 len=20",
		"tcp 10.0.0.2:5000 > 9.9.9.9:80 A seq=1 ack=5 badcsum",
		"esp 10.0.0.2 > 10.0.0.3 len=40",
	} {
		b, err := Frame(d)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := Describe(b); got != d {
			t.Errorf("\n got %s\nwant %s", got, d)
		}
	}
	if got := Describe(must(t, "udp 1.2.3.4:5 > 6.7.8.9:10 badip")); !strings.Contains(got, "ip.bad_checksum") {
		t.Errorf("badip: %s", got)
	}
}

func TestBadDescriptions(t *testing.T) {
	for _, d := range []string{
		"", "udp", "udp 1.2.3.4", "udp 1.2.3.4 > ::1", "udp x > y", "pup 1.2.3.4 > 1.2.3.5",
		"udp 1.2.3.4 > 1.2.3.5 zzz", "udp 1.2.3.4 > 1.2.3.5 len=x", `udp 1.2.3.4 > 1.2.3.5 data="x`,
		"udp 1.2.3.4 > 1.2.3.5 what=1", "udp 1.2.3.4 > 1.2.3.5 about nothing",
	} {
		if _, err := Frame(d); err == nil {
			t.Errorf("%q: no error", d)
		}
	}
}

func TestFragments(t *testing.T) {
	fs, err := Fragments("udp 10.0.0.2:5000 > 9.9.9.9:53 ipid=9 len=3000", 1480, 1480)
	if err != nil || len(fs) != 3 || len(fs[2]) != 20+3008-2960 {
		t.Fatalf("%v: %d fragments", err, len(fs))
	}
	if got := Describe(fs[1]); got != "udp 10.0.0.2 > 9.9.9.9 frag=1480+ ipid=9 len=1480" {
		t.Error(got)
	}
}

func must(t testing.TB, desc string) []byte {
	t.Helper()
	b, err := Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestErrorsSayWhere: an error names the column, what was found and what was expected.
func TestErrorsSayWhere(t *testing.T) {
	for _, c := range []struct {
		desc string
		off  int
		want string
	}{
		{"", 0, "a protocol"},
		{"tcp 10.0.1.2:4000 > 203.0.113.9:8x0 S", 20, "the destination"},
		{"tcp 10.0.1.2:4000 203.0.113.9:80 S", 18, "> between"},
		{"udp 1.2.3.4 > ::1", 14, "family"},
		{"udp 1.2.3.4 > 1.2.3.5 ttl=256", 26, "up to 255"},
		{"udp 1.2.3.4 > 1.2.3.5 data=\"x", 27, "second quote"},
		{"icmp 1.2.3.4 > 1.2.3.5 type=3/4 about udp 1.2.3.4 > x", 52, "the destination"},
		{"udp 1.2.3.4 > 1.2.3.5 frag=7", 27, "multiple of 8"},
		{"udp 1.2.3.4 > 1.2.3.5 ext=hop,what", 26, "extension headers"},
	} {
		_, err := Frame(c.desc)
		e, ok := err.(*Error)
		if !ok || e.Off != c.off || !strings.Contains(e.Error(), c.want) || !strings.Contains(e.Error(), Example) {
			t.Errorf("%s: %v", c.desc, err)
		}
	}
}

// FuzzFrame: no description breaks the reader, and what it makes can be described.
func FuzzFrame(f *testing.F) {
	f.Add("tcp 10.0.0.2:5000 > 9.9.9.9:80 S seq=1 mss=1460")
	f.Add("udp [2001:db8::1]:53 > [2001:db8::2]:53 frag=8+ ext=hop,ah")
	f.Add("icmp 10.0.0.1 > 10.0.0.2 type=3/4 rest=1400 about udp 10.0.0.2:5000 > 9.9.9.9:53")
	f.Fuzz(func(t *testing.T, desc string) {
		b, err := Frame(desc)
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Off < 0 || e.Off > len(desc) {
				t.Fatalf("%q: %v", desc, err)
			}
			return
		}
		Describe(b)
	})
}
