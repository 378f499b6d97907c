package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	echoPort  = 5002
	closePort = 6000 // and those after it
	closers   = 16
)

// serve starts the servers of a path.
func (p *Path) serve(l *lab) (err error) {
	// Sources of the many flows.
	if err := run("ip", "-n", p.client.name, "route", "add", "local", "10.64.0.0/10", "dev", "lo"); err != nil {
		return err
	}
	if p.sink, err = newSink(p.server); err != nil {
		return err
	}
	l.undo = append(l.undo, p.sink.close)
	if _, err := l.start("Server listening", "ip", "netns", "exec", p.server.name, "iperf3", "--forceflush", "-s"); err != nil {
		return err
	}
	listen := func(port int, handle func(int)) error {
		return p.server.h.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 4096)); err != nil {
				return err
			}
			l.undo = append(l.undo, func() { unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
			go func() {
				runtime.LockOSThread()
				for {
					c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
					if err != nil {
						return
					}
					handle(c)
				}
			}()
			return nil
		})
	}
	if err := listen(echoPort, func(c int) {
		var b [1]byte
		unix.SetsockoptInt(c, unix.SOL_TCP, unix.TCP_NODELAY, 1)
		for {
			if n, err := unix.Read(c, b[:]); n <= 0 || err != nil {
				break
			}
			if _, err := unix.Write(c, b[:]); err != nil {
				break
			}
		}
		unix.Close(c)
	}); err != nil {
		return err
	}
	for i := range closers {
		if err := listen(closePort+i, func(c int) { unix.Close(c) }); err != nil {
			return err
		}
	}
	return nil
}

// dial connects a blocking socket from the client.
func (p *Path) dial(port int) (fd int, err error) { return p.dialTo(serverAddr, port) }

func (p *Path) dialTo(addr string, port int) (fd int, err error) {
	err = p.client.h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		if err = connect(fd, &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(addr).As4()}); err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}

// The runtime's signals interrupt calls on sockets that have a time limit.
func read(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

// connect goes on waiting where it was interrupted.
func connect(fd int, to unix.Sockaddr) error {
	for {
		switch err := unix.Connect(fd, to); err {
		case unix.EINTR, unix.EALREADY:
		case unix.EISCONN:
			return nil
		default:
			return err
		}
	}
}

// requests measures one-byte requests and their answers; round trips in microseconds, sorted.
func (p *Path) requests(d time.Duration) ([]float64, error) {
	fd, err := p.dial(echoPort)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return trips(d, func() error {
		b := [1]byte{'x'}
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
		n, err := read(fd, b[:])
		if err == nil && n != 1 {
			err = errors.New("the connection ended")
		}
		return err
	})
}

// pings measures echo requests, as ping does.
func (p *Path) pings(d time.Duration) ([]float64, error) {
	var fd int
	err := p.client.h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(serverAddr).As4()})
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	seq := uint16(0)
	var b [64]byte
	var in [256]byte
	return trips(d, func() error {
		seq++
		b[0], b[1], b[2], b[3] = 8, 0, 0, 0
		binary.BigEndian.PutUint16(b[4:], 0x5157)
		binary.BigEndian.PutUint16(b[6:], seq)
		var s uint32
		for i := 0; i < len(b); i += 2 {
			s += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		s = s>>16 + s&0xffff
		binary.BigEndian.PutUint16(b[2:], ^uint16(s+s>>16))
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
		for {
			n, err := read(fd, in[:])
			if err == unix.EAGAIN {
				return errLost
			}
			if err != nil {
				return err
			}
			if n >= 28 && in[20] == 0 && binary.BigEndian.Uint16(in[26:]) == seq {
				return nil
			}
		}
	})
}

var errLost = errors.New("no answer came")

