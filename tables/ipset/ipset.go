package ipset

import (
	"net/netip"
	"slices"
	"strings"

	"sluice/packet"
)

// Error is a refusal, with the number that Linux has for it.
type Error uint16

// The refusals of linux/netfilter/ipset/ip_set*.h, and the system's.
const (
	ErrNoEntry         Error = 2  // ENOENT: no set of that name
	ErrAgain           Error = 11 // EAGAIN
	ErrExistName       Error = 17 // EEXIST: the name is taken
	ErrInvalid         Error = 22 // EINVAL: malformed
	ErrRange           Error = 34 // ERANGE: too large a range
	ErrFindType        Error = 4098
	ErrMaxSets         Error = 4099
	ErrBusy            Error = 4100
	ErrExistSetname2   Error = 4101
	ErrTypeMismatch    Error = 4102
	ErrExist           Error = 4103 // the element is there, or for deletion it is not
	ErrInvalidCIDR     Error = 4104
	ErrInvalidNetmask  Error = 4105
	ErrInvalidFamily   Error = 4106
	ErrTimeout         Error = 4107
	ErrReferenced      Error = 4108
	ErrIPv4            Error = 4109
	ErrIPv6            Error = 4110
	ErrCounter         Error = 4111
	ErrComment         Error = 4112
	ErrInvalidMarkmask Error = 4113
	ErrSKBInfo         Error = 4114
	ErrBitmaskNetmask  Error = 4115

	ErrHashFull    Error = 4352
	ErrHashElem    Error = 4353
	ErrProto       Error = 4354
	ErrMissing     Error = 4355
	ErrBitmapRange Error = 4608
	ErrBitmapSize  Error = 4609
	ErrListName    Error = 4864 // the set named as an element is not there
	ErrListLoop    Error = 4865
	ErrListNameRef Error = 4867 // the set named with before or after is not there
	ErrListFull    Error = 4868
	ErrListRef     Error = 4869 // … is not in the list
)

var errorText = map[Error]string{
	ErrNoEntry:         "there is no set of this name",
	ErrAgain:           "try again",
	ErrExistName:       "a set of this name is there already",
	ErrInvalid:         "malformed",
	ErrRange:           "the range is too large",
	ErrFindType:        "there is no such set type",
	ErrMaxSets:         "there are as many sets as there can be",
	ErrBusy:            "the set is in use",
	ErrExistSetname2:   "a set of the new name is there already",
	ErrTypeMismatch:    "the sets are of different kinds",
	ErrExist:           "the element is there already, or is not there",
	ErrInvalidCIDR:     "the prefix length is out of range",
	ErrInvalidNetmask:  "the netmask is out of range",
	ErrInvalidFamily:   "the set type is not for this family",
	ErrTimeout:         "the set has no timeouts",
	ErrReferenced:      "the set is in use",
	ErrIPv4:            "an IPv4 address is expected",
	ErrIPv6:            "an IPv6 address is expected",
	ErrCounter:         "the set has no counters",
	ErrComment:         "the set has no comments",
	ErrInvalidMarkmask: "the markmask is out of range",
	ErrSKBInfo:         "the set has no skbinfo",
	ErrBitmaskNetmask:  "netmask and bitmask exclude each other",
	ErrHashFull:        "the set is full",
	ErrHashElem:        "the element has a part that is all zeros",
	ErrProto:           "the protocol is not valid",
	ErrMissing:         "the protocol is missing",
	ErrBitmapRange:     "the element is out of the set's range",
	ErrBitmapSize:      "the range is too large for the set's type",
	ErrListName:        "the set that is to be an element does not exist",
	ErrListLoop:        "a list of sets cannot hold a list",
	ErrListNameRef:     "the set named with before or after does not exist",
	ErrListFull:        "the list is full",
	ErrListRef:         "the set named with before or after is not in the list",
}

func (e Error) Error() string { return errorText[e] }

// dim is one part of an element.
type dim uint8

const (
	dimIP dim = iota
	dimNet
	dimPort
	dimIface
	dimMAC
	dimMark
	dimSet
)

type method uint8

const (
	methodHash method = iota
	methodBitmap
	methodList
)

// Features that decide which sets can be swapped, as Linux has them.
const (
	featIP = 1 << iota
	featPort
	featMAC
	featIP2
	featName
	featIface
	featMark
	featNoMatch
)

// Type is a kind of set.
type Type struct {
	Name     string
	Revision uint8 // as `ipset list` shows it
	method   method
	dims     []dim
	features uint16
	v4only   bool
	anyFam   bool // elements have no address
}

