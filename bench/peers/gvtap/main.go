// Command gvtap gives a network namespace the network of gvisor-tap-vsock: that
// module's virtual network, with a TAP device in the place of the socket of a
// virtual machine. It is the shortest way that its library has: one read and one
// write a frame, without another process between.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gvtap:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: gvtap PATH-OF-NAMESPACE MTU")
	}
	mtu, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	file, err := openTAP(args[0])
	if err != nil {
		return err
	}
	n, err := virtualnetwork.New(&types.Configuration{
		MTU:               mtu,
		Subnet:            "10.0.1.0/24",
		GatewayIP:         "10.0.1.1",
		GatewayMacAddress: "5a:94:ef:e4:0c:dd",
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return n.AcceptBess(context.Background(), frames{File: file})
}

// openTAP makes tap0 in the namespace.
func openTAP(ns string) (*os.File, error) {
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, so it needs no way back
		fd, err := func() (int, error) {
			dir, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return -1, err
			}
			if err := unix.Setns(dir, unix.CLONE_NEWNET); err != nil {
				return -1, err
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return -1, err
			}
			req, err := unix.NewIfreq("tap0")
			if err != nil {
				return -1, err
			}
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}()
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	return os.NewFile(uintptr(r.fd), "tap0"), nil
}

// frames is a device as the connection that the module wants: a frame a read, a frame a write.
type frames struct {
	*os.File
}

type address struct{}

func (address) Network() string { return "tap" }
func (address) String() string  { return "tap0" }

func (frames) LocalAddr() net.Addr  { return address{} }
func (frames) RemoteAddr() net.Addr { return address{} }
