package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sort"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/bench/report"
)

const (
	probePort  = 5003
	probeEvery = 200 * time.Microsecond
	late       = time.Millisecond
	manyRules  = 100_000
	appends    = 5
)

// probe is a stream of datagrams, one every probeEvery, of which each one's fate
// is known. The kernel says when one arrives, so it does not count how long the
// receiver took to look.
type probe struct {
	in, out int
	sent    [][2]int64 // by number: before and after the system call, ns of real time
	came    []int64    // when it arrived; 0: it did not
	stop    atomic.Bool
	senders chan struct{}
	readers chan struct{}
}

// delays is what became of a stream.
type delays struct {
	sent, lost, late int
	worst            float64 // ms
}

// newProbe begins to send.
func (p *Path) newProbe(most time.Duration) (b *probe, err error) {
	n := int(most/probeEvery) + 1
	b = &probe{in: -1, out: -1, sent: make([][2]int64, 0, n), came: make([]int64, n), senders: make(chan struct{}), readers: make(chan struct{})}
	open := func(s *space, fd *int, then func() error) {
		if err != nil {
			return
		}
		err = s.h.Do(func() (err error) {
			if *fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
				err = then()
			}
			return err
		})
	}
	open(p.server, &b.in, func() error {
		unix.SetsockoptInt(b.in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		unix.SetsockoptInt(b.in, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		unix.SetsockoptTimeval(b.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})
		return unix.Bind(b.in, &unix.SockaddrInet4{Port: probePort})
	})
	open(p.client, &b.out, func() error {
		return unix.Connect(b.out, &unix.SockaddrInet4{Port: probePort, Addr: netip.MustParseAddr(serverAddr).As4()})
	})
	if err != nil {
		b.close()
		return nil, err
	}
	go b.read()
	go b.send()
	time.Sleep(100 * time.Millisecond) // the connection is there, the kernel has begun to take times
	return b, nil
}

func (b *probe) close() {
	unix.Close(b.in)
	unix.Close(b.out)
}

func now() int64 { return time.Now().UnixNano() }

func (b *probe) send() {
	runtime.LockOSThread()
	defer close(b.senders)
	var msg [16]byte
	for due := now(); !b.stop.Load() && len(b.sent) < cap(b.sent); due += int64(probeEvery) {
		if wait := due - now(); wait > 0 {
			unix.Nanosleep(&unix.Timespec{Nsec: wait}, nil)
		}
		binary.LittleEndian.PutUint64(msg[:], uint64(len(b.sent)))
		before := now()
		unix.Write(b.out, msg[:])
		b.sent = append(b.sent, [2]int64{before, now()})
	}
}

// read ends when nothing has come for a while after the sender's end.
func (b *probe) read() {
	runtime.LockOSThread()
	defer close(b.readers)
	var msg [16]byte
	var ctl [64]byte
	for {
		n, nc, _, _, err := unix.Recvmsg(b.in, msg[:], ctl[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if err == unix.EAGAIN && !b.stop.Load() {
				continue
			}
			return
		}
		at := now()
		if h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0])); nc >= unix.CmsgLen(16) && h.Type == unix.SO_TIMESTAMPNS {
			at = (*unix.Timespec)(unsafe.Pointer(&ctl[unix.CmsgLen(0)])).Nano()
		}
		if i := binary.LittleEndian.Uint64(msg[:]); n == len(msg) && i < uint64(len(b.came)) {
			b.came[i] = at
		}
	}
}

// end stops the stream and says what became of it.
func (b *probe) end() (d delays) {
	b.stop.Store(true)
	<-b.senders
	<-b.readers
	b.close()
	for i, s := range b.sent {
		d.sent++
		if b.came[i] == 0 {
			d.lost++
			continue
		}
		// A sender that was held up itself before the datagram was under way is not the router's doing.
		from := s[0]
		if s[1]-s[0] > int64(100*time.Microsecond) {
			from = s[1]
		}
		took := b.came[i] - from
		if took > int64(late) {
			d.late++
		}
		d.worst = max(d.worst, float64(took)/1e6)
	}
	return d
}

// changes measures what loading many rules, and appending one to them, takes,
// and what becomes of traffic meanwhile; first without, as all that a busy
// machine delays is in those figures too.
func (plan *Plan) changes(p *Path, rep *report.Report, round int) error {
	add := func(metric string, v float64) { rep.Add(p.Name, metric, 0, round, v) }
	under := func(name string, f func() error) error {
		b, err := p.newProbe(time.Minute)
		if err != nil {
			return err
		}
		err = f()
		d := b.end()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		add(name+".lost", float64(d.lost))
		add(name+".late", float64(d.late))
		add(name+".worst", d.worst)
		return nil
	}
	many := Ruleset(manyRules, true)
	if err := under("quiet", func() error { time.Sleep(time.Second); return nil }); err != nil {
		return err
	}
	if err := under("load", func() error {
		start := time.Now()
		err := p.rules(many)
		add("load", float64(time.Since(start).Nanoseconds())/1e6)
		return err
	}); err != nil {
		return err
	}
	if err := under("append", func() error {
		var took []float64
		for i := range appends {
			start := time.Now()
			if err := p.append(fmt.Sprintf("-A FORWARD -s 203.0.113.%d -j DROP", i)); err != nil {
				return err
			}
			took = append(took, float64(time.Since(start).Nanoseconds())/1e6)
		}
		sort.Float64s(took)
		add("append", took[len(took)/2])
		return nil
	}); err != nil {
		return err
	}
	return p.rules(Ruleset(20, true))
}
