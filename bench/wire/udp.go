package wire

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	udpPort  = 5001
	udpBurst = 32 // datagrams per system call, sending and receiving
	overUDP  = 28 // bytes of IPv4 and UDP header
)

type mmsg struct {
	hdr unix.Msghdr
	n   uint32
	_   uint32
}

// sink counts datagrams. A datagram starts with its flow (4 bytes) and its
// number in the flow (8 bytes).
type sink struct {
	fd       int
	packets  atomic.Uint64
	bytes    atomic.Uint64
	disorder atomic.Uint64 // came after one that was sent later
	damaged  atomic.Uint64 // is not what was sent
	last     []uint64      // by flow; the reader's
	reset    atomic.Bool
}

func newSink(s *space) (*sink, error) {
	k := &sink{last: make([]uint64, 1<<17)}
	err := s.h.Do(func() (err error) {
		if k.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return unix.Bind(k.fd, &unix.SockaddrInet4{Port: udpPort})
	})
	if err != nil {
		return nil, err
	}
	go k.read()
	return k, nil
}

func (k *sink) read() {
	runtime.LockOSThread()
	var bufs [udpBurst][2048]byte
	var iov [udpBurst]unix.Iovec
	var msgs [udpBurst]mmsg
	for i := range msgs {
		iov[i].Base = &bufs[i][0]
		iov[i].SetLen(len(bufs[i]))
		msgs[i].hdr.Iov = &iov[i]
		msgs[i].hdr.SetIovlen(1)
	}
	for {
		const waitForOne = 0x10000 // MSG_WAITFORONE
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(k.fd), uintptr(unsafe.Pointer(&msgs[0])), udpBurst, waitForOne, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return
		}
		if k.reset.Load() {
			clear(k.last)
			k.reset.Store(false)
		}
		bytes := 0
		for i := range int(n) {
			b := bufs[i][:msgs[i].n]
			bytes += len(b) + overUDP
			if len(b) < 12 {
				k.damaged.Add(1)
				continue
			}
			flow, seq := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[4:])
			if int(flow) >= len(k.last) || b[len(b)-1] != fill(len(b)-1) && len(b) > 12 {
				k.damaged.Add(1)
				continue
			}
			if seq < k.last[flow] {
				k.disorder.Add(1)
			} else {
				k.last[flow] = seq
			}
		}
		k.bytes.Add(uint64(bytes))
		k.packets.Add(uint64(n))
	}
}

// close ends the reader too.
func (k *sink) close() {
	unix.Shutdown(k.fd, unix.SHUT_RDWR)
	unix.Close(k.fd)
}

func fill(i int) byte { return byte(i*7 + 3) }

// udpLoad is how datagrams are sent.
type udpLoad struct {
	size   int           // of the IP packet, bytes
	flows  int           // source ports and addresses differ; 1: one socket's
	rate   int           // packets a second; 0: as fast as it goes
	window int           // at most so many under way; 0: no limit
	time   time.Duration // how long
}

// udpResult is what came of it.
type udpResult struct {
	sent, got, disorder, damaged uint64
	took                         float64 // seconds
	cpu                          usage
}

// blast sends datagrams from the client to the server's sink.
func (p *Path) blast(u udpLoad) (r udpResult, err error) {
	k := p.sink
	var fd int
	err = p.client.h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
		if u.flows > 1 { // 10.64.0.0/10 is the client's, see serve
			return nil
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(clientAddr).As4()})
	})
	if err != nil {
		return r, err
	}
	defer unix.Close(fd)
	k.reset.Store(true)
	got, bytes, dis, dam := k.packets.Load(), k.bytes.Load(), k.disorder.Load(), k.damaged.Load()
	_ = bytes
	before, start := p.cpu(), time.Now()
	sent := make(chan uint64)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		sent <- send(fd, &u, k)
	}()
	r.sent = <-sent
	r.took = time.Since(start).Seconds()
	r.got = k.packets.Load() - got
	after := p.cpu()
	r.cpu = usage{after.machine - before.machine, after.router - before.router}
	// What is still under way belongs to the loss's account, not to the rate's.
	inTime := r.got
	for last, end := r.got, time.Now().Add(300*time.Millisecond); time.Now().Before(end); {
		time.Sleep(30 * time.Millisecond)
		now := k.packets.Load() - got
		if now == last {
			break
		}
		last = now
	}
	late := k.packets.Load() - got - inTime
	r.sent -= min(late, r.sent)
	r.disorder, r.damaged = k.disorder.Load()-dis, k.damaged.Load()-dam
	return r, nil
}

// send is the sender's loop; the datagrams that the kernel took.
func send(fd int, u *udpLoad, k *sink) (total uint64) {
	size := max(u.size-overUDP, 13)
	bufs := make([][]byte, udpBurst)
	var iov [udpBurst]unix.Iovec
	var msgs [udpBurst]mmsg
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: netip.MustParseAddr(serverAddr).As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&to.Port))[:], udpPort)
	ctl := make([][]byte, udpBurst)
	for i := range msgs {
		bufs[i] = make([]byte, size)
		for j := range bufs[i] {
			bufs[i][j] = fill(j)
		}
		iov[i].Base = &bufs[i][0]
		iov[i].SetLen(size)
		h := &msgs[i].hdr
		h.Iov = &iov[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&to))
		h.Namelen = unix.SizeofSockaddrInet4
		if u.flows > 1 {
			ctl[i] = make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
			c := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[i][0]))
			c.Level, c.Type = unix.SOL_IP, unix.IP_PKTINFO
			c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
			h.Control = &ctl[i][0]
			h.SetControllen(len(ctl[i]))
		}
	}
	base, seq := k.packets.Load(), uint64(1)
	flow := 0
	start := time.Now()
	stalled := start
	for seen := uint64(0); ; {
		now := time.Now()
		if now.Sub(start) >= u.time {
			return total
		}
		n := udpBurst
		if u.rate > 0 {
			due := int64(now.Sub(start).Seconds()*float64(u.rate)) - int64(total)
			if due < 1 {
				unix.Nanosleep(&unix.Timespec{Nsec: 50_000}, nil)
				continue
			}
			n = int(min(due, udpBurst))
		}
		if u.window > 0 {
			if got := k.packets.Load(); got != seen {
				seen, stalled = got, now
			}
			room := int64(u.window) - int64(total-(k.packets.Load()-base))
			if room < 1 {
				if now.Sub(stalled) > 20*time.Millisecond { // those are lost
					base = k.packets.Load() - total
					stalled = now
				}
				unix.Nanosleep(&unix.Timespec{Nsec: 10_000}, nil)
				continue
			}
			n = int(min(room, udpBurst))
		}
		for i := range n {
			b := bufs[i]
			binary.LittleEndian.PutUint32(b, uint32(flow))
			binary.LittleEndian.PutUint64(b[4:], seq)
			if u.flows > 1 {
				a := ctl[i][unix.CmsgLen(0)+4:] // ipi_spec_dst: the source
				a[0], a[1], a[2], a[3] = 10, byte(64+flow>>16), byte(flow>>8), byte(flow)
			}
			if flow++; flow >= u.flows {
				flow = 0
				seq++
			}
		}
		m, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(n), 0, 0, 0)
		if errno == 0 {
			total += uint64(m)
		}
	}
}
