package netstack

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// tunQueue is a handle of one descriptor. Reads and writes are raw system
// calls: the descriptor does not block, so the scheduler need not hear of them.
type tunQueue struct {
	fd   int
	hdr  int  // length of the virtio-net header, bytes
	uso  bool // the device takes UDP super-packets
	emit func(*packet.Packet)
	err  error // of the segments being emitted

	held packet.Merger
	iov  []unix.Iovec
	rest [][]byte
	lost func(*packet.Packet)
}

func newTUNQueue(fd, hdr int, uso bool) *tunQueue {
	q := &tunQueue{fd: fd, hdr: hdr, uso: uso, lost: func(*packet.Packet) {}}
	q.emit = q.emitSegment
	q.held.NoUDP = !uso
	q.iov = make([]unix.Iovec, 0, packet.MaxMerge)
	q.rest = make([][]byte, 0, packet.MaxMerge)
	return q
}

func (q *tunQueue) FD() int { return q.fd }

func (q *tunQueue) Read(p *packet.Packet) error {
	b := p.Buf[packet.Headroom-q.hdr : packet.Headroom+packet.MaxLen+1]
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	for errno == syscall.EINTR {
		n, _, errno = syscall.RawSyscall(syscall.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	}
	if errno != 0 {
		if errno == syscall.EAGAIN {
			return ErrAgain
		}
		return ErrGone // EBADFD: detached from a deleted device; EIO: it is being deleted
	}
	if int(n) < q.hdr {
		p.Reason = ReasonBadVnetHeader
		return ErrFrame
	}
	p.Off, p.End = packet.Headroom, packet.Headroom+int(n)-q.hdr
	if p.End-p.Off > packet.MaxLen {
		p.Reason = ReasonFrameTooLong
		return ErrFrame
	}
	if q.hdr != 0 && !readVnet(b[:vnetHdrLen], p) {
		p.Reason = ReasonBadVnetHeader
		return ErrFrame
	}
	return nil
}

func (q *tunQueue) OnLoss(f func(*packet.Packet)) { q.lost = f }

// Hold keeps p for Flush, where neighbours of a flow leave as one super-packet.
func (q *tunQueue) Hold(p *packet.Packet) {
	if q.hdr == 0 || p.Off < q.hdr || q.split(p) {
		if err := q.Write(p); err != nil {
			q.lost(p)
		}
		return
	}
	if q.held.Full() {
		q.Flush()
	}
	q.held.Add(p)
}

// split says that the device does not take p whole.
func (q *tunQueue) split(p *packet.Packet) bool {
	return p.GSO.Type != packet.GSONone && (q.hdr == 0 || !q.uso && p.GSO.Type == packet.GSOUDPL4)
}

func (q *tunQueue) Write(p *packet.Packet) error {
	if q.held.Len() > 0 {
		if err := q.Flush(); err != nil {
			return err
		}
	}
	return q.write(p)
}

func (q *tunQueue) write(p *packet.Packet) error {
	if q.split(p) {
		q.err = nil
		packet.Segments(p, q.emit)
		return q.err
	}
	if q.hdr == 0 {
		p.CompleteChecksum()
		return q.send(p, p.Buf[p.Off:p.End])
	}
	if p.Off < q.hdr {
		n := copy(p.Buf[packet.Headroom:], p.Buf[p.Off:p.End])
		p.Off, p.End = packet.Headroom, packet.Headroom+n
	}
	b := p.Buf[p.Off-q.hdr : p.End]
	writeVnet(b, p)
	return q.send(p, b)
}

// emitSegment writes one segment of a super-packet that the device does not take whole.
func (q *tunQueue) emitSegment(seg *packet.Packet) {
	if err := q.write(seg); err != nil && q.err == nil {
		q.err = err
	}
}

func (q *tunQueue) send(p *packet.Packet, b []byte) error {
	if len(b) == 0 {
		p.Reason = ReasonSendError
		return ErrSend
	}
	return q.result(p, unix.SYS_WRITE, unsafe.Pointer(&b[0]), len(b))
}

// result makes the system call and says what came of it.
func (q *tunQueue) result(p *packet.Packet, call uintptr, at unsafe.Pointer, n int) error {
	_, _, errno := syscall.RawSyscall(call, uintptr(q.fd), uintptr(at), uintptr(n))
	for errno == syscall.EINTR {
		_, _, errno = syscall.RawSyscall(call, uintptr(q.fd), uintptr(at), uintptr(n))
	}
	switch errno {
	case 0:
		return nil
	case syscall.EIO: // the driver's answer while the interface is down
		p.Reason = ReasonLinkDown
		return ErrDown
	case syscall.EBADFD, syscall.ENODEV, syscall.EBADF:
		p.Reason = ReasonLinkDown
		return ErrGone
	}
	p.Reason = ReasonSendError
	return ErrSend
}

// Flush writes what is held. Losses of single packets are told to OnLoss;
// ErrGone is the only error.
func (q *tunQueue) Flush() error {
	if q.held.Len() == 0 {
		return nil
	}
	var gone error
	for i := range q.held.Groups() {
		p, more := q.held.Group(i)
		var err error
		if more == 0 {
			err = q.write(p)
		} else {
			err = q.gather(p, i)
		}
		if err != nil {
			reason := p.Reason
			q.held.Each(i, func(p *packet.Packet) {
				p.Reason = reason
				q.lost(p)
			})
			if err == ErrGone {
				gone = err
			}
		}
	}
	q.held.Reset()
	return gone
}

// gather writes a group with one system call: its first packet, then the
// payloads of the others from where they lie.
func (q *tunQueue) gather(p *packet.Packet, group int) error {
	b := p.Buf[p.Off-q.hdr : p.End]
	writeVnet(b, p)
	q.rest = q.held.Payloads(group, q.rest[:0])
	q.iov = append(q.iov[:0], unix.Iovec{Base: &b[0], Len: uint64(len(b))})
	for _, r := range q.rest {
		q.iov = append(q.iov, unix.Iovec{Base: &r[0], Len: uint64(len(r))})
	}
	return q.result(p, unix.SYS_WRITEV, unsafe.Pointer(&q.iov[0]), len(q.iov))
}

// NewTUNQueue is a queue over a descriptor that is attached to a TUN device
// with a virtio-net header of 10 bytes, and does not block. uso: the device
// takes UDP super-packets.
func NewTUNQueue(fd int, uso bool) Queue { return newTUNQueue(fd, vnetHdrLen, uso) }
