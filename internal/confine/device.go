package confine

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/netstack"
)

// openDevice makes the device in the calling process' network namespace. Where
// that is the device's alone, it ends with the namespace and not before: the
// kernel takes tens of milliseconds to take a device out, and does that on its own then.
func openDevice(d *Device, alone bool) (*Opened, error) {
	if !d.Raw {
		if err := loopbackUp(); err != nil {
			return nil, err
		}
	}
	switch d.Kind {
	case DeviceVeth:
		return openVeth(d)
	case DeviceTAP:
		return openTAP(d)
	}
	err := tryTUN()
	if err == nil {
		return openTUN(d, alone)
	}
	if d.Kind == DeviceTUN {
		return nil, err
	}
	o, vethErr := openVeth(d)
	if vethErr != nil {
		return nil, fmt.Errorf("%w; a veth pair instead: %w", err, vethErr)
	}
	o.Instead = err.Error()
	return o, nil
}

// tryTUN is the error that says why there can be no TUN device.
func tryTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	return unix.Close(fd)
}

func (d *Device) end() *host.End {
	return &host.End{MTU: d.MTU, Addresses: d.Addresses, Routes: d.Routes}
}

func openTUN(d *Device, alone bool) (*Opened, error) {
	t, err := netstack.OpenTUN(netstack.TUNConfig{Name: d.Name, MTU: d.MTU, Queues: d.Queues, Offload: true, Stays: alone, Host: d.end()})
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.Name, err)
	}
	return &Opened{Kind: DeviceTUN, Queues: t.Descriptors()}, nil
}

func openTAP(d *Device) (*Opened, error) {
	fds, err := netstack.MakeTAP(d.Name, d.Queues, d.MAC)
	if err == nil && !d.Raw {
		err = setUp(d)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return &Opened{Kind: DeviceTAP, Queues: fds}, nil
}

// setUp gives a device of our own namespace what it is to have.
func setUp(d *Device) error {
	ns, err := host.OpenNamespace("")
	if err == nil {
		err = host.Tune(d.Name)
	}
	if err == nil {
		err = host.Apply(ns, d.Name, d.end(), nil)
	}
	return err
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if errors.Is(err, unix.EPERM) {
		return explainMount("lo", err)
	} else if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// openVeth makes a pair of devices: one here, the other in a namespace that
// nothing but the packet sockets on it holds.
func openVeth(d *Device) (*Opened, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	o := &Opened{Kind: DeviceVeth}
	err = elsewhere(func() error {
		rand.Read(o.MAC[:])
		o.MAC[0] = o.MAC[0]&^1 | 2 // one host's, locally administered
		far := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: d.Name, MTU: d.MTU, HardwareAddr: o.MAC[:], TxQLen: -1, NumTxQueues: d.Queues, NumRxQueues: d.Queues},
			PeerName:      d.Name,
			PeerMTU:       uint32(d.MTU),
			PeerNamespace: netlink.NsFd(int(here.Fd())),
		}
		if err := netlink.LinkAdd(far); err != nil {
			return fmt.Errorf("making a veth pair: %w", err)
		}
		// The far end's own stack has nothing to say.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+d.Name+"/disable_ipv6", []byte("1"), 0)
		link, err := netlink.LinkByName(d.Name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		o.Queues, err = netstack.PacketSockets(link.Attrs().Index, d.Queues)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := setUp(d); err != nil {
		closeAll(o.Queues)
		return nil, err
	}
	return o, nil
}

// elsewhere runs f in a new network namespace, which ends with what f opens there.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread stays in that namespace and ends with the goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// But the main thread never ends, and its namespace is what others take for the process'.
			defer runtime.UnlockOSThread()
			done <- elsewhere(f)
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			err = fmt.Errorf("a second network namespace: %w", err)
		} else {
			err = f()
		}
		done <- err
	}()
	return <-done
}
