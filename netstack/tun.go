package netstack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/packet"
)

// TUNConfig describes a TUN device.
type TUNConfig struct {
	Name    string
	Index   int       // the router's number for it
	MTU     int       // bytes; 0: 1500
	Queues  int       // at least 1
	Offload bool      // virtio-net header, TSO and USO
	Stays   bool      // a device that OpenTUN makes does not go with its queues: closing is quick then, and its namespace takes it along
	Owner   *uint32   // user that may attach to a device that sluice makes; nil: nobody in particular
	Host    *host.End // the kernel's end; nil: in our own namespace, and nothing but up
}

// TUN is a device of the kernel's TUN driver.
type TUN struct {
	iface   atomic.Pointer[packet.Iface]
	ns      *host.Namespace
	queues  []int // descriptors
	created bool
	offload uint // TUN_F_* that the kernel took
	hdrLen  int  // virtio-net header, bytes; 0 without offload
	adopted bool // the device is in a namespace out of our reach
	closed  bool
}

// The driver's offload flags (linux/if_tun.h).
const (
	tunFCsum = 0x01
	tunFTSO4 = 0x02
	tunFTSO6 = 0x04
	tunFUSO4 = 0x20
	tunFUSO6 = 0x40
)

// What is asked for, best first; older kernels know less.
var offloads = []uint{
	tunFCsum | tunFTSO4 | tunFTSO6 | tunFUSO4 | tunFUSO6,
	tunFCsum | tunFTSO4 | tunFTSO6,
	tunFCsum,
	0,
}

// OpenTUN makes a device, or takes one that was made beforehand, attaches the
// queues and sets the kernel's end up. A device that it made dies with the
// process, also by SIGKILL, unless cfg.Stays; one made beforehand stays.
func OpenTUN(cfg TUNConfig) (*TUN, error) {
	if cfg.Queues < 1 {
		cfg.Queues = 1
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	end := host.End{}
	if cfg.Host != nil {
		end = *cfg.Host
	}
	if end.MTU == 0 {
		end.MTU = cfg.MTU
	}
	ns, err := host.OpenNamespace(end.NetNS)
	if err != nil {
		return nil, err
	}
	t := &TUN{ns: ns}
	if cfg.Offload {
		t.hdrLen = vnetHdrLen
	}
	t.iface.Store(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU))
	if err := ns.Do(func() error { return t.open(&cfg, &end) }); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// open runs in the device's namespace.
func (t *TUN) open(cfg *TUNConfig, end *host.End) error {
	d, err := host.Look(cfg.Name)
	if err != nil {
		return err
	}
	if d.Exists {
		if err := usable(&d, t.ns, cfg); err != nil {
			return err
		}
	} else if err := t.create(cfg); err != nil {
		return err
	}
	if err := t.attach(cfg, &d); err != nil {
		if t.created && len(t.queues) == 0 {
			removeDevice(cfg.Name)
		}
		return err
	}
	if t.created {
		q := t.queues[0]
		if cfg.Owner != nil {
			if err := unix.IoctlSetInt(q, unix.TUNSETOWNER, int(*cfg.Owner)); err != nil {
				return fmt.Errorf("setting the owner: %w", err)
			}
		}
		if !cfg.Stays {
			// Last: from here on the device lives as long as its queues.
			if err := unix.IoctlSetInt(q, unix.TUNSETPERSIST, 0); err != nil {
				return fmt.Errorf("clearing persistence: %w", err)
			}
		}
	}
	if t.created {
		if err := host.Tune(cfg.Name); err != nil {
			return err
		}
	}
	return host.Apply(t.ns, cfg.Name, end, nil)
}

// create makes the device with water and leaves it without a descriptor: as
// long as water's is attached, the kernel ignores IFF_VNET_HDR on the others.
func (t *TUN) create(cfg *TUNConfig) error {
	w, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: cfg.Name, Persist: true, MultiQueue: true},
	})
	if err != nil {
		return createError(err, t.ns, cfg)
	}
	t.created = true
	if err := w.Close(); err != nil {
		removeDevice(cfg.Name)
		return err
	}
	return nil
}

// removeDevice takes back a persistent device whose queues could not be attached.
func removeDevice(name string) {
	if l, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(l)
	}
}

