// Package nfqueue lets a program decide about the packets that rules send to a
// queue (-j NFQUEUE --queue-num N) of a running router.
//
//	q, err := nfqueue.Open(ctx, "/run/sluice.sock", 5, nfqueue.Options{})
//	for {
//		p, err := q.Recv()
//		…
//		err = q.Decide(nfqueue.Decision{ID: p.ID, Verdict: nfqueue.Accept})
//	}
//
// One program at a time has a queue. When it goes, the packets that wait are
// dropped, as Linux drops them; until another comes, rules drop what they
// match, or let it pass where they say --queue-bypass.
//
// # Protocol
//
// A program in another language speaks the control socket's protocol, with the
// arguments "nfqueue NUM [--max N] [--fail-open]". Then each message of either
// side, within its output and input, is a 32-bit length and so many bytes. All
// numbers are big-endian. The router begins with an empty message: the queue is
// there. Its others are packets:
//
//	32 bits  id              8 bits  length of the incoming interface's name
//	16 bits  queue           …       that name
//	 8 bits  hook (0 to 4)   8 bits  length of the outgoing interface's name
//	 8 bits  4 or 6          …       that name
//	32 bits  mark            …       the IP packet
//
// The program's are decisions:
//
//	32 bits  id              8 bits  flags: 1 set the mark, 2 replace the packet
//	 8 bits  verdict        32 bits  mark
//	                         …       the IP packet, with flag 2
package nfqueue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"sluice/internal/control"
)

// Verdict is what becomes of a packet, with the kernel's numbers.
type Verdict uint8

const (
	Drop   Verdict = 0
	Accept Verdict = 1 // it goes on behind the table whose rule queued it
	Repeat Verdict = 4 // it walks that table again
)

// Packet is a packet that waits for a decision.
type Packet struct {
	ID      uint32
	Queue   uint16
	Hook    uint8 // the kernel's numbers: 0 PREROUTING to 4 POSTROUTING
	Family  uint8 // 4 or 6
	Mark    uint32
	In, Out string // interfaces, "" for none
	Payload []byte // the IP packet
}

// Decision is what a program says of one packet.
type Decision struct {
	ID      uint32
	Verdict Verdict
	SetMark bool
	Mark    uint32
	Payload []byte // nil: as it was. Checksums are the program's affair
}

// Options of a queue.
type Options struct {
	Max      int  // packets that may wait; 0: 1024
	FailOpen bool // more than Max pass, instead of being dropped
}

const defaultMax = 1024

// MaxMessage bounds a message: a packet and its header.
const MaxMessage = 1<<16 + 1024

var errShort = errors.New("nfqueue: a message is too short")

// AppendPacket appends p as the router sends it.
func AppendPacket(b []byte, p *Packet) []byte {
	n := 14 + len(p.In) + len(p.Out) + len(p.Payload)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, p.ID)
	b = binary.BigEndian.AppendUint16(b, p.Queue)
	b = append(b, p.Hook, p.Family)
	b = binary.BigEndian.AppendUint32(b, p.Mark)
	b = append(append(b, uint8(len(p.In))), p.In...)
	b = append(append(b, uint8(len(p.Out))), p.Out...)
	return append(b, p.Payload...)
}

// ParsePacket reads a message without its length.
func ParsePacket(b []byte) (*Packet, error) {
	if len(b) < 12 {
		return nil, errShort
	}
	p := &Packet{ID: binary.BigEndian.Uint32(b), Queue: binary.BigEndian.Uint16(b[4:]), Hook: b[6], Family: b[7], Mark: binary.BigEndian.Uint32(b[8:])}
	b = b[12:]
	for _, name := range []*string{&p.In, &p.Out} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return nil, errShort
		}
		*name, b = string(b[1:1+b[0]]), b[1+b[0]:]
	}
	p.Payload = b
	return p, nil
}

// Flags of a decision on the wire.
const (
	flagMark    = 1
	flagPayload = 2
)

