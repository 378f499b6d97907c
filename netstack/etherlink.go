package netstack

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"sluice/packet"
)

// etherLink is what links of Ethernet frames have in common: an address of
// their own, neighbours, and queues that are descriptors.
type etherLink struct {
	iface  atomic.Pointer[packet.Iface]
	ether  *ether
	queues []*etherQueue
	closed bool
}

// open takes the descriptors over; gone tells the errors of a device that went away.
func (l *etherLink) open(iface *packet.Iface, mac MAC, addrs []netip.Prefix, fds []int, gone func(syscall.Errno) bool) {
	l.iface.Store(iface)
	l.ether = newEther(mac, &l.iface)
	l.ether.setAddresses(addrs)
	for _, fd := range fds {
		l.queues = append(l.queues, newEtherQueue(fd, vnetHdrLen, l.ether, gone))
	}
}

// Iface is the interface; see Link.
func (l *etherLink) Iface() *packet.Iface { return l.iface.Load() }

// Queues is the number of queues.
func (l *etherLink) Queues() int { return len(l.queues) }

// Queue is the i-th queue.
func (l *etherLink) Queue(i int) Queue { return l.queues[i] }

// SetAddresses says which addresses are the router's on this link.
func (l *etherLink) SetAddresses(addrs []netip.Prefix) { l.ether.setAddresses(addrs) }

// SetMTU changes the router's MTU; the kernel's end or device stays as it is.
func (l *etherLink) SetMTU(mtu int) error {
	i := l.iface.Load()
	l.iface.Store(packet.NewIface(i.Index, i.Name, mtu))
	return nil
}

// Close closes the descriptors. A TAP device goes with the last of its queues;
// the device of packet sockets stays.
func (l *etherLink) Close() error {
	if l.closed {
		return nil
	}
	l.closed = true
	// The kernel waits for an RCU grace period with each packet socket: all at once.
	errs := make([]error, len(l.queues))
	var wg sync.WaitGroup
	for i, q := range l.queues {
		wg.Go(func() { errs[i] = unix.Close(q.fd) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
