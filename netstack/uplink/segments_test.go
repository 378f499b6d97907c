package uplink

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/netstack"
	"sluice/packet"
)

// inside speaks to a link packet by packet, as a host behind the router.
type inside struct {
	t    testing.TB
	l    *Link
	q    *queue
	in   *packet.Packet
	out  *packet.Packet
	port uint16 // of the listener on the host's loopback
	ln   net.Listener
}

var (
	insideAddr = packet.AddrBytes(netip.MustParseAddr("10.0.2.2"))
	hostAddr   = packet.AddrBytes(netip.MustParseAddr("10.0.2.254"))
)

func newInside(t testing.TB) *inside {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(Config{Name: "uplink0", Index: 2, Queues: 1, Loopback4: packet.Addr(packet.IPv4, hostAddr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		ln.Close()
	})
	return &inside{t, l, l.queues[0], packet.New(), packet.New(), uint16(ln.Addr().(*net.TCPAddr).Port), ln}
}

// send writes a segment; sport names the connection.
func (h *inside) send(sport uint16, flags uint8, seq, ack uint32, opts, data []byte) error {
	p := h.out
	p.Reset()
	hl := 20 + len(opts)
	p.End = p.Off + 20 + hl + len(data)
	b := p.Bytes()
	network(b, packet.IPv4, packet.ProtoTCP, 1, &insideAddr, &hostAddr)
	t := b[20:]
	clear(t[:20])
	be := binary.BigEndian
	be.PutUint16(t, sport)
	be.PutUint16(t[2:], h.port)
	be.PutUint32(t[4:], seq)
	be.PutUint32(t[8:], ack)
	t[12], t[13] = uint8(hl/4)<<4, flags
	be.PutUint16(t[14:], 65535)
	copy(t[20:], opts)
	copy(t[hl:], data)
	if r := p.Parse(); r != 0 {
		h.t.Fatal(r)
	}
	p.FixChecksums()
	return h.q.Write(p)
}

// get gives the next packet that comes within the time; nil: none did.
func (h *inside) get(wait time.Duration) *packet.Packet {
	for end := time.Now().Add(wait); ; time.Sleep(100 * time.Microsecond) {
		h.in.Reset()
		switch err := h.q.Read(h.in); err {
		case nil:
			if r := h.in.Parse(); r != 0 {
				h.t.Fatalf("the uplink made a bad packet: %v", r)
			}
			h.in.CompleteChecksum()
			h.in.Flags &^= packet.L4ChecksumOK
			if !h.in.VerifyL4() {
				h.t.Fatal("the uplink made a packet with a wrong checksum")
			}
			return h.in
		case netstack.ErrAgain:
		default:
			h.t.Fatal(err)
		}
		if time.Now().After(end) {
			return nil
		}
	}
}

// say describes a segment for a failure.
func say(p *packet.Packet) string {
	if p == nil {
		return "nothing came"
	}
	return fmt.Sprintf("to port %d: flags %#x, seq %d, ack %d, %q", p.DstPort(), p.TCPFlags(), p.TCPSeq(), p.TCPAck(), p.Payload())
}

const patience = 20 * time.Second

// connect opens a connection and gives the uplink's first sequence number.
func (h *inside) connect(sport uint16, iss uint32) (uint32, net.Conn) {
	h.t.Helper()
	if err := h.send(sport, packet.TCPSyn, iss, 0, []byte{2, 4, 5, 0xb4}, nil); err != nil {
		h.t.Fatal(err, h.out.Reason)
	}
	c, err := h.ln.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	p := h.get(patience)
	for p != nil && p.DstPort() != sport { // an earlier connection's last words
		p = h.get(patience)
	}
	if p == nil || p.TCPFlags() != packet.TCPSyn|packet.TCPAckFlag || p.TCPAck() != iss+1 {
		h.t.Fatalf("no SYN-ACK: %s", say(p))
	}
	theirs := p.TCPSeq() + 1
	h.send(sport, packet.TCPAckFlag, iss+1, theirs, nil, nil)
	return theirs, c
}

// TestOverlaps: segments in any order, doubled and overlapping, are one stream.
func TestOverlaps(t *testing.T) {
	h := newInside(t)
	rng := rand.New(rand.NewPCG(1, 2))
	stream := make([]byte, 200000)
	for i := range stream {
		stream[i] = byte(rng.Uint32())
	}
	for round := range uint16(8) {
		sport, iss := 2000+round, uint32(0)-uint32(rng.IntN(100000)) // wraps around on the way
		theirs, c := h.connect(sport, iss)
		got := make(chan []byte)
		go func() {
			b, _ := io.ReadAll(c)
			got <- b
		}()
		first, taken := iss+1, 0 // what the uplink has acknowledged
		fin := false
		for !fin {
			from := max(0, taken-rng.IntN(3000))
			if rng.IntN(4) == 0 { // from the future
				from = min(taken+rng.IntN(3000), len(stream))
			}
			n := min(rng.IntN(1460), len(stream)-from)
			flags := packet.TCPAckFlag
			if from+n == len(stream) {
				flags |= packet.TCPFin
			}
			h.send(sport, flags, first+uint32(from), theirs, nil, stream[from:from+n])
			for {
				p := h.get(0)
				if p == nil {
					break
				}
				if p.DstPort() != sport {
					continue
				}
				if p.TCPFlags()&packet.TCPRst != 0 {
					t.Fatalf("round %d: reset at %d", round, taken)
				}
				ack := int(p.TCPAck() - first)
				if ack < taken || ack > len(stream)+1 {
					t.Fatalf("round %d: %d acknowledged after %d", round, ack, taken)
				}
				taken = ack
			}
			if taken > len(stream) {
				fin, taken = true, len(stream)
			}
		}
		if b := <-got; string(b) != string(stream) {
			t.Fatalf("round %d: %d bytes arrived, and not those that were sent", round, len(b))
		}
	}
}

// TestBlindSegments: what does not fit the connection does it no harm (RFC 5961).
func TestBlindSegments(t *testing.T) {
	h := newInside(t)
	iss := uint32(1000)
	theirs, c := h.connect(3000, iss)
	if err := h.send(3000, packet.TCPRst, iss+2, 0, nil, nil); err == nil {
		t.Error("a RST with another number than the next was taken")
	}
	if p := h.get(patience); p == nil || p.TCPFlags() != packet.TCPAckFlag || p.TCPAck() != iss+1 {
		t.Fatalf("no challenge: %s", say(p))
	}
	h.send(3000, packet.TCPSyn, 77, 0, nil, nil)
	if p := h.get(patience); p == nil || p.TCPFlags() != packet.TCPAckFlag || p.TCPAck() != iss+1 {
		t.Fatalf("no challenge: %s", say(p))
	}
	if err := h.send(3000, packet.TCPAckFlag, iss+1, theirs+1000, nil, []byte("x")); err == nil {
		t.Error("an acknowledgement of what was not sent was taken")
	}
	h.get(patience)
	if err := h.send(3000, packet.TCPAckFlag, iss+1, theirs, nil, []byte("y")); err != nil {
		t.Fatal(h.out.Reason)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil || b[0] != 'y' {
		t.Errorf("%q, %v", b, err)
	}
	if err := h.send(3000, packet.TCPRst, iss+2, 0, nil, nil); err != nil {
		t.Errorf("the right RST: %v", h.out.Reason)
	}
	if _, err := c.Read(b); err == nil {
		t.Error("the host's side lives on after a RST")
	}
	if n := h.l.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	// What belongs to nothing is refused.
	h.send(3001, packet.TCPAckFlag, 1, 42, nil, nil)
	if p := h.get(patience); p == nil || p.TCPFlags() != packet.TCPRst || p.TCPSeq() != 42 {
		t.Fatalf("no RST: %s", say(p))
	}
}

// TestRetransmission: what is not acknowledged comes again, and then ends.
func TestRetransmission(t *testing.T) {
	h := newInside(t)
	theirs, c := h.connect(4000, 1)
	io.WriteString(c, "once more")
	for i := range 2 {
		p := h.get(patience)
		if p == nil || string(p.Payload()) != "once more" || p.TCPSeq() != theirs {
			t.Fatalf("time %d: %s", i, say(p))
		}
	}
	h.send(4000, packet.TCPAckFlag, 2, theirs+4, nil, nil) // a part
	if p := h.get(patience); p == nil || string(p.Payload()) != " more" || p.TCPSeq() != theirs+4 {
		t.Fatalf("after a part: %s", say(p))
	}
	h.send(4000, packet.TCPAckFlag, 2, theirs+9, nil, nil)
	c.Close()
	p := h.get(patience)
	if p == nil || p.TCPFlags()&packet.TCPFin == 0 || p.TCPSeq() != theirs+9 {
		t.Fatalf("no FIN: %s", say(p))
	}
	h.send(4000, packet.TCPAckFlag|packet.TCPFin, 2, theirs+10, nil, nil)
	if p := h.get(patience); p == nil || p.TCPAck() != 3 {
		t.Fatalf("the FIN is not acknowledged: %s", say(p))
	}
	if n := h.l.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// TestFullTable: beyond MaxFlows nothing is opened, and what is there goes on.
func TestFullTable(t *testing.T) {
	h := newInside(t)
	h.l.cfg.MaxFlows = 1
	theirs, c := h.connect(5000, 1)
	if err := h.send(5001, packet.TCPSyn, 1, 0, nil, nil); err != netstack.ErrRefused || h.out.Reason != ReasonFull {
		t.Errorf("%v, %v", err, h.out.Reason)
	}
	h.send(5000, packet.TCPAckFlag, 2, theirs, nil, []byte("z"))
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Error(err)
	}
}

// FuzzWrite: no packet from inside does harm. Whatever it is, it goes to the
// listener on this machine's loopback, or nowhere.
func FuzzWrite(f *testing.F) {
	h := newInside(f)
	go func() {
		for {
			c, err := h.ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	f.Add(uint8(6), []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0})
	f.Add(uint8(17), []byte{0, 1, 0, 1, 0, 9, 0, 0, 'x'})
	f.Add(uint8(1), []byte{8, 0, 0, 0, 0, 1, 0, 1})
	f.Add(uint8(1), []byte{3, 4, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 254, 10, 0, 2, 2, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, proto uint8, b []byte) {
		h.t = t
		p := h.out
		p.Reset()
		b = b[:min(len(b), 60000)]
		p.End = p.Off + 20 + copy(p.Buf[p.Off+20:], b)
		network(p.Bytes(), packet.IPv4, proto, 1, &insideAddr, &hostAddr)
		if (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && len(b) >= 4 {
			binary.BigEndian.PutUint16(p.Bytes()[22:], h.port)
		}
		if p.Parse() != 0 {
			return
		}
		p.FixChecksums()
		h.q.Write(p)
		for range 10 {
			if h.get(0) == nil {
				break
			}
		}
	})
}

// TestDescriptors: without descriptors the oldest datagram flow makes room.
func TestDescriptors(t *testing.T) {
	h := newInside(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	udp := func(sport uint16) error {
		p := h.out
		p.Reset()
		p.End = p.Off + 20 + 8 + 1
		b := p.Bytes()
		network(b, packet.IPv4, packet.ProtoUDP, 1, &insideAddr, &hostAddr)
		clear(b[20:])
		binary.BigEndian.PutUint16(b[20:], sport)
		binary.BigEndian.PutUint16(b[22:], h.port)
		binary.BigEndian.PutUint16(b[24:], 9)
		if r := p.Parse(); r != 0 {
			t.Fatal(r)
		}
		p.FixChecksums()
		return h.q.Write(p)
	}
	if err := udp(1); err != nil {
		t.Fatal(err, h.out.Reason)
	}
	h.q.poll()
	// No descriptor beyond those in use may be had.
	fd, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	low := was
	low.Cur = uint64(fd)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err = udp(2)
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Errorf("no flow gave way: %v, %v", err, h.out.Reason)
	}
	if n := h.l.Flows(); n != 1 {
		t.Errorf("%d flows", n)
	}
}

// TestLateEnd: a connection whose last bytes the host takes late ends when it has them.
func TestLateEnd(t *testing.T) {
	h := newInside(t)
	theirs, c := h.connect(4000, 1)
	c.(*net.TCPConn).CloseWrite()
	if p := h.get(patience); p == nil || p.TCPFlags()&packet.TCPFin == 0 {
		t.Fatalf("no FIN: %s", say(p))
	}
	h.send(4000, packet.TCPAckFlag, 2, theirs+1, nil, nil)
	seq := uint32(2)
	for chunk := make([]byte, 30000); ; { // until neither the host nor the uplink takes more
		h.send(4000, packet.TCPAckFlag, seq, theirs+1, nil, chunk)
		p := h.get(patience)
		if p == nil {
			t.Fatal("no acknowledgement")
		}
		if seq += uint32(len(chunk)); p.TCPAck() != seq {
			seq = p.TCPAck()
			break
		}
	}
	h.send(4000, packet.TCPAckFlag|packet.TCPFin, seq, theirs+1, nil, nil)
	if p := h.get(patience); p == nil || p.TCPAck() != seq+1 {
		t.Fatalf("the FIN is not acknowledged: %s", say(p))
	}
	got := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	for end := time.Now().Add(patience); h.l.Flows() > 0; h.get(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d flows are left", h.l.Flows())
		}
	}
	if n := <-got; n != int64(seq-2) {
		t.Errorf("the host got %d bytes, not %d", n, seq-2)
	}
}
