package memory

import (
	"encoding/binary"

	"sluice/netstack"
	"sluice/packet"
)

// frameLen is the length of the frames here: UDP over IPv4, 64 bytes.
const frameLen = 64

// link gives workers frames from memory and throws away what they send.
type link struct {
	iface  *packet.Iface
	queues []*queue
}

func newLink(n int) *link {
	l := &link{}
	for range n {
		l.queues = append(l.queues, &queue{})
	}
	return l
}

func (l *link) Iface() *packet.Iface       { return l.iface }
func (l *link) Queues() int                { return len(l.queues) }
func (l *link) Queue(i int) netstack.Queue { return l.queues[i] }
func (l *link) SetMTU(int) error           { return nil }
func (l *link) Close() error               { return nil }

// queue is one queue of a link. Its frames lie one behind the other in the order
// in which they are read, so that the source costs little; then they begin anew.
type queue struct {
	frames []byte
	next   int
	left   int            // frames to give
	sent   []byte         // what was written, if it has room
	made   func(b []byte) // makes the next frame in place, instead of frames
	_      [64]byte
}

func (q *queue) FD() int      { return -1 }
func (q *queue) Flush() error { return nil }

func (q *queue) Write(p *packet.Packet) error {
	if cap(q.sent) > len(q.sent) {
		q.sent = append(q.sent, p.Bytes()...)
	}
	return nil
}

func (q *queue) Read(p *packet.Packet) error {
	if q.left == 0 {
		return netstack.ErrAgain
	}
	q.left--
	b := p.Buf[p.Off : p.Off+frameLen]
	p.End = p.Off + frameLen
	if q.made != nil {
		q.made(b)
		return nil
	}
	copy(b, q.frames[q.next:q.next+frameLen])
	if q.next += frameLen; q.next == len(q.frames) {
		q.next = 0
	}
	return nil
}

// flow is where a UDP frame goes.
type flow struct {
	src, dst     uint32
	sport, dport uint16
}

// flowOf is the i-th flow from 10/8 to 9/8: enough destinations that ports never run out.
func flowOf(i int) flow {
	return flow{10<<24 | 1<<16 + uint32(i)%0x7f0000, 9<<24 | 9<<16 + uint32(i)%4001, uint16(1024 + i%60000), 53}
}

var be = binary.BigEndian

// put writes f's frame, whose checksums are right, into b.
func (f flow) put(b []byte) {
	b = b[:frameLen]
	clear(b)
	b[0], b[8], b[9] = 0x45, 64, packet.ProtoUDP
	be.PutUint16(b[2:], frameLen)
	be.PutUint32(b[12:], f.src)
	be.PutUint32(b[16:], f.dst)
	be.PutUint16(b[20:], f.sport)
	be.PutUint16(b[22:], f.dport)
	be.PutUint16(b[24:], frameLen-20)
	be.PutUint16(b[10:], ^packet.Sum(b[:20]))
	sum := ^packet.AddSum(packet.PseudoSum(b[12:16], b[16:20], packet.ProtoUDP, frameLen-20), packet.Sum(b[20:]))
	if sum == 0 {
		sum = 0xffff
	}
	be.PutUint16(b[26:], sum)
}

// udpFrames lays n frames one behind the other.
func udpFrames(n int, of func(i int) flow) []byte {
	b := make([]byte, n*frameLen)
	for i := range n {
		of(i).put(b[i*frameLen:])
	}
	return b
}

// answer turns the frames round, as their receiver would answer them.
func answer(sent []byte) []byte {
	return udpFrames(len(sent)/frameLen, func(i int) flow {
		b := sent[i*frameLen:]
		return flow{be.Uint32(b[16:]), be.Uint32(b[12:]), be.Uint16(b[22:]), be.Uint16(b[20:])}
	})
}
