package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/packet"
)

// TAPConfig describes a TAP device: an Ethernet link whose other end is the
// kernel's.
type TAPConfig struct {
	Name      string
	Index     int            // the router's number for it
	MTU       int            // bytes; 0: 1500
	Queues    int            // at least 1
	Addresses []netip.Prefix // the router's own, which ARP and neighbour discovery are answered for
	Proxied   []netip.Addr   // answered for as well: packets to them are the router's to forward
}

// TAP is a device of the kernel's TAP driver.
type TAP struct{ etherLink }

const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR

// MakeTAP makes a TAP device in the calling thread's network namespace, not yet
// up, and gives its queues' descriptors for AdoptTAP. It goes with the last of
// them. The kernel's end gets the Ethernet address mac, if that is not zero.
func MakeTAP(name string, queues int, mac MAC) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	for i := range max(queues, 1) {
		fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			if e := nodeError(err); e != nil {
				return fds, e
			}
			return fds, fmt.Errorf("%s: %w", tunNode, err)
		}
		fds = append(fds, fd)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return fds, fmt.Errorf("%q: %w", name, err)
		}
		req.SetUint16(tapFlags)
		if i == 0 {
			req.SetUint16(tapFlags | iffTunExcl)
		}
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fds, fmt.Errorf("a device %s is there already", name)
			}
			return fds, fmt.Errorf("making device %s: %w", name, err)
		}
	}
	link, err := netlink.LinkByName(name)
	if err == nil && mac != (MAC{}) {
		err = netlink.LinkSetHardwareAddr(link, mac[:])
	}
	return fds, err
}

// iffTunExcl: the device must not be there yet (linux/if_tun.h).
const iffTunExcl = 0x8000

// AdoptTAP makes a link of descriptors from MakeTAP; the router's Ethernet
// address is mac. The descriptors are the link's, also after an error.
func AdoptTAP(cfg TAPConfig, mac MAC, fds []int) (*TAP, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	t := &TAP{}
	t.open(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU), mac, cfg.Addresses, fds, tapGone)
	t.ether.proxied = cfg.Proxied
	if len(fds) == 0 {
		return nil, errors.New("a device without queues")
	}
	err := unix.IoctlSetPointerInt(fds[0], unix.TUNSETVNETHDRSZ, vnetHdrLen)
	if err == nil {
		for _, o := range offloads {
			if err = unix.IoctlSetInt(fds[0], unix.TUNSETOFFLOAD, int(o)); err == nil {
				for _, q := range t.queues {
					q.uso = o&tunFUSO4 != 0
				}
				break
			}
		}
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("setting offloads: %w", err)
	}
	return t, nil
}

func tapGone(errno syscall.Errno) bool {
	return errno == syscall.EBADFD || errno == syscall.ENODEV || errno == syscall.EBADF
}