// types are all there are, in the order of ipset(8).
var types = []*Type{
	{Name: "bitmap:ip", Revision: 3, method: methodBitmap, dims: []dim{dimIP}, features: featIP, v4only: true},
	{Name: "bitmap:ip,mac", Revision: 3, method: methodBitmap, dims: []dim{dimIP, dimMAC}, features: featIP | featMAC, v4only: true},
	{Name: "bitmap:port", Revision: 3, method: methodBitmap, dims: []dim{dimPort}, features: featPort, anyFam: true},
	{Name: "hash:ip", Revision: 6, dims: []dim{dimIP}, features: featIP},
	{Name: "hash:mac", Revision: 1, dims: []dim{dimMAC}, features: featMAC, anyFam: true},
	{Name: "hash:ip,mac", Revision: 1, dims: []dim{dimIP, dimMAC}, features: featIP | featMAC},
	{Name: "hash:net", Revision: 7, dims: []dim{dimNet}, features: featIP | featNoMatch},
	{Name: "hash:net,net", Revision: 4, dims: []dim{dimNet, dimNet}, features: featIP | featIP2 | featNoMatch},
	{Name: "hash:ip,port", Revision: 7, dims: []dim{dimIP, dimPort}, features: featIP | featPort},
	{Name: "hash:net,port", Revision: 8, dims: []dim{dimNet, dimPort}, features: featIP | featPort | featNoMatch},
	{Name: "hash:ip,port,ip", Revision: 6, dims: []dim{dimIP, dimPort, dimIP}, features: featIP | featPort | featIP2},
	{Name: "hash:ip,port,net", Revision: 8, dims: []dim{dimIP, dimPort, dimNet}, features: featIP | featPort | featIP2 | featNoMatch},
	{Name: "hash:ip,mark", Revision: 3, dims: []dim{dimIP, dimMark}, features: featIP | featMark},
	{Name: "hash:net,port,net", Revision: 3, dims: []dim{dimNet, dimPort, dimNet}, features: featIP | featPort | featIP2 | featNoMatch},
	{Name: "hash:net,iface", Revision: 8, dims: []dim{dimNet, dimIface}, features: featIP | featIface | featNoMatch},
	{Name: "list:set", Revision: 3, method: methodList, dims: []dim{dimSet}, features: featName, anyFam: true},
}

// TypeNamed finds a type, nil if there is none.
func TypeNamed(name string) *Type {
	for _, t := range types {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Types are all types, in the order of ipset(8).
func Types() []*Type { return slices.Clone(types) }

// Dimension is how many src or dst flags a rule needs for the set; of a list, 1.
func (t *Type) Dimension() int { return len(t.dims) }

// Parts are the names of an element's parts: ip, net, port, iface, mac, mark, set.
func (t *Type) Parts() []string {
	_, parts, _ := strings.Cut(t.Name, ":")
	return strings.Split(parts, ",")
}

// Method is bitmap, hash or list.
func (t *Type) Method() string { m, _, _ := strings.Cut(t.Name, ":"); return m }

// NoMatch reports whether elements may be exceptions.
func (t *Type) NoMatch() bool { return t.features&featNoMatch != 0 }

// FixedFamily is the only family that elements can have: packet.IPv4, or 0 for
// types without addresses and those for both.
func (t *Type) FixedFamily() uint8 {
	if t.v4only {
		return packet.IPv4
	}
	return 0
}

// NoFamily reports whether elements have no addresses.
func (t *Type) NoFamily() bool { return t.anyFam }

// Options are what a set is created with.
type Options struct {
	Family     uint8 // packet.IPv4 (also 0) or packet.IPv6
	HashSize   uint32
	MaxElem    uint32 // 0: 65536, if HasMaxElem does not say that it is meant
	HasMaxElem bool
	BucketSize uint8
	InitVal    uint32 // 0: chosen by chance
	Netmask    uint8  // prefix length; 0: none
	Bitmask    [16]byte
	HasBitmask bool
	MarkMask   uint32 // 0: all ones

	HasTimeout bool
	Timeout    uint32 // default for elements, seconds; 0: they stay
	Counters   bool
	Comment    bool
	SKBInfo    bool
	ForceAdd   bool

	From, To uint32 // range of bitmap:ip and bitmap:ip,mac (host order), and of bitmap:port
	Size     uint32 // of a list, 0: 8; has no effect
}

// MaxTimeout is the longest timeout in seconds.
const MaxTimeout = 2147483

// MaxComment is the most bytes of a comment.
const MaxComment = 255

// MaxName is the most bytes of a set's name.
const MaxName = 31

// Elem is one element. Which fields are in use is the type's affair. Addresses
// are in network order, IPv4 in the first four bytes.
type Elem struct {
	Addr, Addr2 [16]byte
	Bits, Bits2 uint8 // prefix lengths
	Proto       uint8
	Port        uint16 // of ICMP, type and code
	Mark        uint32
	MAC         [6]byte
	HasMAC      bool // bitmap:ip,mac: the MAC address is known
	Iface       string
	Physdev     bool // Iface is a bridge port
	Wildcard    bool // Iface is the beginning of a name
	NoMatch     bool // an exception
	Set         string
	Before      string // place in a list: before this one …
	After       string // … or after it
}

// Ext is what an element carries.
type Ext struct {
	HasTimeout     bool   // Timeout is given; else the set's default
	Timeout        uint32 // seconds; 0: stays
	HasCounters    bool   // Packets or Bytes are given
	Packets, Bytes uint64
	HasComment     bool
	Comment        string
	HasInfo        bool
	Info           Info
}

// Info is skbinfo: what `SET --map-set` gives a packet.
type Info struct {
	Mark, MarkMask uint32
	Prio           uint32
	Queue          uint16
}

// elemOf makes the Elem of an address or prefix, for types hash:ip and hash:net.
func elemOf(p netip.Prefix) Elem {
	a := p.Addr().Unmap()
	return Elem{Addr: packet.AddrBytes(a), Bits: uint8(p.Bits() - p.Addr().BitLen() + a.BitLen())}
}
