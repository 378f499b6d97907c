package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sluice/internal/host"
	"sluice/router"
)

func (a *app) setupCommand() *cobra.Command {
	s := &setup{out: a.stdout}
	var file, owner string
	cmd := &cobra.Command{
		Use:   "setup -c FILE",
		Short: "Do what needs privilege, so that run needs none",
		Long: `setup makes the TUN devices of a configuration, each for the user that owner
names, sets the kernel's ends up, and makes the network namespaces that are
missing. The devices stay when it ends; "sluice run" then needs no privilege, if
it is started in the namespace that its devices are in. What is there already is
left as it is, so setup can be run again. --remove takes the devices away.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(context.Context, []string) error {
			cfg, err := load(file, a.stderr)
			if err != nil {
				return err
			}
			if owner != "" {
				uid, err := host.LookupUser(owner)
				if err != nil {
					return fmt.Errorf("--owner: %w", err)
				}
				s.owner = &uid
			}
			return s.all(cfg)
		}),
	}
	configFlag(cmd, &file)
	cmd.Flags().StringVar(&owner, "owner", "", "`user` that interfaces without an owner are for")
	cmd.Flags().BoolVar(&s.remove, "remove", false, "remove the devices")
	return cmd
}

type setup struct {
	out    io.Writer
	owner  *uint32
	remove bool
}

const tunDevice = "/dev/net/tun"

// open lets users open the driver's device, as udev does on most systems: who
// may attach to what is the driver's to decide.
func (s *setup) open() error {
	st, err := os.Stat(tunDevice)
	if err != nil || st.Mode().Perm()&0o006 == 0o006 {
		return err
	}
	if err := os.Chmod(tunDevice, 0o666); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%s: users may open it now (mode 0666)\n", tunDevice)
	return nil
}

// all goes on after an interface that failed: the others may be fine.
func (s *setup) all(cfg *router.Config) error {
	var errs []error
	for i := range cfg.Interfaces {
		c := &cfg.Interfaces[i]
		if c.Type != router.TypeTUN {
			continue
		}
		if err := s.one(c); err != nil {
			errs = append(errs, fmt.Errorf("%s: interface %s: %w", c.Pos, c.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *setup) one(c *router.InterfaceConfig) error {
	end := router.HostEnd(c)
	if end == nil {
		end = &host.End{}
	}
	if end.MTU == 0 {
		end.MTU = c.MTU
	}
	if !s.remove {
		if err := s.namespace(end.NetNS); err != nil {
			return err
		}
	}
	ns, err := host.OpenNamespace(end.NetNS)
	if err != nil {
		if s.remove && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		if s.remove {
			return s.removeDevice(c)
		}
		if err := s.device(c); err != nil {
			return err
		}
		if err := host.Apply(ns, c.Name, end, nil); err != nil {
			return err
		}
		fmt.Fprintf(s.out, "%s: set up\n", c.Name)
		return nil
	})
}

// namespace makes a namespace of this name under /run/netns if there is none, with its lo up.
func (s *setup) namespace(name string) error {
	if name == "" {
		return nil
	}
	if dir, base := filepath.Split(name); dir == "/run/netns/" || dir == "/var/run/netns/" {
		name = base
	}
	if strings.ContainsRune(name, '/') {
		return nil // somebody else's; opening it says if it is missing
	}
	if _, err := os.Stat(filepath.Join("/run/netns", name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the new namespace and ends with the goroutine
		done <- func() error {
			ns, err := netns.NewNamed(name)
			if err != nil {
				return fmt.Errorf("making network namespace %s: %w", name, err)
			}
			defer ns.Close()
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.LinkSetUp(lo)
			}
			return err
		}()
	}()
	if err := <-done; err != nil {
		return err
	}
	fmt.Fprintf(s.out, "network namespace %s: made\n", name)
	return nil
}

// device makes a device that stays, in the calling thread's namespace.
func (s *setup) device(c *router.InterfaceConfig) error {
	d, err := host.Look(c.Name)
	if err != nil {
		return err
	}
	uid := s.owner
	if c.Owner.Name != "" {
		uid = &c.Owner.UID
	}
	if uid != nil && *uid != 0 {
		if err := s.open(); err != nil {
			return err
		}
	}
	if d.Exists {
		return s.fits(c, &d, uid)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", tunDevice, err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(c.Name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if c.Offload {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("making the device: %w", err)
	}
	if uid != nil {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(*uid)); err != nil {
			return fmt.Errorf("setting the owner: %w", err)
		}
	}
	if err := host.Tune(c.Name); err != nil {
		return err
	}
	// last, so that a device that could not be set up does not stay
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("making the device stay: %w", err)
	}
	return nil
}

// fits checks a device that is there.
func (s *setup) fits(c *router.InterfaceConfig, d *host.Device, uid *uint32) error {
	var is string
	switch {
	case !d.TUN:
		return errors.New("a device of that name is there and is not a TUN device")
	case !d.MultiQueue:
		is = "without multi_queue"
	case d.VnetHdr != c.Offload && c.Offload:
		is = "without vnet_hdr"
	case uid != nil && d.Owner != *uid:
		is = fmt.Sprintf("for uid %d", d.Owner)
	default:
		return nil
	}
	return fmt.Errorf("the device is there, made %s: take it away first with \"sluice setup --remove\"", is)
}

// removeDevice removes a TUN device in the calling thread's namespace.
func (s *setup) removeDevice(c *router.InterfaceConfig) error {
	d, err := host.Look(c.Name)
	switch {
	case err != nil:
		return err
	case !d.Exists:
		return nil
	case !d.TUN:
		return errors.New("the device of that name is not a TUN device; it is left alone")
	}
	link, err := netlink.LinkByName(c.Name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing the device: %w", err)
	}
	fmt.Fprintf(s.out, "%s: removed\n", c.Name)
	return nil
}
