package netstack

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"sluice/packet"
)

var ip4 = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8, 0, 0}

func classic(link uint32, order binary.AppendByteOrder, nanos bool, frames ...[]byte) []byte {
	magic := uint32(0xa1b2c3d4)
	if nanos {
		magic = 0xa1b23c4d
	}
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	for _, w := range []uint32{0, 0, 65535, link} {
		b = order.AppendUint32(b, w)
	}
	for i, f := range frames {
		for _, w := range []uint32{uint32(1000 + i), 7, uint32(len(f)), uint32(len(f))} {
			b = order.AppendUint32(b, w)
		}
		b = append(b, f...)
	}
	return b
}

// ngBlock makes a pcapng block of a body.
func ngBlock(order binary.AppendByteOrder, typ uint32, body ...[]byte) []byte {
	all := bytes.Join(body, nil)
	for len(all)%4 != 0 {
		all = append(all, 0)
	}
	b := order.AppendUint32(nil, typ)
	b = order.AppendUint32(b, uint32(12+len(all)))
	b = append(b, all...)
	return order.AppendUint32(b, uint32(12+len(all)))
}

func u16s(o binary.AppendByteOrder, v ...uint16) (b []byte) {
	for _, x := range v {
		b = o.AppendUint16(b, x)
	}
	return b
}

func u32s(o binary.AppendByteOrder, v ...uint32) (b []byte) {
	for _, x := range v {
		b = o.AppendUint32(b, x)
	}
	return b
}

func ngSHB(o binary.AppendByteOrder) []byte {
	return ngBlock(o, ngSection, u32s(o, ngMagic), u16s(o, 1, 0), u32s(o, 0xffffffff, 0xffffffff))
}

func ngIDB(o binary.AppendByteOrder, link uint16, options ...[]byte) []byte {
	return ngBlock(o, ngInterface, append([][]byte{u16s(o, link, 0), u32s(o, 0)}, options...)...)
}

func ngEPB(o binary.AppendByteOrder, iface uint32, ts uint64, frame []byte) []byte {
	return ngBlock(o, ngEnhanced, u32s(o, iface, uint32(ts>>32), uint32(ts), uint32(len(frame)), uint32(len(frame))), frame)
}

