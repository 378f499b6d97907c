// Package packet holds the frame buffer and its decoded view: one Packet is one
// frame on its way through the router. A Packet belongs to one goroutine at a
// time, normally a worker, and is reused; nothing in this package allocates.
package packet

// Address families, by IP version.
const (
	IPv4 uint8 = 4
	IPv6 uint8 = 6
)

// Protocol numbers (IANA).
const (
	ProtoICMP    uint8 = 1
	ProtoTCP     uint8 = 6
	ProtoUDP     uint8 = 17
	ProtoDCCP    uint8 = 33
	ProtoGRE     uint8 = 47
	ProtoESP     uint8 = 50
	ProtoAH      uint8 = 51
	ProtoICMPv6  uint8 = 58
	ProtoNone    uint8 = 59
	ProtoSCTP    uint8 = 132
	ProtoUDPLite uint8 = 136
)

// Room around a frame. Headroom takes the virtio-net header and link headers;
// Tailroom lets a helper grow a payload. BufSize holds any frame with both.
const (
	Headroom = 128
	Tailroom = 512
	MaxLen   = 65535
	BufSize  = Headroom + MaxLen + 1 + Tailroom
)

// Flags of the decoded view.
type Flags uint32

const (
	// Fragment is set on any fragment, first ones included.
	Fragment Flags = 1 << iota
	// LaterFragment is set where the fragment offset is not zero: there is no
	// transport header, and a port match fails.
	LaterFragment
	// MoreFragments is the header's MF bit.
	MoreFragments
	// DontFragment is IPv4's DF bit.
	DontFragment
	// Options is set where an IPv4 header has options.
	Options
	// HasL4 is set where the transport header is there as far as its
	// fixed part (TCP 20, UDP 8, ICMP 8, SCTP 12, others 0 bytes).
	HasL4
	// L4ChecksumOK: verified (or known good: from an offloading device, or made by the router).
	L4ChecksumOK
	// Local is set on packets that the router itself made (they pass OUTPUT).
	Local
	// Untracked is set by NOTRACK (CT --notrack): conntrack leaves it alone.
	Untracked
	// Loopback is set on a local packet that is on its way back in through lo.
	Loopback
	// HasOwner: UID and GID are those of the local socket.
	HasOwner
	// Reassembled: made of fragments; FragMax is the largest one's length.
	Reassembled
	// HasPorts is set where HasL4 is and the protocol has ports.
	HasPorts
	// BadHeaders is set where IPv6's extension headers cannot be followed to a
	// transport header: conntrack calls such a packet invalid, a rule that names
	// a protocol drops it.
	BadHeaders
	// SystemSocket: of the router's own accord, through a socket that no program
	// has, as Linux sends ICMP, and resets for closed ports over IPv4.
	SystemSocket
	// Parsed: Parse has been done, Reason is what it returned.
	Parsed
	// Unmarked: nothing was done to the packet but to parse, route and rewrite
	// it, so that Renew need not clear what is rare.
	Unmarked
)

// PktType is the link-level destination class, as `-m pkttype` sees it (linux/if_packet.h values).
type PktType uint8

const (
	PktHost PktType = iota
	PktBroadcast
	PktMulticast
	PktOtherHost
)

// CtInfo is a packet's relation to its connection, with the kernel's values
// (enum ip_conntrack_info) moved up by one, so that zero means "none".
type CtInfo uint8

const (
	CtNone CtInfo = iota
	CtEstablished
	CtRelated
	CtNew
	CtEstablishedReply
	CtRelatedReply
	CtInvalid   // looked at and refused; p.Ct is 0
	CtUntracked // NOTRACK, or a packet conntrack does not look at (e.g. NDP)
)

// Reply says whether the packet runs in the reply direction of its connection.
func (c CtInfo) Reply() bool { return c == CtEstablishedReply || c == CtRelatedReply }

