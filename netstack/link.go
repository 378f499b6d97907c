// Package netstack joins sluice to networks: links that carry frames (TUN
// devices, capture files), the routing tables, and the stack that owns the
// router's own addresses.
package netstack

import (
	"errors"

	"sluice/packet"
)

// Link is one interface of the router: a device, or files in its place.
type Link interface {
	// Iface is the interface as packets carry it; after SetMTU it is another one with the same index.
	Iface() *packet.Iface
	// Queues is the number of queues; each belongs to one worker.
	Queues() int
	// Queue is the i-th queue, i < Queues().
	Queue(i int) Queue
	// SetMTU changes the MTU (bytes), on the device as well.
	SetMTU(mtu int) error
	// Close ends the link and, if sluice made the device, removes it. The
	// queues must not be in use.
	Close() error
}

// Queue carries frames for one goroutine. Errors other than those named below
// concern one frame only: it is lost, p.Reason says why.
type Queue interface {
	// FD is what epoll waits on; -1 if there is nothing to wait for.
	FD() int
	// Read fills p (which was Reset): the frame at p.Off with headroom
	// before it, p.GSO, and what the link knows for p.Flags and p.PktType.
	// ErrAgain: no frame is there now. ErrGone: the device went away.
	// ErrFrame: a frame came that cannot be used; read on. io.EOF: a
	// capture file has ended; another error then: it is broken.
	Read(p *packet.Packet) error
	// Write sends p's frame; p is the caller's again when it returns, its
	// content may have changed. ErrGone: the device went away.
	Write(p *packet.Packet) error
	// Flush sends what Write has held back.
	Flush() error
}

// Prompter is a Queue that answers what is written to it, so that there may be
// something to read though FD says nothing.
type Prompter interface {
	Queue
	// Prompt says whether there is. After true, Read gives that, and then
	// ErrAgain, without asking what FD stands for.
	Prompt() bool
}

// Steered is a Link whose device hands a flow's packets to the queue that was
// last written to with packets of that flow, as TUN devices do. Each call of
// Queue gives a handle of its own, so that any worker may write to any queue.
type Steered interface {
	Link
	Steered()
}

// Holder is a Queue that gains by sending several packets at once.
type Holder interface {
	Queue
	// Hold takes a packet that is to be sent by the next Flush at the latest;
	// until then p and its bytes are the queue's. The order of what Hold and
	// Write got is kept within a flow.
	Hold(p *packet.Packet)
	// OnLoss sets what is called for each held packet that the device did not
	// take, with p.Reason set, from Hold, Write or Flush.
	OnLoss(func(p *packet.Packet))
}

// What Read and Write return, always these very values.
var (
	ErrAgain = errors.New("no frame to read")
	ErrGone  = errors.New("the device is gone")
	ErrFrame = errors.New("unusable frame")
	ErrDown  = errors.New("the interface is down")
	ErrSend  = errors.New("the device refused the frame")
	// ErrRefused: the link took the frame and had no use for it; p.Reason says why.
	ErrRefused = errors.New("the link has no use for the frame")
)

// Why a link lost a frame.
var (
	ReasonBadVnetHeader = packet.NewReason("link.bad_vnet_header", "the virtio-net header does not fit the frame")
	ReasonFrameTooLong  = packet.NewReason("link.too_long", "the frame is longer than 65535 bytes")
	ReasonNotIP         = packet.NewReason("link.not_ip", "the frame holds neither IPv4 nor IPv6")
	ReasonLinkDown      = packet.NewReason("link.down", "the outgoing interface is down or gone")
	ReasonSendError     = packet.NewReason("link.send_error", "the device did not take the frame")
)
