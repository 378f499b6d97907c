// Package conntrack tracks connections as Linux's nf_conntrack does: tuples,
// the flow table, the protocols' state machines, timeouts, expectations,
// helpers and events.
package conntrack

import "unsafe"

// Dir is a direction of a connection.
type Dir uint8

const (
	Original Dir = iota
	Reply
)

// Other is the opposite direction.
func (d Dir) Other() Dir { return d ^ 1 }

// Tuple names one direction of a flow. It holds no pointers and no padding, so
// == is a plain compare. Addresses are in network order, IPv4 in the first four
// bytes with the rest zero; ports are in host order.
type Tuple struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16 // ICMP: identifier, and type<<8|code; GRE: keys; others 0
	Zone             uint16
	Proto, Family    uint8
}

var _ = [1]byte{}[unsafe.Sizeof(Tuple{})-40]

// Status bits, with the kernel's values (enum ip_conntrack_status).
type Status uint32

const (
	Expected     Status = 1 << 0
	SeenReply    Status = 1 << 1
	Assured      Status = 1 << 2
	Confirmed    Status = 1 << 3
	SrcNAT       Status = 1 << 4
	DstNAT       Status = 1 << 5
	SeqAdjust    Status = 1 << 6
	SrcNATDone   Status = 1 << 7
	DstNATDone   Status = 1 << 8
	Dying        Status = 1 << 9
	FixedTimeout Status = 1 << 10
	IsTemplate   Status = 1 << 11
	NATClash     Status = 1 << 12
	HelperSet    Status = 1 << 13

	NATMask     = SrcNAT | DstNAT
	NATDoneMask = SrcNATDone | DstNATDone
)

// ZoneDir is the set of directions a zone holds for.
type ZoneDir uint8

const (
	ZoneBoth ZoneDir = iota
	ZoneOrig
	ZoneReply
)

// TCPState has the kernel's numbers (enum tcp_conntrack).
type TCPState uint8

const (
	TCPNone TCPState = iota
	TCPSynSent
	TCPSynRecv
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
	TCPSynSent2
	numTCP
)

var tcpNames = [numTCP]string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT",
	"CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}

func (s TCPState) String() string {
	if s < numTCP {
		return tcpNames[s]
	}
	return "NONE"
}

// SCTPState has the kernel's numbers (enum sctp_conntrack).
type SCTPState uint8

const (
	SCTPNone SCTPState = iota
	SCTPClosed
	SCTPCookieWait
	SCTPCookieEchoed
	SCTPEstablished
	SCTPShutdownSent
	SCTPShutdownRecd
	SCTPShutdownAckSent
	SCTPHeartbeatSent
	numSCTP
)

var sctpNames = [numSCTP]string{"NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED",
	"SHUTDOWN_SENT", "SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT"}

func (s SCTPState) String() string {
	if s < numSCTP {
		return sctpNames[s]
	}
	return "NONE"
}
