package netstack

import (
	"fmt"
	"net/netip"
	"strconv"

	"sluice/packet"
)

// RouteType is what a route does with a packet, with the kernel's RTN_* values.
type RouteType uint8

const (
	RouteNone        RouteType = 0 // no route (network unreachable)
	RouteUnicast     RouteType = 1
	RouteLocal       RouteType = 2
	RouteBroadcast   RouteType = 3
	RouteAnycast     RouteType = 4
	RouteMulticast   RouteType = 5
	RouteBlackhole   RouteType = 6
	RouteUnreachable RouteType = 7
	RouteProhibit    RouteType = 8
	RouteThrow       RouteType = 9
)

var routeTypes = [...]string{"none", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw"}

func (t RouteType) String() string {
	if int(t) < len(routeTypes) {
		return routeTypes[t]
	}
	return strconv.Itoa(int(t))
}

// ParseRouteType is String's reverse; "" is unicast.
func ParseRouteType(s string) (RouteType, error) {
	if s == "" {
		return RouteUnicast, nil
	}
	for i, n := range routeTypes {
		if n == s && i > 0 {
			return RouteType(i), nil
		}
	}
	return 0, fmt.Errorf("unknown route type %q", s)
}

// Table numbers with a meaning of their own.
const (
	TableDefault uint32 = 253
	TableMain    uint32 = 254
	TableLocal   uint32 = 255
)

// Scope is the distance to a destination, with the kernel's RT_SCOPE_* values.
type Scope uint8

const (
	ScopeUniverse Scope = 0
	ScopeSite     Scope = 200
	ScopeLink     Scope = 253
	ScopeHost     Scope = 254
	ScopeNowhere  Scope = 255
)

// Query asks for a route. Addresses are in network order, IPv4 in the first
// four bytes and the rest zero.
type Query struct {
	Family uint8 // packet.IPv4 or packet.IPv6
	TOS    uint8
	Dst    [16]byte
	Src    [16]byte // zero: not known yet
	Mark   uint32
	In     *packet.Iface // nil: the packet is the router's own (rules see "iif lo")
	Out    *packet.Iface // not nil: only routes through this interface (a bound socket)
}

// Route is an answer. The zero Route is "no route".
type Route struct {
	Type      RouteType
	Scope     Scope
	Gateway   bool // NextHop is a gateway, not the destination itself
	Table     uint32
	Metric    uint32
	MTU       uint32        // bytes: the route's, or else the interface's
	PrefixLen uint8         // of the matching prefix; Back alone fills it in
	Dev       *packet.Iface // nil where Type is an error
	NextHop   [16]byte
	PrefSrc   [16]byte // source address that the route prefers; zero: none
}

// RouteSpec describes a route to add or delete.
type RouteSpec struct {
	To     netip.Prefix // valid; 0.0.0.0/0 or ::/0 for "default"
	Via    netip.Addr   // gateway; the zero Addr: none
	Dev    string       // interface; "": found from Via
	Table  uint32       // 0: main
	Metric uint32       // 0: IPv4 0, IPv6 1024
	Type   RouteType    // 0: unicast
	Scope  Scope        // of the destination; IPv4 only; ignored when zero
	Src    netip.Addr   // preferred source
	MTU    uint32       // bytes; 0: the interface's
	Onlink bool         // Via is on Dev, whatever the other routes say
	Proto  uint8        // who made it: 2 kernel, 3 boot, 4 static; 0: static
}

// Rule is one policy routing rule.
type Rule struct {
	Family   uint8
	Priority uint32 // lowest first
	Auto     bool   // choose a priority below every other one's, as `ip rule add` does
	From, To netip.Prefix
	IIF, OIF string
	Mark     uint32
	Mask     uint32 // 0 with a Mark: all bits
	TOS      uint8
	Not      bool
	Table    uint32    // where Action is RouteUnicast
	Action   RouteType // 0 or RouteUnicast: look in Table; or blackhole, unreachable, prohibit
}

// IfaceAddr is an address of the router's.
type IfaceAddr struct {
	Prefix    netip.Prefix // the address itself, and its network's length
	Scope     Scope
	Secondary bool // IPv4: another address of the same network came first
	Auto      bool // made by AddIface, not configured: the link-local one
}

func addr16(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		v4 := a.As4()
		copy(b[:], v4[:])
	} else if a.IsValid() {
		b = a.As16()
	}
	return b
}

// Addr makes a netip.Addr of the bytes that packets and queries hold.
func Addr(family uint8, b [16]byte) netip.Addr {
	if family == packet.IPv4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return packet.IPv4
	}
	return packet.IPv6
}