func createError(err error, ns *host.Namespace, cfg *TUNConfig) error {
	if e := nodeError(err); e != nil {
		return e
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("making the device takes CAP_NET_ADMIN. As root: %s", host.MakeCommand(ns, cfg.Name, os.Getuid(), cfg.Offload))
	}
	return fmt.Errorf("making the device: %w", err)
}

// nodeError explains a failure to open /dev/net/tun; nil for other errors.
func nodeError(err error) error {
	var pe *fs.PathError
	path := ""
	if errors.As(err, &pe) {
		path = pe.Path
	}
	_, serr := os.Stat(tunNode)
	switch {
	case errors.Is(serr, fs.ErrNotExist):
		return fmt.Errorf("%s is not there. As root: modprobe tun", tunNode)
	case unix.Access(tunNode, unix.R_OK|unix.W_OK) != nil && (path == tunNode || path == ""):
		return fmt.Errorf("%s: permission denied. As root: chmod 0666 %s", tunNode, tunNode)
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s: the kernel has no TUN driver. As root: modprobe tun", tunNode)
	}
	return nil
}

const tunNode = "/dev/net/tun"

// usable says what is wrong with a device that was made beforehand, and the commands that mend it.
func usable(d *host.Device, ns *host.Namespace, cfg *TUNConfig) error {
	switch {
	case !d.TUN:
		return errors.New("a device of that name is there and is not a TUN device; choose another name, or remove it: ip link del " + cfg.Name)
	case !d.MultiQueue:
		return fmt.Errorf("the device was made without multi_queue. As root: %s; %s",
			host.RemoveCommand(ns, cfg.Name, false), host.MakeCommand(ns, cfg.Name, os.Getuid(), cfg.Offload))
	case d.Queues > 0:
		return errors.New("another process is attached to the device; see: ip -d tuntap show")
	}
	// vnet_hdr is not looked at: the first queue that is attached sets it as it likes.
	return nil
}

func tunFlags(cfg *TUNConfig) uint16 {
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if cfg.Offload {
		flags |= unix.IFF_VNET_HDR
	}
	return flags
}

// attach opens the queues.
func (t *TUN) attach(cfg *TUNConfig, d *host.Device) error {
	flags := tunFlags(cfg)
	for i := range cfg.Queues {
		q, err := t.attachQueue(cfg, d, flags)
		if err != nil {
			return fmt.Errorf("queue %d of %d: %w", i, cfg.Queues, err)
		}
		t.queues = append(t.queues, q)
	}
	return t.setOffload(cfg.Offload)
}

// setOffload asks the driver for what it can hand over unsplit.
func (t *TUN) setOffload(on bool) error {
	fd := t.queues[0]
	t.offload = 0
	if on {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHdrLen); err != nil {
			return fmt.Errorf("setting the virtio-net header's length: %w", err)
		}
		var err error
		for _, t.offload = range offloads {
			if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(t.offload)); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("setting offloads: %w", err)
		}
	} else if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		// A device made beforehand still has what its last user set.
		return fmt.Errorf("clearing offloads: %w", err)
	}
	return nil
}

func (t *TUN) attachQueue(cfg *TUNConfig, d *host.Device, flags uint16) (int, error) {
	fd, err := unix.Open(tunNode, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if e := nodeError(err); e != nil {
			return -1, e
		}
		return -1, fmt.Errorf("%s: %w", tunNode, err)
	}
	if err := t.setup(fd, cfg, d, flags); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (t *TUN) setup(fd int, cfg *TUNConfig, d *host.Device, flags uint16) error {
	req, err := unix.NewIfreq(cfg.Name)
	if err != nil {
		return err
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return attachError(err, t.ns, cfg, d)
	}
	return checkFlags(fd, flags)
}

// checkFlags says whether the driver gave an attached descriptor the flags.
func checkFlags(fd int, flags uint16) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("reading the device's flags: %w", err)
	}
	const features = unix.IFF_TUN | unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR
	if got := req.Uint16() & features; got != flags {
		return fmt.Errorf("the kernel attached it %s vnet_hdr, as another process has it that is attached to the device (flags %#x, wanted %#x)",
			map[bool]string{true: "with", false: "without"}[got&unix.IFF_VNET_HDR != 0], got, flags)
	}
	return nil
}

