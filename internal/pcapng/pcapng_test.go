package pcapng

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"sluice/packet/packettext"
)

func capture(t *testing.T, w io.Writer) [][]byte {
	t.Helper()
	x, err := NewWriter(w, "sluice test", 0)
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	at := time.Unix(1700000000, 123456789)
	for i, d := range []string{"tcp 10.0.1.2:4000 > 203.0.113.9:80 S", `udp [fd00:1::2]:5 > [fd00::9]:53 data="abc"`, "icmp 10.0.1.2 > 10.0.1.1"} {
		f, err := packettext.Frame(d)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
		p := Packet{Iface: []string{"lan0", "wan0", "lan0"}[i], Time: at.Add(time.Duration(i) * time.Second), Data: f, Len: len(f), Inbound: i == 0, Outbound: i == 1, Lost: uint64(i)}
		p.Comment = []string{"FORWARD: DROP by filter FORWARD 3 \"-A FORWARD -j DROP\"", "", "hook, ünïcode"}[i]
		if err := x.Write(&p); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Close(at, 7); err != nil {
		t.Fatal(err)
	}
	return frames
}

// TestReadBack: gopacket reads the frames, interfaces and times that were written.
func TestReadBack(t *testing.T) {
	var b bytes.Buffer
	frames := capture(t, &b)
	r, err := pcapgo.NewNgReader(&b, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range frames {
		data, ci, err := r.ReadPacketData()
		if err != nil || !bytes.Equal(data, want) || ci.Length != len(want) || ci.Timestamp.UnixNano() != 1700000000123456789+int64(i)*1e9 {
			t.Fatalf("%d: %v %v %x", i, err, ci, data)
		}
		in, err := r.Interface(ci.InterfaceIndex)
		if err != nil || in.Name != []string{"lan0", "wan0", "lan0"}[i] || in.LinkType != layers.LinkTypeRaw {
			t.Errorf("%d: %+v %v", i, in, err)
		}
	}
	if _, _, err := r.ReadPacketData(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	st, err := r.Interface(0)
	if err != nil || st.Statistics.PacketsReceived != 2 || st.Statistics.PacketsDropped != 7 {
		t.Errorf("%+v %v", st.Statistics, err)
	}
}

// TestTShark: tshark shows the comments.
func TestTShark(t *testing.T) {
	path, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed")
	}
	f := filepath.Join(t.TempDir(), "x.pcapng")
	var b bytes.Buffer
	capture(t, &b)
	if err := os.WriteFile(f, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, "-r", f, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment", "-e", "ip.dst", "-e", "ipv6.dst")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err, string(out))
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "lan0\tFORWARD: DROP by filter FORWARD 3 \"-A FORWARD -j DROP\"\t203.0.113.9") || !strings.Contains(lines[1], "fd00::9") || !strings.Contains(lines[2], "ünïcode") {
		t.Errorf("%q", lines)
	}
}

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

// TestWriteError: an error stays.
func TestWriteError(t *testing.T) {
	x, err := NewWriter(&full{150}, "t", 64)
	if err != nil {
		t.Fatal(err)
	}
	p := Packet{Iface: "a", Data: make([]byte, 100), Len: 100}
	var last error
	for range 4 {
		last = x.Write(&p)
	}
	if last == nil || x.Close(time.Now(), 0) == nil {
		t.Error("a write error was forgotten")
	}
}