// AppendDecision appends d as a program sends it.
func AppendDecision(b []byte, d *Decision) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(d.Payload)))
	b = binary.BigEndian.AppendUint32(b, d.ID)
	var flags uint8
	if d.SetMark {
		flags |= flagMark
	}
	if d.Payload != nil {
		flags |= flagPayload
	}
	b = append(b, uint8(d.Verdict), flags)
	b = binary.BigEndian.AppendUint32(b, d.Mark)
	return append(b, d.Payload...)
}

// ParseDecision reads a message without its length.
func ParseDecision(b []byte) (*Decision, error) {
	if len(b) < 10 {
		return nil, errShort
	}
	d := &Decision{ID: binary.BigEndian.Uint32(b), Verdict: Verdict(b[4]), SetMark: b[5]&flagMark != 0, Mark: binary.BigEndian.Uint32(b[6:])}
	switch d.Verdict {
	case Drop, Accept, Repeat:
	default:
		return nil, fmt.Errorf("nfqueue: there is no verdict %d", d.Verdict)
	}
	if b[5]&flagPayload != 0 {
		d.Payload = b[10:]
	}
	return d, nil
}

// ReadMessage reads one message; the length is taken off.
func ReadMessage(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxMessage {
		return nil, fmt.Errorf("nfqueue: a message of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// Queue is a queue that this program has.
type Queue struct {
	cancel context.CancelFunc
	recv   *io.PipeReader
	msgs   chan []byte // as many as can wait: reading them never waits for Decide
	err    error       // why msgs ended
	mu     sync.Mutex  // serialises Decide
	send   *io.PipeWriter
	buf    []byte
}

// Open takes a queue of the router at a control socket. Canceling ctx, or
// Close, gives it back.
func Open(ctx context.Context, socket string, num uint16, o Options) (*Queue, error) {
	argv := []string{"nfqueue", strconv.Itoa(int(num))}
	if o.Max > 0 {
		argv = append(argv, "--max", strconv.Itoa(o.Max))
	}
	if o.FailOpen {
		argv = append(argv, "--fail-open")
	}
	ctx, cancel := context.WithCancel(ctx)
	outR, outW := io.Pipe()
	inR, inW := io.Pipe()
	go func() {
		var stderr bytes.Buffer
		status, err := control.Call(ctx, socket, argv, inR, outW, &stderr)
		if err == nil && status != 0 {
			err = errors.New(strings.TrimPrefix(strings.TrimSpace(stderr.String()), "sluice: "))
		}
		if err == nil {
			err = io.EOF
		}
		outW.CloseWithError(err)
		inR.CloseWithError(err)
	}()
	if o.Max <= 0 {
		o.Max = defaultMax
	}
	q := &Queue{cancel: cancel, recv: outR, send: inW, msgs: make(chan []byte, o.Max)}
	if b, err := ReadMessage(outR); err != nil || len(b) != 0 {
		close(q.msgs)
		q.Close()
		if err == nil {
			err = errors.New("nfqueue: the router speaks otherwise")
		}
		return nil, err
	}
	go q.read()
	return q, nil
}

// read takes the router's messages off the socket, on which decisions travel, too.
func (q *Queue) read() {
	defer close(q.msgs)
	for {
		b, err := ReadMessage(q.recv)
		if err != nil {
			q.err = err
			return
		}
		q.msgs <- b
	}
}

// Recv waits for the next packet; io.EOF: the router has ended.
func (q *Queue) Recv() (*Packet, error) {
	b, ok := <-q.msgs
	if !ok {
		return nil, q.err
	}
	return ParsePacket(b)
}

// Decide says what becomes of a packet. It may be called from several
// goroutines, and in any order of packets.
func (q *Queue) Decide(d Decision) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.buf = AppendDecision(q.buf[:0], &d)
	_, err := q.send.Write(q.buf)
	return err
}

// Close gives the queue back.
func (q *Queue) Close() error {
	q.cancel()
	q.send.Close()
	err := q.recv.Close()
	for range q.msgs { // what nobody will decide any more
	}
	return err
}
