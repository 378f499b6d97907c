package host

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is what the kernel says of a TUN device.
type Device struct {
	Exists     bool
	TUN        bool // and not TAP, or another kind of device
	MultiQueue bool
	VnetHdr    bool
	Persistent bool
	Queues     int    // attached now
	Owner      uint32 // user that may attach; 0: nobody but who has CAP_NET_ADMIN
	MTU        int    // bytes
	Index      int    // the kernel's
}

// Look asks for a device in the calling thread's namespace.
func Look(name string) (Device, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Device{}, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return Device{}, nil
	}
	if err != nil {
		return Device{}, fmt.Errorf("device %s: %w", name, err)
	}
	d := Device{Exists: true, MTU: link.Attrs().MTU, Index: link.Attrs().Index}
	if t, ok := link.(*netlink.Tuntap); ok {
		d.TUN = t.Mode == netlink.TUNTAP_MODE_TUN
		d.MultiQueue = t.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
		d.VnetHdr = t.Flags&netlink.TUNTAP_VNET_HDR != 0
		d.Persistent = !t.NonPersist
		d.Queues = t.Queues + t.DisabledQueues
		d.Owner = t.Owner
	}
	return d, nil
}

// MakeCommand is the command that makes a device for a user.
func MakeCommand(ns *Namespace, name string, uid int, vnet bool) string {
	s := ns.ip() + "tuntap add dev " + name + " mode tun user " + userName(uid) + " multi_queue"
	if vnet {
		s += " vnet_hdr"
	}
	return s
}

// RemoveCommand is the command that removes a device.
func RemoveCommand(ns *Namespace, name string, multiQueue bool) string {
	s := ns.ip() + "tuntap del dev " + name + " mode tun"
	if multiQueue {
		s += " multi_queue"
	}
	return s
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// LookupUser gives the uid of a user name or number.
func LookupUser(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}