func attachError(err error, ns *host.Namespace, cfg *TUNConfig, d *host.Device) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the device belongs to uid %d, not to uid %d. As root: %s; %s", d.Owner, os.Getuid(),
			host.RemoveCommand(ns, cfg.Name, true), host.MakeCommand(ns, cfg.Name, os.Getuid(), cfg.Offload))
	case errors.Is(err, unix.EBUSY):
		return errors.New("another process is attached to the device; see: ip -d tuntap show")
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("the device has too many queues (%d asked for; the driver has 256)", cfg.Queues)
	}
	return fmt.Errorf("attaching: %w", err)
}

// AdoptTUN takes the queues of a device that another process has made with
// OpenTUN, the same Offload and an end of its own, in a namespace that this one
// need not be able to enter. cfg.Host and cfg.Owner mean nothing here. The
// descriptors are the TUN's, also after an error.
func AdoptTUN(cfg TUNConfig, queues []int) (*TUN, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	ns, err := host.OpenNamespace("")
	t := &TUN{ns: ns, adopted: true}
	if cfg.Offload {
		t.hdrLen = vnetHdrLen
	}
	t.iface.Store(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU))
	for i, fd := range queues {
		if err == nil {
			if err = checkFlags(fd, tunFlags(&cfg)); err != nil {
				err = fmt.Errorf("queue %d: %w", i, err)
			}
		}
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		t.queues = append(t.queues, fd)
	}
	if err == nil && len(queues) == 0 {
		err = errors.New("a device without queues")
	}
	if err == nil {
		err = t.setOffload(cfg.Offload)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Descriptors are the queues, for AdoptTUN in another process.
func (t *TUN) Descriptors() []int {
	return slices.Clone(t.queues)
}

// Iface is the interface; see Link.
func (t *TUN) Iface() *packet.Iface { return t.iface.Load() }

// Queues is the number of queues.
func (t *TUN) Queues() int { return len(t.queues) }

// Steered marks the link; see the interface.
func (t *TUN) Steered() {}

// Queue is a handle of the i-th queue.
func (t *TUN) Queue(i int) Queue {
	return newTUNQueue(t.queues[i], t.hdrLen, t.offload&tunFUSO4 != 0)
}

// Made reports whether the device was made by OpenTUN and will go with it.
func (t *TUN) Made() bool { return t.created }

// Offloads describes what the kernel hands over unsplit, for people.
func (t *TUN) Offloads() string {
	switch {
	case t.hdrLen == 0:
		return "none"
	case t.offload&tunFUSO4 != 0:
		return "csum tso uso"
	case t.offload&tunFTSO4 != 0:
		return "csum tso"
	case t.offload&tunFCsum != 0:
		return "csum"
	}
	return "vnet_hdr"
}

// SetMTU changes the MTU on both ends.
func (t *TUN) SetMTU(mtu int) error {
	i := t.iface.Load()
	if i.MTU == mtu {
		return nil
	}
	if t.adopted {
		return errors.New("the MTU of a device in another process' namespace is set by that process")
	}
	if err := t.ns.Do(func() error { return host.Apply(t.ns, i.Name, &host.End{MTU: mtu}, nil) }); err != nil {
		return err
	}
	t.iface.Store(packet.NewIface(i.Index, i.Name, mtu))
	return nil
}

// SetHost makes the kernel's end as end says: what was named and end does not
// name goes, what others put there stays. end's namespace has to be the one
// that the device was opened with.
func (t *TUN) SetHost(end, was *host.End) error {
	return t.ns.Do(func() error { return host.Apply(t.ns, t.Iface().Name, end, was) })
}

// Misplaced reports whether the device's namespace was deleted, or replaced by
// another one of the same name. The device itself does not end with it: an
// attached queue keeps its namespace alive.
func (t *TUN) Misplaced() bool { return t.ns.Replaced() }

// Close detaches the queues; a device that OpenTUN made goes.
func (t *TUN) Close() error {
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	for _, fd := range t.queues {
		errs = append(errs, unix.Close(fd))
	}
	t.ns.Close()
	return errors.Join(errs...)
}
