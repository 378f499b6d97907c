package tables

// Sockets is what rules ask of the router's own sockets. A look may take locks
// that opening and closing a socket hold: only rules that ask pay for it. It
// does not allocate.
type Sockets interface {
	// Find is the socket that a packet from k's remote end to its local end would reach.
	Find(k *SocketKey) (Socket, bool)
	// Assigned is the socket with an ID, as packet.Packet.Socket has it.
	Assigned(id uint32) (Socket, bool)
}

// SocketKey is a packet's ends as a socket sees them. Addresses are in network
// order, IPv4 in the first four bytes.
type SocketKey struct {
	Family, Proto         uint8 // packet.ProtoTCP or ProtoUDP
	Local, Remote         [16]byte
	LocalPort, RemotePort uint16
	Listener              bool // connections do not count
}

// Socket is what rules want to know of one.
type Socket struct {
	ID          uint32 // names it in packet.Packet.Socket; never 0
	Connected   bool   // has a peer
	TimeWait    bool   // all there is of a connection is its TIME_WAIT
	Wildcard    bool   // bound to no address
	Transparent bool   // may have others' addresses (IP_TRANSPARENT)
	Marked      bool   // Mark is known: not half open, not in TIME_WAIT
	Mark        uint32 // what its packets are marked with (SO_MARK)
}
