// Command wgcopy carries frames between tun0 of two network namespaces with
// wireguard-go's tun package and nothing else: what that package splits on
// reading and merges on writing is all its work.
package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// offset is room before each packet for the package's virtio-net header.
const offset = 16

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "wgcopy:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: wgcopy CLIENT SERVER")
	}
	var devs [2]tun.Device
	for i, name := range args {
		made := make(chan error)
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine, so it needs no way back
			ns, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(ns, unix.CLONE_NEWNET)
			}
			if err == nil {
				devs[i], err = tun.CreateTUN("tun0", 1500)
			}
			made <- err
		}()
		if err := <-made; err != nil {
			return err
		}
	}
	ended := make(chan error, 2)
	go carry(devs[0], devs[1], ended)
	go carry(devs[1], devs[0], ended)
	fmt.Println("ready")
	return <-ended
}

func carry(from, to tun.Device, ended chan<- error) {
	n := from.BatchSize()
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, offset+1<<16)
	}
	out := make([][]byte, 0, n)
	for {
		got, err := from.Read(bufs, sizes, offset)
		if err != nil && got == 0 {
			ended <- err
			return
		}
		out = out[:0]
		for i := range got {
			out = append(out, bufs[i][:offset+sizes[i]])
		}
		to.Write(out, offset) // what the device refuses is lost, as on a wire
	}
}
