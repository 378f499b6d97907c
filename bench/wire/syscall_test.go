package wire

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/packettest"
)

// BenchmarkTUN is what the system calls of the packet path cost: they are the
// floor under the figures end to end. Datagrams that are written go to a socket
// that another thread reads.
func BenchmarkTUN(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: a network namespace and a TUN device")
	}
	l, err := newLab()
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	s, err := l.space("calls")
	if err != nil {
		b.Fatal(err)
	}
	var fd int
	if err := s.h.Do(func() (err error) { fd, err = openTUN(true); return err }); err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	unix.SetNonblock(fd, true)
	for _, line := range [][]string{{"ip", "addr", "add", "10.0.0.1/24", "dev", "tun0"}, {"ip", "link", "set", "tun0", "up"}} {
		if err := s.run(line...); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := newSink(s); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1<<17)
	read := func() syscall.Errno {
		_, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		return errno
	}
	for read() == 0 {
	}
	b.Run("getppid", func(b *testing.B) {
		for range b.N {
			syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
	})
	b.Run("read-nothing", func(b *testing.B) {
		for range b.N {
			read()
		}
	})
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(epoll)
	unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN})
	var events [8]unix.EpollEvent
	b.Run("epoll-nothing", func(b *testing.B) {
		for range b.N {
			unix.EpollWait(epoll, events[:], 0)
		}
	})
	// Frames that the namespace sends out, read back.
	var out int
	err = s.h.Do(func() (err error) {
		if out, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Connect(out, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 0, 0, 2}})
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(out)
	b.Run("read", func(b *testing.B) {
		for n := 0; n < b.N; n += 256 {
			b.StopTimer()
			for range 256 {
				unix.Write(out, buf[:36])
			}
			b.StartTimer()
			for range 256 {
				read()
			}
		}
	})
	for read() == 0 {
	}
	benchmarkURing(b, fd, out)
	for _, joined := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("write/joined=%d", joined), func(b *testing.B) {
			q := netstack.NewTUNQueue(fd, true)
			ps := make([]*packet.Packet, joined)
			for i := range ps {
				f, err := packettest.Frame(fmt.Sprintf("udp 10.0.0.2:1000 > 10.0.0.1:%d len=36 df", udpPort))
				if err != nil {
					b.Fatal(err)
				}
				ps[i] = packet.New()
				ps[i].SetBytes(f)
			}
			keep := make([][]byte, joined)
			for i, p := range ps {
				keep[i] = append([]byte{}, p.Bytes()...)
			}
			for n := 0; n < b.N; n += joined {
				for i, p := range ps {
					p.SetBytes(keep[i])
					if p.Parse() != 0 {
						b.Fatal("the frame does not parse")
					}
					q.(netstack.Holder).Hold(p)
				}
				if err := q.Flush(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
