package uplink

import "net/netip"

// Verdict is what a Checker says of a connection.
type Verdict uint8

// More: it takes more bytes to tell. Refuse resets the connection on both sides.
const (
	More Verdict = iota
	Pass
	Refuse
)

// maxCheck is how many bytes a Checker sees at most: the largest TLS record,
// with room for a ClientHello in two of them. More is Refuse then.
const maxCheck = 36 << 10

// Checker looks at the first bytes of TCP connections. Its methods are called
// on workers, and must not block.
type Checker interface {
	// Wants says whether a connection from in to out is to be looked at.
	Wants(in, out netip.AddrPort) bool
	// Unseen is told of UDP to where connections are looked at. It is refused:
	// the name that QUIC says is not in plain sight.
	Unseen(in, out netip.AddrPort)
	// Judge is given all bytes that the client has sent so far, to keep no longer than the call.
	Judge(in, out netip.AddrPort, first []byte) Verdict
}