func writeFile(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// frames reads a file to its end.
func frames(path string) (out [][]byte, times []int64, err error) {
	l, err := OpenPcap(PcapConfig{Name: "p0", Index: 2, Read: path})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	p := packet.New()
	for {
		p.Reset()
		at, err := l.ReadAt(p)
		switch err {
		case nil:
			out, times = append(out, bytes.Clone(p.Bytes())), append(times, at)
		case ErrFrame:
			out, times = append(out, nil), append(times, at)
		case io.EOF:
			return out, times, nil
		default:
			return out, times, err
		}
	}
}

func TestPcapLinkTypes(t *testing.T) {
	eth := func(typ ...byte) []byte { return append([]byte{0x02, 1, 2, 3, 4, 5, 2, 1, 2, 3, 4, 6}, typ...) }
	for _, c := range []struct {
		name string
		link uint32
		head []byte
		ok   bool
	}{
		{"raw", 101, nil, true}, {"raw12", 12, nil, true}, {"ipv4", 228, nil, true}, {"ipv6", 229, nil, true},
		{"null", 0, []byte{2, 0, 0, 0}, true}, {"loop", 108, []byte{0, 0, 0, 2}, true},
		{"ethernet", 1, eth(8, 0), true}, {"vlan", 1, eth(0x81, 0, 0, 5, 8, 0), true},
		{"qinq", 1, eth(0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0), true}, {"arp", 1, eth(8, 6), false},
		{"sll", 113, append(make([]byte, 14), 8, 0), true}, {"sll arp", 113, append(make([]byte, 14), 8, 6), false},
		{"sll2", 276, append([]byte{8, 0}, make([]byte, 18)...), true}, {"sll2 arp", 276, append([]byte{8, 6}, make([]byte, 18)...), false},
	} {
		frame := append(bytes.Clone(c.head), ip4...)
		files := map[string][]byte{
			"le.pcap": classic(c.link, binary.LittleEndian, false, frame), "be.pcap": classic(c.link, binary.BigEndian, true, frame),
			"le.pcapng": append(append(ngSHB(binary.LittleEndian), ngIDB(binary.LittleEndian, uint16(c.link))...), ngEPB(binary.LittleEndian, 0, 5, frame)...),
			"be.pcapng": append(append(ngSHB(binary.BigEndian), ngIDB(binary.BigEndian, uint16(c.link))...), ngEPB(binary.BigEndian, 0, 5, frame)...),
		}
		for name, b := range files {
			got, _, err := frames(writeFile(t, name, b))
			if err != nil || len(got) != 1 || c.ok && !bytes.Equal(got[0], ip4) || !c.ok && got[0] != nil {
				t.Errorf("%s %s: %x, %v", c.name, name, got, err)
			}
		}
	}
	for _, b := range [][]byte{classic(105, binary.LittleEndian, false, ip4), classic(257, binary.LittleEndian, false, ip4),
		append(ngSHB(binary.LittleEndian), ngIDB(binary.LittleEndian, 257)...)} {
		if _, _, err := frames(writeFile(t, "x", b)); err == nil || !strings.Contains(err.Error(), "link type") {
			t.Errorf("an unknown link type: %v", err)
		}
	}
}

func TestPcapEthernetCast(t *testing.T) {
	for first, want := range map[byte]packet.PktType{0x02: packet.PktHost, 0x01: packet.PktMulticast, 0xff: packet.PktBroadcast} {
		frame := append(bytes.Repeat([]byte{first}, 6), append([]byte{2, 0, 0, 0, 0, 1, 8, 0}, ip4...)...)
		l, err := OpenPcap(PcapConfig{Name: "p0", Index: 2, Read: writeFile(t, "a.pcap", classic(1, binary.LittleEndian, false, frame))})
		if err != nil {
			t.Fatal(err)
		}
		p := packet.New()
		if err := l.Queue(0).Read(p); err != nil || p.PktType != want {
			t.Errorf("%#x: %v, %v", first, p.PktType, err)
		}
		l.Close()
	}
}

func TestPcapBroken(t *testing.T) {
	le := binary.LittleEndian
	whole := classic(101, le, false, ip4, ip4, ip4)
	ng := bytes.Join([][]byte{ngSHB(le), ngIDB(le, 101), ngEPB(le, 0, 1, ip4), ngEPB(le, 0, 2, ip4)}, nil)
	huge := bytes.Clone(whole)
	le.PutUint32(huge[24+16+28+8:], 0x7fffffff)
	for _, c := range []struct {
		name string
		b    []byte
		n    int
		want string
	}{
		{"empty", nil, 0, "too short"},
		{"text", []byte("this is not a capture file at all, is it"), 0, "neither a pcap nor a pcapng"},
		{"head only", whole[:20], 0, "too short"},
		{"in a header", whole[:24+2*44+7], 2, "packet 3"},
		{"before the data", whole[:24+2*44+16], 2, "packet 3"},
		{"in the data", whole[:24+2*44+30], 2, "packet 3"},
		{"huge", huge, 1, "packet 2"},
		{"ng cut", ng[:len(ng)-9], 1, "packet 2"},
		{"ng no interface", append(ngSHB(le), ngEPB(le, 0, 1, ip4)...), 0, "packet 1"},
		{"ng wrong interface", bytes.Join([][]byte{ngSHB(le), ngIDB(le, 101), ngEPB(le, 0, 1, ip4), ngEPB(le, 3, 1, ip4)}, nil), 1, "packet 2"},
		{"ng lengths differ", append(bytes.Clone(ng[:len(ng)-4]), 9, 0, 0, 0), 1, "packet 2"},
		{"ng resolution", append(ngSHB(le), ngIDB(le, 101, []byte{9, 0, 1, 0, 99, 0, 0, 0})...), 0, "timestamp resolution"},
		{"ng huge block", append(bytes.Clone(ng), u32s(le, 77, 0xfffffff0)...), 2, "packet 3"},
	} {
		got, _, err := frames(writeFile(t, "x.pcap", c.b))
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) != c.n {
			t.Errorf("%s: %d frames, %v; want %d and %q", c.name, len(got), err, c.n, c.want)
		}
	}
	if _, err := OpenPcap(PcapConfig{Name: "p0", Read: "/nonexistent/x.pcap"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestPcapTimes(t *testing.T) {
	le := binary.LittleEndian
	_, times, err := frames(writeFile(t, "a.pcap", classic(101, le, true, ip4, ip4)))
	if err != nil || times[0] != 1000e9+7 || times[1] != 1001e9+7 {
		t.Errorf("nanoseconds: %v, %v", times, err)
	}
	_, times, err = frames(writeFile(t, "a.pcap", classic(101, le, false, ip4)))
	if err != nil || times[0] != 1000e9+7000 {
		t.Errorf("microseconds: %v, %v", times, err)
	}
	ng := bytes.Join([][]byte{ngSHB(le), ngIDB(le, 101, []byte{9, 0, 1, 0, 9, 0, 0, 0}), ngIDB(le, 101),
		ngEPB(le, 0, 5e9+3, ip4), ngBlock(le, 5, make([]byte, 20)), ngEPB(le, 1, 6e6+4, ip4), ngBlock(le, ngSimple, u32s(le, 28), ip4)}, nil)
	got, times, err := frames(writeFile(t, "a.pcapng", ng))
	if err != nil || len(got) != 3 || times[0] != 5e9+3 || times[1] != 6e9+4000 || times[2] != 0 || !bytes.Equal(got[2], ip4) {
		t.Errorf("pcapng: %v, %v", times, err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(ng)
	w.Close()
	if got, _, err := frames(writeFile(t, "a.pcapng.gz", z.Bytes())); err != nil || len(got) != 3 {
		t.Errorf("gzip: %d, %v", len(got), err)
	}
}

func TestPcapNextKeepsOrder(t *testing.T) {
	l, err := OpenPcap(PcapConfig{Name: "p0", Index: 2, Queues: 3, Read: writeFile(t, "a.pcap", classic(101, binary.LittleEndian, true, ip4, ip4))})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := packet.New()
	for i := range int64(2) {
		for range 2 {
			if at, err := l.Next(); err != nil || at != (1000+i)*1e9+7 {
				t.Fatalf("%d, %v", at, err)
			}
		}
		if err := l.Queue(0).Read(p); err != nil || !bytes.Equal(p.Bytes(), ip4) {
			t.Fatal(err)
		}
	}
	if _, err := l.Next(); err != io.EOF {
		t.Error(err)
	}
	if err := l.Queue(0).Read(p); err != io.EOF {
		t.Error(err)
	}
	if err := l.Queue(2).Read(p); err != io.EOF || l.Queue(2).FD() != -1 {
		t.Error(err)
	}
}

func TestPcapWrite(t *testing.T) {
	for _, name := range []string{"out.pcap", "out.pcapng"} {
		path := filepath.Join(t.TempDir(), name)
		start := time.Unix(1700000000, 0)
		l, err := OpenPcap(PcapConfig{Name: "p0", Index: 2, Queues: 2, Write: path, Wall: func(now int64) time.Time { return start.Add(time.Duration(now)) }})
		if err != nil {
			t.Fatal(err)
		}
		p := packet.New()
		for i := range 3 {
			p.SetBytes(ip4)
			p.Now = int64(i) * 1001
			if err := l.Queue(i % 2).Write(p); err != nil {
				t.Fatal(err)
			}
		}
		superPacket(t, p)
		if err := l.Queue(0).Write(p); err != nil {
			t.Fatal(err)
		}
		if err := l.Queue(0).Flush(); err != nil {
			t.Fatal(err)
		}
		got, times, err := frames(path)
		if err != nil || len(got) != 6 || !bytes.Equal(got[2], ip4) || times[2] != start.UnixNano()+2002 {
			t.Fatalf("%s: %d frames, %v, %v", name, len(got), times, err)
		}
		for _, seg := range got[3:] {
			p.SetBytes(seg)
			if r := p.Parse(); r != 0 || !p.VerifyL4() {
				t.Errorf("%s: a segment is broken: %v", name, r)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Queue(0).Write(p); err != nil {
			t.Errorf("writing after Close: %v", err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		link := layers.LinkTypeEthernet
		if name == "out.pcap" {
			r, err := pcapgo.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			link = r.LinkType()
		} else {
			r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
			if err != nil {
				t.Fatal(err)
			}
			link = r.LinkType()
		}
		if link != layers.LinkTypeRaw {
			t.Errorf("%s: link type %v", name, link)
		}
	}
	if _, err := OpenPcap(PcapConfig{Name: "p0", Write: filepath.Join(t.TempDir(), "out.txt")}); err == nil || !strings.Contains(err.Error(), ".pcapng") {
		t.Errorf("a strange name: %v", err)
	}
}

// superPacket makes p a TCP super-packet of three segments with a partial checksum.
func superPacket(t testing.TB, p *packet.Packet) {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
	tcp := &layers.TCP{SrcPort: 1, DstPort: 2, Seq: 100, ACK: true, Window: 500}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp, gopacket.Payload(bytes.Repeat([]byte{5}, 2500)))
	if err != nil {
		t.Fatal(err)
	}
	p.SetBytes(buf.Bytes())
	// The checksum field holds the pseudo header's sum alone.
	b := p.Bytes()
	sum := uint32(0x0a00+0x0001+0x0a00+0x0002+6) + uint32(len(b)-20)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[36:], uint16(sum))
	p.GSO = packet.GSO{Type: packet.GSOTCPv4, NeedsCsum: true, HdrLen: 40, Size: 1000, CsumStart: 20, CsumOffset: 16}
	if r := p.Parse(); r != 0 {
		t.Fatal(r)
	}
}

func FuzzPcap(f *testing.F) {
	le, be := binary.LittleEndian, binary.BigEndian
	f.Add(classic(101, le, false, ip4, ip4))
	f.Add(classic(1, be, true, append(make([]byte, 12), append([]byte{8, 0}, ip4...)...)))
	f.Add(bytes.Join([][]byte{ngSHB(le), ngIDB(le, 101, []byte{9, 0, 1, 0, 0x8a, 0, 0, 0, 14, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8}), ngEPB(le, 0, 1, ip4), ngBlock(le, ngSimple, u32s(le, 28), ip4)}, nil))
	f.Add(bytes.Join([][]byte{ngSHB(be), ngIDB(be, 276), ngSHB(le), ngIDB(le, 0), ngBlock(le, ngPacket, u16s(le, 0, 0), u32s(le, 0, 1, 28, 28), ip4)}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &Pcap{}
		if l.source(bytes.NewReader(b)) != nil {
			return
		}
		p := packet.New()
		for range 1000 {
			p.Reset()
			if _, err := l.ReadAt(p); err != nil && err != ErrFrame {
				return
			}
			if p.Len() > packet.MaxLen {
				t.Fatal(p.Len())
			}
		}
	})
}
