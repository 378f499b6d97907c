package netstack

import (
	"encoding/binary"
	"fmt"

	"sluice/packet"
)

// linkType is a capture file's link type, in one byte.
type linkType uint8

const (
	linkNull linkType = 0   // 4 bytes of address family, host order
	linkEth  linkType = 1   // Ethernet
	linkRaw  linkType = 101 // IP, also 12 and 14
	linkLoop linkType = 108 // 4 bytes of address family, network order
	linkSLL  linkType = 113 // Linux "any" device
	link4    linkType = 228
	link6    linkType = 229
	linkSLL2 linkType = 254 // 276, which does not fit a byte
)

// linkCode gives a link type of pcap's registry as linkType.
func linkCode(t uint32) (linkType, error) {
	switch t {
	case 0, 1, 101, 108, 113, 228, 229:
		return linkType(t), nil
	case 12, 14:
		return linkRaw, nil
	case 276:
		return linkSLL2, nil
	}
	return 0, fmt.Errorf("link type %d; those that hold IP plainly are: RAW (101), IPV4 (228), IPV6 (229), ETHERNET (1), NULL (0), LOOP (108), LINUX_SLL (113), LINUX_SLL2 (276)", t)
}

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

// network finds the IP packet in a captured frame. false: it holds none.
func (t linkType) network(b []byte) (at int, cast packet.PktType, ok bool) {
	switch t {
	case linkRaw, link4, link6:
		return 0, 0, len(b) > 0
	case linkNull, linkLoop:
		return 4, 0, len(b) > 4 && (b[4]>>4 == 4 || b[4]>>4 == 6)
	case linkEth:
		return ethernet(b)
	case linkSLL:
		if len(b) < 16 {
			return 0, 0, false
		}
		at, ok = tagged(b, 14)
		return at, sllCast(binary.BigEndian.Uint16(b)), ok
	case linkSLL2:
		if len(b) < 20 {
			return 0, 0, false
		}
		typ := binary.BigEndian.Uint16(b)
		return 20, sllCast(uint16(b[10])), typ == etherIPv4 || typ == etherIPv6
	}
	return 0, 0, false
}

func ethernet(b []byte) (at int, cast packet.PktType, ok bool) {
	if len(b) < 14 {
		return 0, 0, false
	}
	switch {
	case [6]byte(b) == [6]byte{255, 255, 255, 255, 255, 255}:
		cast = packet.PktBroadcast
	case b[0]&1 != 0:
		cast = packet.PktMulticast
	}
	at, ok = tagged(b, 12)
	return at, cast, ok
}

// tagged follows VLAN tags from the type field at b[at:] to the payload.
func tagged(b []byte, at int) (int, bool) {
	for at+2 <= len(b) {
		switch binary.BigEndian.Uint16(b[at:]) {
		case etherIPv4, etherIPv6:
			return at + 2, true
		case etherVLAN, etherQinQ:
			at += 4
		default:
			return 0, false
		}
	}
	return 0, false
}

// sllCast: 0 to us, 1 broadcast, 2 multicast, 3 to another host, 4 from us.
func sllCast(typ uint16) packet.PktType {
	if typ >= 1 && typ <= 3 {
		return packet.PktType(typ)
	}
	return packet.PktHost
}
