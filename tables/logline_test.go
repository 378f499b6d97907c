package tables

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/packet"
	"sluice/packet/packettest"
)

var updateLog = flag.Bool("update", false, "rewrite testdata/log.txt with what the kernel writes (root, net.netfilter.nf_log_all_netns=1)")

const logFile = "testdata/log.txt"

// logCase is two lines of testdata/log.txt: flags in hex and a frame as
// packettest describes it ("cut N" in front cuts its last N bytes off and mends
// lengths, "set N XX" sets a byte), then the line that Linux writes.
type logCase struct{ flags, desc, want string }

func logCases(t testing.TB) (out []logCase) {
	data, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		flags, desc, _ := strings.Cut(lines[i], " ")
		out = append(out, logCase{flags, desc, lines[i+1]})
	}
	if len(out) < 20 {
		t.Fatal("cases are missing from ", logFile)
	}
	return out
}

func (c logCase) frame(t testing.TB) []byte {
	desc, cut, at, val := c.desc, 0, 0, byte(0)
	if rest, ok := strings.CutPrefix(desc, "set "); ok {
		var n, v string
		n, rest, _ = strings.Cut(rest, " ")
		v, desc, _ = strings.Cut(rest, " ")
		fmt.Sscan(n, &at)
		fmt.Sscanf(v, "%x", &val)
	}
	if rest, ok := strings.CutPrefix(desc, "cut "); ok {
		var n string
		n, desc, _ = strings.Cut(rest, " ")
		fmt.Sscan(n, &cut)
	}
	b := packettest.MustFrame(desc)
	if at > 0 {
		b[at] = val
	}
	if cut == 0 {
		return b
	}
	p := packet.New()
	p.SetBytes(b[:len(b)-cut])
	b = p.Bytes()
	if b[0]>>4 == 4 {
		b[2], b[3] = byte(len(b)>>8), byte(len(b))
		b[10], b[11] = 0, 0
		s := ^packet.Sum(b[:int(b[0]&15)*4])
		b[10], b[11] = byte(s>>8), byte(s)
	} else {
		b[4], b[5] = byte((len(b)-40)>>8), byte(len(b)-40)
	}
	return b
}

func (c logCase) bits() (f uint8) { fmt.Sscanf(c.flags, "%x", &f); return f }

func (c logCase) packet(t testing.TB) *packet.Packet {
	p := packet.New()
	p.SetBytes(c.frame(t))
	if r := p.Parse(); r != 0 {
		t.Fatalf("%s: %v", c.desc, r)
	}
	p.In = packet.NewIface(2, "tun0", 1500)
	return p
}

func TestLogLines(t *testing.T) {
	for _, c := range logCases(t) {
		if got := string(AppendLog(nil, "", c.bits(), c.packet(t))); got != c.want {
			t.Errorf("%s %s\n got %q\nwant %q", c.flags, c.desc, got, c.want)
		}
	}
}

func TestLogState(t *testing.T) {
	p := packettest.New(t, "udp 10.0.0.2:5000 > 9.9.9.9:53 ipid=7")
	p.In, p.Out = packet.NewIface(2, "tun0", 1500), packet.NewIface(3, "tun1", 1500)
	p.Mark, p.UID, p.GID = 0x1f, 1000, 100
	p.Flags |= packet.HasOwner
	want := "drop: IN=tun0 OUT=tun1 MAC= SRC=10.0.0.2 DST=9.9.9.9 LEN=28 TOS=0x00 PREC=0x00 TTL=64 ID=7 PROTO=UDP SPT=5000 DPT=53 LEN=8 UID=1000 GID=100 MARK=0x1f "
	if got := string(AppendLog(nil, "drop: ", LogUID, p)); got != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestLogNoAlloc(t *testing.T) {
	p := packettest.New(t, "icmp 10.0.0.1 > 10.0.0.2 type=3/4 rest=1400 about udp 10.0.0.2:5000 > 9.9.9.9:53")
	b := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() { b = AppendLog(b[:0], "prefix ", 0xff, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLogLinesAreTrue holds the file against the kernel.
func TestLogLinesAreTrue(t *testing.T) {
	const knob = "/proc/sys/net/netfilter/nf_log_all_netns"
	was, err := os.ReadFile(knob)
	if err == nil {
		err = os.WriteFile(knob, []byte("1"), 0)
	}
	if err != nil {
		t.Skip("needs root, and ", err)
	}
	t.Cleanup(func() { os.WriteFile(knob, was, 0) })
	kmsg, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("no kernel log: ", err)
	}
	defer unix.Close(kmsg)
	unix.Seek(kmsg, 0, unix.SEEK_END)
	k := packettest.NewKernel(t)
	for _, cmd := range []string{"iptables-legacy", "ip6tables-legacy"} {
		k.Run(cmd + " -F") // no conntrack: fragments are seen as they are
	}
	options := []struct {
		bit    uint8
		option string
	}{{LogTCPSeq, "--log-tcp-sequence"}, {LogTCPOptions, "--log-tcp-options"}, {LogIPOptions, "--log-ip-options"}}
	var out strings.Builder
	for i, c := range logCases(t) {
		b := c.frame(t)
		tool := "iptables-legacy"
		if b[0]>>4 == 6 {
			tool = "ip6tables-legacy"
		}
		prefix := fmt.Sprintf("slc%d.%d:", os.Getpid(), i)
		rule := " -t raw -%c PREROUTING -i tun0 -j LOG --log-prefix " + prefix
		for _, o := range options {
			if c.bits()&o.bit != 0 {
				rule += " " + o.option
			}
		}
		k.Run(tool + fmt.Sprintf(rule, 'A'))
		k.Send(0, b)
		got := readLog(kmsg, prefix)
		k.Run(tool + fmt.Sprintf(rule, 'D'))
		if got != c.want && !*updateLog {
			t.Errorf("%s %s\nfile   %q\nkernel %q", c.flags, c.desc, c.want, got)
		}
		fmt.Fprintf(&out, "%s %s\n%s\n", c.flags, c.desc, got)
	}
	if *updateLog {
		if err := os.WriteFile(logFile, []byte(out.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// readLog waits for the record with a prefix.
func readLog(fd int, prefix string) string {
	buf := make([]byte, 8192)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			continue
		}
		if err != nil {
			continue // records were overwritten while we read
		}
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if s, ok := strings.CutPrefix(text, prefix); ok {
			return s
		}
	}
	return "(nothing)"
}