// GSO is the virtio-net header's content (host byte order): a super-packet is
// one frame that the next device without offload has to split.
type GSO struct {
	Type       uint8  // virtio: 0 none, 1 TCPv4, 4 TCPv6, 3 UFO, 5 UDP_L4; |0x80 ECN
	NeedsCsum  bool   // checksum is partial: CsumStart, CsumOffset are valid (from the network header)
	HdrLen     uint16 // network + transport header, bytes
	Size       uint16 // payload bytes per segment
	CsumStart  uint16
	CsumOffset uint16
}

// Values of GSO.Type.
const (
	GSONone  uint8 = 0
	GSOTCPv4 uint8 = 1
	GSOUDP   uint8 = 3
	GSOTCPv6 uint8 = 4
	GSOUDPL4 uint8 = 5
	GSOECN   uint8 = 0x80
)

// Packet is a frame and what is known of it. The network packet is
// Buf[Off:End]; all offsets of the view count from its first byte.
type Packet struct {
	Buf []byte
	Off int
	End int
	view
	state
	Route RouteRef // result of the routing decision; see netstack
	rare
}

// view is what is known of the frame: filled by Parse, kept true by whoever
// rewrites the frame.
type view struct {
	Flags   Flags
	FragID  uint32 // IPv4: the identification of any packet
	Family  uint8
	Proto   uint8  // transport protocol; for IPv6 the one after the extension headers
	L4      uint16 // offset of the transport header
	FragOff uint16 // fragment offset, bytes
	errAt   uint16 // where a parameter problem points
	GSO     GSO
}

// state travels with the packet.
type state struct {
	CtInfo  CtInfo
	PktType PktType
	Traced  bool   // by TRACE: the rules that it matches are logged
	Home    uint8  // 1 + the worker whose queues its connection uses; 0: as Ct says
	Reason  Reason // why it was dropped
	Ct      uint32 // conntrack.Table index; 0: none
	Mark    uint32
	Worker  uint16
	Now     int64  // the burst's clock: monotonic nanoseconds
	In, Out *Iface // nil: none (as rules see it)
}

// rare is what most packets do not have; see Renew.
type rare struct {
	Pieces   []uint16 // reassembled: the fragments' payloads, bytes, in order; never written to
	FragMax  uint16   // reassembled: largest fragment's length, bytes
	SecMark  uint32   // index of a security label; 0: none
	Priority uint32
	UID, GID uint32 // of the local socket, if HasOwner
	Socket   uint32 // the local socket that TPROXY chose for it; 0: none
}

// RouteRef is what the routing decision left for the output side.
type RouteRef struct {
	Type    uint8    // netstack.RouteType
	MTU     uint32   // bytes; 0: the device's
	NextHop [16]byte // gateway, or the destination itself
}

// Bytes is the network packet.
func (p *Packet) Bytes() []byte { return p.Buf[p.Off:p.End] }

// Len is the network packet's length in bytes.
func (p *Packet) Len() int { return p.End - p.Off }

// Transport is the bytes from the transport header on; on a later fragment, the payload.
func (p *Packet) Transport() []byte { return p.Buf[p.Off+int(p.L4) : p.End] }

// Is reports whether all of f are set.
func (p *Packet) Is(f Flags) bool { return p.Flags&f == f }

// Reset makes p an empty packet in its own buffer.
func (p *Packet) Reset() {
	buf := p.Buf
	*p = Packet{Buf: buf, Off: Headroom, End: Headroom}
}

// Renew is Reset, and costs less for a packet that is Unmarked.
func (p *Packet) Renew() {
	if p.Flags&Unmarked == 0 {
		p.Reset()
		return
	}
	p.Off, p.End = Headroom, Headroom
	p.view, p.state = view{}, state{}
}

// New allocates a packet with a buffer of BufSize.
func New() *Packet {
	p := &Packet{Buf: make([]byte, BufSize)}
	p.Reset()
	return p
}

// Of allocates a packet that holds a copy of b, in a buffer with no room behind it.
func Of(b []byte) *Packet {
	p := &Packet{Buf: make([]byte, Headroom+len(b))}
	p.SetBytes(b)
	return p
}

// SetBytes copies a network packet into p's buffer (p is Reset first).
func (p *Packet) SetBytes(b []byte) {
	p.Reset()
	p.End = p.Off + copy(p.Buf[p.Off:], b)
}
