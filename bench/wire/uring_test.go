package wire

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/packet/packettest"
)

// benchmarkURing is several frames for one system call, beside one call for
// each: frames that come out of the namespace through fd, sent to out, and
// datagrams that are written to it.
func benchmarkURing(b *testing.B, fd, out int) {
	const most, slot = 64, 4096
	f, err := packettest.Frame(fmt.Sprintf("udp 10.0.0.2:1000 > 10.0.0.1:%d len=36 df", udpPort))
	if err != nil {
		b.Fatal(err)
	}
	frame := append(make([]byte, 10), f...) // an empty virtio-net header
	run := func(name string, f func(b *testing.B, u *uring, buf []byte)) {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			buf := make([]byte, most*slot)
			u, err := newURing(most, fd, buf)
			if err != nil {
				b.Skip("io_uring: ", err)
			}
			defer u.close()
			f(b, u, buf)
		})
	}
	for _, n := range []int{1, 8, most} {
		run(fmt.Sprintf("read/uring=%d", n), func(b *testing.B, u *uring, buf []byte) {
			for done := 0; done < b.N; done += most {
				b.StopTimer()
				for range most {
					unix.Write(out, buf[:36])
				}
				b.StartTimer()
				for range most / n {
					if got := u.run(uringReadFixed, n, buf, slot, slot); got != n*(10+28+36) {
						b.Fatalf("%d frames gave %d bytes", n, got)
					}
				}
			}
		})
		run(fmt.Sprintf("write/uring=%d", n), func(b *testing.B, u *uring, buf []byte) {
			for i := range n {
				copy(buf[i*slot:], frame)
			}
			for done := 0; done < b.N; done += n {
				if got := u.run(uringWriteFixed, n, buf, slot, len(frame)); got != n*len(frame) {
					b.Fatalf("%d frames took %d bytes", n, got)
				}
			}
		})
	}
}

// uring is io_uring as far as BenchmarkTUN uses it: reads and writes of one
// registered descriptor, any number for one system call.
type uring struct {
	fd                       int
	sqHead, sqTail           *uint32
	sqMask                   uint32
	cqHead, cqTail           *uint32
	cqMask                   uint32
	sqes                     []sqe
	cqes                     []cqe
	array                    []uint32
	sqMem, cqMem, entriesMem []byte
}

type sqe struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	opFlags   uint32
	user      uint64
	buf       uint16
	_         [22]byte
}

type cqe struct {
	user  uint64
	res   int32
	flags uint32
}

const (
	uringReadFixed, uringWriteFixed = 4, 5 // with registered buffers

	uringFixedFile  = 1       // of sqe.flags
	uringGetEvents  = 1       // of io_uring_enter
	uringSingle     = 1 << 12 // of io_uring_setup: one thread submits …
	uringDeferTasks = 1 << 13 // … and does the work itself, when it waits

	uringBuffers, uringFiles = 0, 2 // io_uring_register
)

type uringParams struct {
	sqEntries, cqEntries, flags, threadCPU, idle, features, wqFD uint32
	_                                                            [3]uint32
	sq, cq                                                       [10]uint32
}

// newURing registers fd and one buffer.
func newURing(entries uint32, fd int, buf []byte) (*uring, error) {
	p := uringParams{flags: uringSingle | uringDeferTasks}
	n, _, errno := syscall.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, errno
	}
	u := &uring{fd: int(n)}
	var err error
	m := func(off int64, size int) []byte {
		if err != nil {
			return nil
		}
		var b []byte
		b, err = unix.Mmap(u.fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		return b
	}
	u.sqMem = m(0, int(p.sq[6]+p.sqEntries*4))
	u.cqMem = m(0x8000000, int(p.cq[5]+p.cqEntries*16))
	u.entriesMem = m(0x10000000, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})))
	if err != nil {
		u.close()
		return nil, err
	}
	at := func(mem []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }
	u.sqHead, u.sqTail, u.sqMask = at(u.sqMem, p.sq[0]), at(u.sqMem, p.sq[1]), *at(u.sqMem, p.sq[2])
	u.array = unsafe.Slice(at(u.sqMem, p.sq[6]), p.sqEntries)
	u.cqHead, u.cqTail, u.cqMask = at(u.cqMem, p.cq[0]), at(u.cqMem, p.cq[1]), *at(u.cqMem, p.cq[2])
	u.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&u.cqMem[p.cq[5]])), p.cqEntries)
	u.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&u.entriesMem[0])), p.sqEntries)
	for i := range u.array {
		u.array[i] = uint32(i)
	}
	files := []int32{int32(fd)}
	iov := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	for what, x := range map[uintptr]unsafe.Pointer{uringFiles: unsafe.Pointer(&files[0]), uringBuffers: unsafe.Pointer(&iov[0])} {
		if _, _, errno := syscall.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), what, uintptr(x), 1, 0, 0); errno != 0 {
			u.close()
			return nil, errno
		}
	}
	return u, nil
}

func (u *uring) close() {
	for _, m := range [][]byte{u.sqMem, u.cqMem, u.entriesMem} {
		if m != nil {
			unix.Munmap(m)
		}
	}
	unix.Close(u.fd)
}

// run queues n operations at the buffer's slots of so many bytes, waits for all
// with one system call, and gives the sum of the results.
func (u *uring) run(op uint8, n int, buf []byte, slot, size int) (sum int) {
	tail := atomic.LoadUint32(u.sqTail)
	for i := range n {
		u.sqes[tail&u.sqMask] = sqe{op: op, flags: uringFixedFile, off: ^uint64(0), addr: uint64(uintptr(unsafe.Pointer(&buf[i*slot]))), len: uint32(size)}
		tail++
	}
	atomic.StoreUint32(u.sqTail, tail)
	syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(n), uintptr(n), uringGetEvents, 0, 0)
	head := atomic.LoadUint32(u.cqHead)
	for end := atomic.LoadUint32(u.cqTail); head != end; head++ {
		sum += int(u.cqes[head&u.cqMask].res)
	}
	atomic.StoreUint32(u.cqHead, head)
	return sum
}
