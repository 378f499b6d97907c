package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/packet"
)

// PacketConfig describes an existing Ethernet device that is read and written
// through packet sockets.
type PacketConfig struct {
	Name      string
	Index     int            // the router's number for it
	MTU       int            // bytes; 0: the device's
	Queues    int            // at least 1; flows are spread over them
	NetNS     string         // where the device is; see host.OpenNamespace
	Addresses []netip.Prefix // the router's own, which ARP and neighbour discovery are answered for
}

// Packet is an Ethernet link of packet sockets. The kernel sees its frames too:
// the device is to have no addresses of the host's.
type Packet struct{ etherLink }

// OpenPacket takes over a device. It takes CAP_NET_RAW in the device's namespace.
func OpenPacket(cfg PacketConfig) (*Packet, error) {
	ns, err := host.OpenNamespace(cfg.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var fds []int
	var mac MAC
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(cfg.Name)
		if err != nil {
			return fmt.Errorf("device %s: %w", cfg.Name, err)
		}
		at := link.Attrs()
		if at.EncapType != "ether" || len(at.HardwareAddr) != len(mac) {
			return fmt.Errorf("device %s is no Ethernet device (%s)", cfg.Name, at.EncapType)
		}
		copy(mac[:], at.HardwareAddr)
		if cfg.MTU == 0 {
			cfg.MTU = at.MTU
		} else if cfg.MTU > at.MTU {
			return fmt.Errorf("device %s has an MTU of %d, which is less than %d", cfg.Name, at.MTU, cfg.MTU)
		}
		fds, err = PacketSockets(at.Index, max(cfg.Queues, 1))
		return err
	})
	if err != nil {
		return nil, err
	}
	return AdoptPacket(cfg, mac, fds)
}

// AdoptPacket makes a link of sockets that PacketSockets gave, maybe in another
// process, on a device with the Ethernet address mac. The descriptors are the
// link's, also after an error.
func AdoptPacket(cfg PacketConfig, mac MAC, fds []int) (*Packet, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	l := &Packet{}
	l.open(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU), mac, cfg.Addresses, fds, packetGone)
	if len(fds) == 0 {
		return nil, errors.New("a link without sockets")
	}
	return l, nil
}

func packetGone(errno syscall.Errno) bool { return errno == syscall.ENXIO || errno == syscall.ENODEV }

// PacketSockets opens n packet sockets on the device with this index in the
// calling thread's network namespace, with virtio-net headers; flows are spread
// over them.
func PacketSockets(ifindex, n int) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	group := -1
	for range n {
		// Protocol 0: nothing arrives before everything is set.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			if errors.Is(err, unix.EPERM) {
				return fds, fmt.Errorf("packet socket: %w (it takes CAP_NET_RAW)", err)
			}
			return fds, fmt.Errorf("packet socket: %w", err)
		}
		fds = append(fds, fd)
		for _, o := range []struct{ name, value int }{{unix.PACKET_VNET_HDR, 1}, {unix.PACKET_IGNORE_OUTGOING, 1}} {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.name, o.value); err != nil {
				return fds, fmt.Errorf("packet socket: option %d: %w", o.name, err)
			}
		}
		// A super-packet is 64 KB, and the default holds three of them.
		for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o+25, packetBuffer) != nil { // SO_*BUFFORCE
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, packetBuffer)
			}
		}
		if err := untagged(fd); err != nil {
			return fds, err
		}
		all := make([]byte, 2)
		binary.BigEndian.PutUint16(all, unix.ETH_P_ALL)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all), Ifindex: ifindex}); err != nil {
			return fds, fmt.Errorf("packet socket: bind: %w", err)
		}
		if n > 1 {
			if group, err = fanOut(fd, group); err != nil {
				return fds, fmt.Errorf("packet socket: PACKET_FANOUT: %w", err)
			}
		}
	}
	return fds, nil
}

// fanOut puts a socket into a group that shares the flows, the first into a new one (-1).
func fanOut(fd, group int) (int, error) {
	mode := unix.PACKET_FANOUT_HASH
	if group < 0 {
		mode |= unix.PACKET_FANOUT_FLAG_UNIQUEID
		group = 0
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, group|mode<<16); err != nil {
		return group, err
	}
	value, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	return value & 0xffff, err
}

const packetBuffer = 4 << 20

// untagged keeps frames of VLANs away, which would look like others: the
// kernel takes the tag off before a packet socket sees the frame.
func untagged(fd int) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fmt.Errorf("packet socket: filter: %w", err)
	}
	return nil
}
