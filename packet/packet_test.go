package packet

import (
	"strings"
	"testing"
)

func TestIfaceMatch(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		want          bool
	}{
		{"eth1", "eth1", true}, {"eth1", "eth10", false}, {"eth10", "eth1", false}, {"eth10", "eth1+", true}, {"eth1", "eth+", true},
		{"eth1", "+", true}, {"wan0", "eth+", false}, {"abcdefghijklmno", "abcdefghijklmno", true}, {"abcdefghijklmno", "abcdefghijklmnp", false},
		{"abcdefghi", "abcdefgh+", true}, {"", "+", true}, {"", "eth0", false}, {"", "", true},
	} {
		var i *Iface
		if c.name != "" {
			i = NewIface(3, c.name, 1500)
		}
		words, mask := NameWords(c.pattern)
		if i.Match(&words, &mask) != c.want {
			t.Errorf("%q against %q: %v", c.name, c.pattern, !c.want)
		}
	}
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for r := range Reason(NumReasons()) {
		if seen[r.String()] || r.String() == "" {
			t.Errorf("reason %d is named %q, as another", r, r)
		}
		seen[r.String()] = true
		if r != 0 && !strings.HasSuffix(r.Doc(), ".") {
			t.Errorf("%v: %q is no sentence", r, r.Doc())
		}
	}
	if !seen["ip.bad_checksum"] || !seen["ipv6.truncated"] || Reason(0).String() != "none" {
		t.Error("reasons are missing")
	}
}

func TestCtInfoReply(t *testing.T) {
	for i := CtNone; i <= CtUntracked; i++ {
		if i.Reply() != (i == CtEstablishedReply || i == CtRelatedReply) {
			t.Errorf("%d", i)
		}
	}
}

func TestPartialMovesWithHeader(t *testing.T) {
	p := New()
	BuildEcho(p, IPv4, [16]byte{10, 0, 0, 1}, [16]byte{10, 0, 0, 2}, false, 1, 1, 8)
	p.GSO = GSO{NeedsCsum: true, CsumStart: p.L4, CsumOffset: 2}
	b := p.Bytes()
	p.End += 4
	copy(p.Bytes()[24:], append([]byte(nil), b[20:]...))
	p.Bytes()[0] = 0x46
	p.ParseL4()
	if p.L4 != 24 || p.GSO.CsumStart != 24 {
		t.Errorf("transport at %d, checksum from %d", p.L4, p.GSO.CsumStart)
	}
}