func trips(d time.Duration, once func() error) ([]float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all []float64
	for i, start := 0, time.Now(); time.Since(start) < d; i++ {
		t := time.Now()
		if err := once(); err == errLost {
			continue
		} else if err != nil {
			return nil, err
		}
		if i >= 20 {
			all = append(all, float64(time.Since(t).Nanoseconds())/1e3)
		}
	}
	if len(all) == 0 {
		return nil, errLost
	}
	sort.Float64s(all)
	return all, nil
}

// connections opens and closes connections, several at a time; a second.
func (p *Path) connections(d time.Duration) (float64, usage, error) {
	const clients = 8
	var n atomic.Uint64
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	before, start := p.cpu(), time.Now()
	for c := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs <- p.client.h.Do(func() error {
				to := unix.SockaddrInet4{Addr: netip.MustParseAddr(serverAddr).As4()}
				var b [1]byte
				for i := c; time.Since(start) < d; i++ {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
					to.Port = closePort + i%closers
					if err = connect(fd, &to); err == nil {
						_, err = read(fd, b[:])
					}
					unix.Close(fd)
					switch err {
					case nil:
						n.Add(1)
					case unix.EINPROGRESS, unix.EAGAIN: // five seconds for nothing, which shows in the result
					default:
						return err
					}
				}
				return nil
			})
		}()
	}
	wg.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	took := time.Since(start).Seconds()
	after := p.cpu()
	return float64(n.Load()) / took, usage{(after.machine - before.machine), after.router - before.router}, err
}

// bulk is an iperf3 run.
type bulk struct {
	gbit    float64 // received, Gbit/s of payload
	bytes   float64
	retrans float64
	cpu     usage
}

// ours moves bytes to the router's own discard service, or from its chargen;
// Gbit/s of payload.
func (p *Path) ours(d time.Duration, send bool) (gbit float64, err error) {
	port := 19
	if send {
		port = 9
	}
	fd, err := p.dialTo("10.0.1.1", port)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, 128<<10)
	total, start := 0, time.Now()
	for time.Since(start) < d {
		n := 0
		if send {
			n, err = unix.Write(fd, buf)
		} else {
			n, err = read(fd, buf)
		}
		if err != nil && err != unix.EINTR {
			return 0, err
		}
		total += max(n, 0)
	}
	if send { // what the router has acknowledged
		if left, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
			total -= left
		}
	}
	return float64(total) * 8 / time.Since(start).Seconds() / 1e9, nil
}

// iperf runs iperf3 with so many flows; in: the server sends. The end of the run
// before may reach the server later than us, where a program between passes it on:
// until then the server says that it is busy.
func (p *Path) iperf(flows int, in bool, d time.Duration) (r bulk, err error) {
	argv := []string{"netns", "exec", p.client.name, "iperf3", "-J", "-c", serverAddr, "-P", strconv.Itoa(flows), "-t", strconv.Itoa(max(1, int(d.Seconds()+0.5)))}
	if in {
		argv = append(argv, "-R")
	}
	type result struct {
		Error string
		End   struct {
			Sum_received struct{ Bytes, Bits_per_second float64 }
			Sum_sent     struct{ Retransmits float64 }
		}
	}
	var res result
	var before, after usage
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		before = p.cpu()
		var out []byte
		out, err = exec.Command("ip", argv...).Output()
		after = p.cpu()
		res = result{}
		if jerr := json.Unmarshal(out, &res); jerr != nil && err == nil {
			err = jerr
		}
		if !strings.Contains(res.Error, "server is busy") || time.Now().After(end) {
			break
		}
	}
	if res.Error != "" {
		return r, fmt.Errorf("iperf3: %s", res.Error)
	}
	if err != nil {
		return r, fmt.Errorf("iperf3: %w", err)
	}
	r.gbit, r.bytes = res.End.Sum_received.Bits_per_second/1e9, res.End.Sum_received.Bytes
	r.retrans = res.End.Sum_sent.Retransmits
	r.cpu = usage{after.machine - before.machine, after.router - before.router}
	return r, nil
}
